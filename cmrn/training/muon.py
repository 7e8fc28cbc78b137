"""Muon: momentum whose matrices are orthogonalised, those of one shape together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cmrn.together import Together

__all__ = ["Muon", "orthogonalise"]

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
ELEMENTS_AT_ONCE = 1 << 26


class Muon(Optimizer):
    """Orthogonalised momentum: m ← μm + (1−μ)g; W ← (1 − lr·decay)W − lr · 0.2√max(rows, columns) · NS(μm + (1−μ)g).

    Source: Jordan et al. 2024, "Muon"; the scale, which lets it share AdamW's learning rate, from Liu et al. 2025,
    "Muon is Scalable for LLM Training", eq. 4.
    Differs from `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`: matrices of one shape, or of its transpose, go
    through the Newton–Schulz iteration together, as batched products, which halves its time on a CPU and shields it
    from contention; the norm that scales them is taken in float32. Values agree to bfloat16's rounding.

    On CUDA, float32 parameters are moved by two kernels a shape around the iteration, without a word from the host, so
    that a step can be captured; `lr` is then a tensor there. grad_scale and found_inf, set from outside as torch's
    fused optimizers have them, are tensors: what gradients are divided by, and 1 where the step is to do nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float | Tensor, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        self._captured: list[Tensor] = []
        self._together = Together()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; return what `closure`, run first with gradients on, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._move_group(list(_by_shape(group["params"])), group["lr"], group["weight_decay"])
        return loss

    def _move_group(self, buckets: list[list[Tensor]], lr: float | Tensor, weight_decay: float) -> None:
        if not isinstance(lr, Tensor):
            for parameters in buckets:
                self._move(parameters, lr, weight_decay)
            return
        # A bucket's matrices leave multiprocessors idle at the end of each product, so buckets run beside each other.
        calls = [partial(self._move_on_device, parameters, lr, weight_decay) for parameters in buckets]
        if calls:
            self._together(lr.device, *calls)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _move_on_device(self, parameters: list[Tensor], lr: Tensor, weight_decay: float) -> None:
        from cmrn.training import muon_triton

        gradients = [parameter.grad.contiguous() for parameter in parameters if parameter.grad is not None]
        scale = torch.ones_like(lr) if self.grad_scale is None else self.grad_scale
        skip = torch.zeros_like(lr) if self.found_inf is None else self.found_inf
        shape = parameters[0].shape
        updates = muon_triton.mix(
            self._table(gradients),
            self._table([self._momentum(each) for each in parameters]),
            shape,
            MOMENTUM,
            scale,
            skip,
        )
        directions = orthogonalise(updates)
        size = 0.2 * math.sqrt(max(shape))
        muon_triton.move(self._table(parameters), directions, shape, lr, size, weight_decay, skip)

    def _table(self, tensors: list[Tensor]) -> Tensor:
        """The tensors' addresses, on the device."""
        addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).pin_memory()
        if torch.cuda.is_current_stream_capturing():
            # A captured copy reads the host's side again at every replay.
            self._captured.append(addresses)
        return addresses.to(tensors[0].device, non_blocking=True)

    def _move(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        updates = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            momentum = self._momentum(parameter).lerp_(gradient, 1 - MOMENTUM)
            update = gradient.lerp(momentum, MOMENTUM)
            updates.append(update if update.shape[0] <= update.shape[1] else update.T)
        scale = 0.2 * lr * math.sqrt(max(parameters[0].shape))
        directions = orthogonalise(torch.stack(updates))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            aligned = direction if parameter.shape[0] <= parameter.shape[1] else direction.T
            parameter.add_(aligned, alpha=-scale)


def orthogonalise(x_NRC: Tensor) -> Tensor:
    """bfloat16 matrices with the singular vectors of x (R ≤ C) and singular values near 1, in about (0.7, 1.2).

    Five steps X ← aX + (bA + cA²)X with A = XXᵀ, of Jordan et al. 2024, on X = x / ‖x‖.
    """
    a, b, c = QUINTIC
    norm_N11 = torch.linalg.matrix_norm(x_NRC, keepdim=True, dtype=torch.float32)
    y: Tensor = (x_NRC / norm_N11.clamp(min=1e-7)).bfloat16()
    if y.is_cuda:
        from cmrn.training import orthogonal_triton

        return orthogonal_triton.newton_schulz(y, ITERATIONS, QUINTIC)
    for _ in range(ITERATIONS):
        gram = torch.bmm(y, y.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, gram, y, beta=a)
    return y


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, those of one shape up to transposition together, in lists of bounded size.

    On CUDA the transposed ones stand apart: a kernel that moves a list reads it with one pair of strides.
    """
    buckets: dict[tuple[object, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shape = parameter.shape if parameter.is_cuda else sorted(parameter.shape)
            key = (*shape, parameter.device, parameter.dtype)
            buckets.setdefault(key, []).append(parameter)
    for bucket in buckets.values():
        size = max(1, ELEMENTS_AT_ONCE // max(1, bucket[0].numel()))
        for start in range(0, len(bucket), size):
            yield bucket[start : start + size]
