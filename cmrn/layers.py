"""Layers that every part is built from: linear map without bias, norms, a causal convolution that carries its tail."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.records import Segments

__all__ = ["CausalConv", "Linear", "Norm", "segment_numbers", "unit"]


class Linear(nn.Linear):
    """x_D @ W, without bias, drawn from a normal of standard deviation `scale` / sqrt(fan-in)."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.trunc_normal_(self.weight, std=self.scale / math.sqrt(self.in_features), a=-3.0, b=3.0)


class Norm(nn.Module):
    """(x − mean) / sqrt(var + eps) · weight over the last dimension, in at least float32; no bias (Ba et al. 2016).

    The result has the type that matrix products run in, so that it is cast once however many of them read it.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised x: in autocast's type where it is on, else in the type of x."""
        device = x.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps).to(narrow)


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ over the last dimension, 0 for a vector shorter than 1e-6."""
    result: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Unit(torch.autograd.Function):
    """`torch.nn.functional.normalize` with its gradient (g − y (y·g)) / ‖x‖ in three passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        inverse = x.norm(dim=-1, keepdim=True, dtype=wide).reciprocal()
        inverse = inverse.masked_fill_(inverse > 1e6, 0.0).to(x.dtype)
        y: Tensor = x * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, inverse = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        result: Tensor = torch.addcmul(grad, y, along, value=-1).mul_(inverse)
        return result


def segment_numbers(segments: Segments, batch: int, length: int, device: torch.device) -> Tensor:
    """(B,T) int64: 0 for tokens of the document carried in, then 1, 2, … for each document that starts."""
    if segments.start_BT is None:
        return torch.zeros(batch, length, dtype=torch.int64, device=device)
    return segments.start_BT.cumsum(1)


class CausalConv(nn.Module):
    """y_t = Σ_j w_j · x_{t-j}, channel by channel over `width` tokens of one document.

    The last width-1 inputs are carried from call to call, so any split of a text gives the same outputs.
    """

    def __init__(self, channels: int, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start near the identity: the newest tap at 1, noise on all."""
        nn.init.normal_(self.weight, std=0.5 / math.sqrt(self.width))
        with torch.no_grad():
            self.weight[-1] += 1.0

    def initial_tail(self, x_BTC: Tensor) -> Tensor:
        """(B, width-1, C) zeros: what stands before a document."""
        return x_BTC.new_zeros(x_BTC.shape[0], self.width - 1, x_BTC.shape[2])

    def forward(self, x_BTC: Tensor, tail_BTC: Tensor | None, segments: Segments) -> tuple[Tensor, Tensor]:
        """(y_BTC, tail): the convolved stream, in x's type, and the inputs to carry to the next call."""
        tail = self.initial_tail(x_BTC) if tail_BTC is None else tail_BTC.to(x_BTC.dtype)
        padded = torch.cat([tail, x_BTC], 1)
        y_BTC: Tensor = _Convolve.apply(padded, self.weight, segments.start_BT)  # type: ignore[no-untyped-call]
        return y_BTC, self._next_tail(padded, segments)

    def _next_tail(self, padded: Tensor, segments: Segments) -> Tensor:
        reach = self.width - 1
        length = padded.shape[1] - reach
        if segments.real_BT is None:
            tail, ends = padded[:, length:], None
        else:
            ends = segments.real_BT.sum(1, keepdim=True) + torch.arange(reach, device=padded.device)
            tail = padded.gather(1, ends[..., None].expand(-1, -1, padded.shape[2]))
        if segments.start_BT is None:
            return tail
        number = F.pad(segments.start_BT.cumsum(1), (reach, 0))
        kept = number[:, length:] if ends is None else number.gather(1, ends)
        return tail * (kept == number.amax(1, keepdim=True))[..., None]


class _Convolve(torch.autograd.Function):
    """Σ_j w_j x_{t-j} without a temporary for each tap; taps across a document's first token are taken back out.

    Documents begin rarely, so those few products are found and subtracted rather than every tap masked.
    """

    @staticmethod
    def forward(ctx: Any, padded_BTC: Tensor, weight_JC: Tensor, start_BT: Tensor | None) -> Tensor:
        reach = weight_JC.shape[0] - 1
        length = padded_BTC.shape[1] - reach
        taps = weight_JC.to(padded_BTC.dtype)
        y_BTC = padded_BTC[:, reach:] * taps[reach]
        for lag in range(1, reach + 1):
            y_BTC.addcmul_(padded_BTC[:, reach - lag : reach - lag + length], taps[reach - lag])
        crossings = _crossings(start_BT, reach)
        for lag, (row, place) in enumerate(crossings, 1):
            y_BTC.index_put_((row, place), -padded_BTC[row, place + reach - lag] * taps[reach - lag], accumulate=True)
        ctx.save_for_backward(padded_BTC, weight_JC)
        ctx.crossings = crossings
        return y_BTC

    @staticmethod
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor, Tensor, None]:
        padded_BTC, weight_JC = ctx.saved_tensors
        reach, length = weight_JC.shape[0] - 1, grad_BTC.shape[1]
        wide = torch.promote_types(weight_JC.dtype, torch.float32)
        taps = weight_JC.to(padded_BTC.dtype)
        grad_padded, grad_weight = torch.zeros_like(padded_BTC), torch.empty_like(weight_JC)
        for lag in range(reach + 1):
            seen = slice(reach - lag, reach - lag + length)
            grad_padded[:, seen].addcmul_(grad_BTC, taps[reach - lag])
            grad_weight[reach - lag] = (padded_BTC[:, seen] * grad_BTC).sum((0, 1)).to(wide)
        for lag, (row, place) in enumerate(ctx.crossings, 1):
            grad, source = grad_BTC[row, place], place + reach - lag
            grad_padded.index_put_((row, source), -grad * taps[reach - lag], accumulate=True)
            grad_weight[reach - lag] -= (padded_BTC[row, source] * grad).sum(0).to(wide)
        return grad_padded, grad_weight, None


def _crossings(start_BT: Tensor | None, reach: int) -> list[tuple[Tensor, Tensor]]:
    """For each lag from 1, the rows and places where a document began within the last `lag` tokens."""
    if start_BT is None:
        return []
    crossed, found = torch.zeros_like(start_BT), []
    for lag in range(1, reach + 1):
        shifted = F.pad(start_BT, (lag - 1, 0))[:, : start_BT.shape[1]]
        crossed = crossed | shifted
        row, place = crossed.nonzero(as_tuple=True)
        found.append((row, place))
    return found
