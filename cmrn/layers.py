"""Layers that every part is built from: linear map without bias, norms, a causal convolution that carries its tail."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.records import Segments

__all__ = [
    "MOST_FEW",
    "CausalConv",
    "Linear",
    "Norm",
    "computes_bfloat16",
    "narrow_type",
    "project",
    "reads_one",
    "segment_numbers",
    "stacked",
    "unit",
]

SHORTEST = 1e-6
STACKED_TOKENS = 256
ALIGNED_COLUMNS = 64
FUSED_WIDTH = 4
MOST_FEW = 8
"""Tokens that are a few: read by kernels that are launched for their number, not their speed."""


class Linear(nn.Linear):
    """x_D @ W, without bias, drawn from a normal of standard deviation `scale` / sqrt(fan-in)."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        self.scale = scale
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        nn.init.trunc_normal_(self.weight, std=self.scale / math.sqrt(self.in_features), a=-3.0, b=3.0)


def project(x_BTD: Tensor, *groups: tuple[Linear, ...]) -> tuple[Tensor, ...]:
    """One tensor a group, (B, T, Σ outputs): x through the layers of the group, side by side.

    Unless there are few tokens, weights are stacked for this call: those of a group, and on CUDA those of all groups.
    """
    if x_BTD.shape[0] * x_BTD.shape[1] < STACKED_TOKENS:
        return tuple(torch.cat([layer(x_BTD) for layer in group], -1) for group in groups)
    if not x_BTD.is_cuda:
        return tuple(F.linear(x_BTD, torch.cat([layer.weight for layer in group])) for group in groups)
    widths = [sum(layer.out_features for layer in group) for group in groups]
    product_BTP = stacked(x_BTD, *(layer for group in groups for layer in group))
    outputs: tuple[Tensor, ...] = product_BTP.split([*widths, product_BTP.shape[-1] - sum(widths)], -1)
    return outputs[: len(groups)]


def stacked(x_BTD: Tensor, *layers: Linear) -> Tensor:
    """(B, T, P): x through all layers side by side in one product, P padded with zeros to a multiple of 64.

    A compiler leaves such a product as it is, and kernels that read its columns know how they are aligned.
    """
    weights = [layer.weight for layer in layers]
    padding = -sum(layer.out_features for layer in layers) % ALIGNED_COLUMNS
    if padding:
        weights.append(weights[0].new_zeros(padding, x_BTD.shape[-1]))
    return F.linear(x_BTD, torch.cat(weights))


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
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps).to(narrow_type(x))


def narrow_type(x: Tensor) -> torch.dtype:
    """The type that matrix products of x run in: autocast's where it is on, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device says that it has instructions for matrix products in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    read = getattr(torch.cpu, "get_capabilities", None)
    if read is not None:
        capabilities = read()
        return any(capabilities.get(name) is True for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16"))
    # Before torch 2.12 the same facts had these names.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(check()) for check in checks if check is not None)


def reads_one(module: nn.Module, x_BTD: Tensor, segments: Segments) -> bool:
    """Whether the kernels for one token a row do: on CUDA, few rows, nothing padded, no gradient, noise or dropout."""
    one = x_BTD.is_cuda and x_BTD.shape[1] == 1 and x_BTD.shape[0] <= MOST_FEW and x_BTD.dtype != torch.float64
    return one and segments.real_BT is None and not module.training and not torch.is_grad_enabled()


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ over the last dimension, 0 for a vector shorter than 1e-6; on CUDA a formula that a compiler may fuse."""
    if x.is_cuda:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        square = wide.square().sum(-1, keepdim=True)
        return (wide * torch.where(square > SHORTEST**2, square.clamp(min=SHORTEST**2).rsqrt(), 0.0)).to(x.dtype)
    result: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return result


class _Unit(torch.autograd.Function):
    """`torch.nn.functional.normalize` with its gradient (g − y (y·g)) / ‖x‖ in three passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        inverse = x.norm(dim=-1, keepdim=True, dtype=wide).reciprocal()
        inverse = inverse.masked_fill_(inverse > 1 / SHORTEST, 0.0).to(x.dtype)
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
        if self._fused(x_BTC):
            from cmrn.convolution_triton import convolve

            y_BTC, tail = convolve(x_BTC, self.weight, *_carried(x_BTC, tail_BTC, segments))
            return y_BTC, tail
        tail = self.initial_tail(x_BTC) if tail_BTC is None else tail_BTC.to(x_BTC.dtype)
        return self._convolve(x_BTC, tail, segments.start_BT), self._next_tail(x_BTC, tail, segments)

    def heads(
        self,
        x_BTC: Tensor,
        tail_BTC: Tensor | None,
        segments: Segments,
        width: int,
        *,
        parts: int = 1,
        units: int = 1,
        silu: bool = False,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """(parts, tail): the convolved stream, through SiLU if asked for, cut into `parts` of (B, T, heads, width).

        The heads of the first `units` parts have length one, as `unit` makes them. On CUDA this is one kernel.
        """
        if self._fused(x_BTC):
            from cmrn.convolution_triton import Cut, convolve

            cut = Cut(parts, units, width, silu)
            *streams, tail = convolve(x_BTC, self.weight, *_carried(x_BTC, tail_BTC, segments), cut=cut)
            return tuple(stream.unflatten(-1, (-1, width)) for stream in streams), tail
        y_BTC, tail = self(x_BTC, tail_BTC, segments)
        y_BTHC = (F.silu(y_BTC) if silu else y_BTC).unflatten(-1, (-1, width))
        count = y_BTHC.shape[2] // parts
        first, rest = y_BTHC.split([units * count, (parts - units) * count], 2)
        return (*unit(first).chunk(units, 2), *(rest.split(count, 2) if parts > units else ())), tail

    def _fused(self, x_BTC: Tensor) -> bool:
        return x_BTC.is_cuda and x_BTC.dtype != torch.float64 and 2 <= self.width <= FUSED_WIDTH

    def _convolve(self, x_BTC: Tensor, tail: Tensor, start_BT: Tensor | None) -> Tensor:
        padded = torch.cat([tail, x_BTC], 1)
        if not x_BTC.is_cuda:
            y_BTC: Tensor = _Convolve.apply(padded, self.weight, start_BT)  # type: ignore[no-untyped-call]
            return y_BTC
        reach, length = self.width - 1, x_BTC.shape[1]
        taps = self.weight.to(padded.dtype)
        y_BTC = x_BTC * taps[reach]
        crossed = None if start_BT is None else torch.zeros_like(start_BT)
        for lag in range(1, reach + 1):
            seen = padded[:, reach - lag : reach - lag + length]
            if start_BT is not None and crossed is not None:
                crossed = crossed | F.pad(start_BT, (lag - 1, 0))[:, :length]
                seen = seen.masked_fill(crossed[..., None], 0.0)
            y_BTC = y_BTC + seen * taps[reach - lag]
        return y_BTC

    def _next_tail(self, x_BTC: Tensor, tail: Tensor, segments: Segments) -> Tensor:
        """The last inputs of each row's real tokens, zeros where they belong to an earlier document."""
        reach, length = self.width - 1, x_BTC.shape[1]
        ends = None
        if segments.real_BT is None:
            last = torch.cat([tail, x_BTC[:, max(0, length - reach) :]], 1)
            last = last[:, last.shape[1] - reach :]
        else:
            ends = segments.real_BT.sum(1, keepdim=True) + torch.arange(reach, device=x_BTC.device)
            before, after = (
                source.gather(1, place[..., None].expand(-1, -1, x_BTC.shape[2]))
                for source, place in ((tail, ends.clamp(max=reach - 1)), (x_BTC, (ends - reach).clamp(min=0)))
            )
            last = torch.where((ends < reach)[..., None], before, after)
        if segments.start_BT is None:
            return last
        began = F.pad(segments.start_BT, (reach, 0))
        began = began[:, length:] if ends is None else began.gather(1, ends)
        since = began.flip(1).cumsum(1).flip(1) > began
        return last.masked_fill(since[..., None], 0.0)


class _Convolve(torch.autograd.Function):
    """Σ_j w_j x_{t-j} in one pass; taps across a document's first token are taken back out.

    Documents begin rarely, so those few products are found and subtracted rather than every tap masked.
    """

    @staticmethod
    def forward(ctx: Any, padded_BTC: Tensor, weight_JC: Tensor, start_BT: Tensor | None) -> Tensor:
        reach = weight_JC.shape[0] - 1
        taps = weight_JC.to(padded_BTC.dtype)
        y_BTC = _correlate(padded_BTC, taps)
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
        grad_padded = _correlate(F.pad(grad_BTC, (0, 0, reach, reach)), taps.flip(0))
        grad_weight, product = torch.empty_like(weight_JC), torch.empty_like(grad_BTC)
        # A product with ones sums over tokens twice as fast as a reduction does.
        ones = product.new_ones(1, product.shape[0] * length)
        for lag in range(reach + 1):
            torch.mul(padded_BTC[:, reach - lag : reach - lag + length], grad_BTC, out=product)
            grad_weight[reach - lag] = (ones @ product.flatten(0, 1))[0].to(wide)
        for lag, (row, place) in enumerate(ctx.crossings, 1):
            grad, source = grad_BTC[row, place], place + reach - lag
            grad_padded.index_put_((row, source), -grad * taps[reach - lag], accumulate=True)
            grad_weight[reach - lag] -= (padded_BTC[row, source] * grad).sum(0).to(wide)
        return grad_padded, grad_weight, None


def _carried(
    x_BTC: Tensor, tail_BTC: Tensor | None, segments: Segments
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Tail in x's type, starts and real tokens of each row, as the kernels take them."""
    count_B = None if segments.real_BT is None else segments.real_BT.sum(1)
    return None if tail_BTC is None else tail_BTC.to(x_BTC.dtype), segments.start_BT, count_B


def _correlate(padded_BTC: Tensor, taps_JC: Tensor) -> Tensor:
    """y_t = Σ_j taps_j · padded_{t+j}, (B, T - J + 1, C)."""
    if padded_BTC.dtype in (torch.float32, torch.bfloat16):
        # Seen as images one row high with channels last, the stream needs no copy, and oneDNN reads it once.
        images = padded_BTC.transpose(1, 2).unsqueeze(2)
        return F.conv2d(images, taps_JC.t()[:, None, None], groups=taps_JC.shape[1]).squeeze(2).transpose(1, 2)
    length = padded_BTC.shape[1] - taps_JC.shape[0] + 1
    y_BTC = padded_BTC[:, :length] * taps_JC[0]
    for j in range(1, taps_JC.shape[0]):
        y_BTC.addcmul_(padded_BTC[:, j : j + length], taps_JC[j])
    return y_BTC


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
