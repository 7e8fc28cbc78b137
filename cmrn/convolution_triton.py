"""The causal convolution on CUDA as one operator each way, with the SiLU and the unit length that may follow it.

What is carried to the next call is an output of the same operator, so that its gradient costs three tokens and not a
stream of zeros. The kernels, and how they are laid out, stand in `convolution_kernels_triton`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cmrn.convolution_kernels_triton import (
    backward_kernel,
    forward_kernel,
    tail_gradient_kernel,
    tail_kernel,
)
from cmrn.sums_triton import sum_rows

__all__ = ["Cut", "Source", "convolve", "gradients", "streams"]

PROGRAM_VALUES = 256
FORWARD_STEPS, BACKWARD_STEPS = 32, 64
"""Tokens of a strip, along which a program walks; the gradient walks three more."""
WIDEST_BLOCK = 128
"""Channels that a program takes where no head must stay whole."""
WARPS = 1
STAGES = 4
MOST_REGISTERS = 168
"""Registers a thread of the gradient's: left to the compiler they are 205, and fewer programs share a processor."""
TAIL_BLOCK = 512


class Source(NamedTuple):
    """What is convolved.

    x_BTC: dense along channels. weight_JC: 2 ≤ J ≤ 4. tail_BRC: the J-1 inputs before x, zeros where it is None.
    start_BT: True where documents begin. count_B: the real tokens of each row, all where it is None.
    """

    x_BTC: Tensor
    weight_JC: Tensor
    tail_BRC: Tensor | None
    start_BT: Tensor | None
    count_B: Tensor | None

    @property
    def reach(self) -> int:
        """How many tokens back an output sees."""
        return self.weight_JC.shape[0] - 1

    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
        """x, weight, tail, starts and the strides of x, as the kernels take them; x stands in for what is absent."""
        x_BTC = self.x_BTC
        assert x_BTC.stride(2) == 1, "the channels of x must be dense"
        tail = x_BTC if self.tail_BRC is None else self.tail_BRC.contiguous()
        start = x_BTC if self.start_BT is None else self.start_BT.contiguous()
        return x_BTC, self.weight_JC.contiguous(), tail, start, x_BTC.stride(0), x_BTC.stride(1)


class Cut(NamedTuple):
    """How the result is cut: into `parts` of equal width, `units` of them in heads of `head` channels of length one."""

    parts: int = 1
    units: int = 0
    head: int = 0
    silu: bool = False


def convolve(
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    count_B: Tensor | None = None,
    *,
    cut: Cut | None = None,
) -> tuple[Tensor, ...]:
    """(each part of y, next tail): y_t = Σ_l w_{J-1-l} · x_{t-l} over the tokens of one document, cut as `cut` says.

    With `silu`, SiLU follows; then the heads of the first `units` parts are divided by their norms (0 for one shorter
    than 1e-6). The arguments are those of `Source`; x is float32, bfloat16 or float16, and so is the result. The next
    tail holds the last J-1 inputs of a row's real tokens, zeros where they belong to an earlier document. Computes in
    float32. x, weight and tail carry gradient, the weight's in its own type.
    """
    outputs: list[Tensor] = _convolve(x_BTC, weight_JC, tail_BRC, start_BT, count_B, *(cut or Cut()))
    return tuple(outputs)


def streams(source: Source, cut: Cut) -> list[Tensor]:
    """The parts of y, (B,T,C/parts) each, and the next tail (B,J-1,C): `convolve` without gradient."""
    x_BTC = source.x_BTC
    batch, length, channels = x_BTC.shape
    outputs = [x_BTC.new_empty(batch, length, channels // cut.parts) for _ in range(cut.parts)]
    grid, sizes = _launch(source, cut, FORWARD_STEPS)
    first, second, third = (outputs * 3)[:3]
    forward_kernel[grid](
        *source.pointers(), first, second, third, length, channels // cut.parts, grid[1] // cut.parts, cut.units,
        **sizes, num_warps=WARPS,
    )  # fmt: skip
    last = x_BTC.new_empty(batch, source.reach, channels)
    tail_kernel[(triton.cdiv(channels, TAIL_BLOCK), batch)](
        *_edge(source), last, source.x_BTC.stride(0), source.x_BTC.stride(1), length, channels, **_edge_flags(source)
    )
    return [*outputs, last]


def gradients(
    grads: list[Tensor], grad_last: Tensor | None, source: Source, cut: Cut, grad_x: Tensor
) -> tuple[Tensor, Tensor]:
    """(weight's gradient, tail's): fills grad_x, whose channels are dense, from those of `streams`' results."""
    batch, length, channels = source.x_BTC.shape
    grid, sizes = _launch(source, cut, BACKWARD_STEPS)
    grad_tail = source.x_BTC.new_empty(batch, source.reach, channels)
    partial = source.x_BTC.new_empty(grid[0] * batch, source.weight_JC.numel(), dtype=torch.float32)
    first, second, third = ([grad.contiguous() for grad in grads] * 3)[:3]
    backward_kernel[grid](
        *source.pointers(), first, second, third, grad_x, grad_tail, partial, grad_x.stride(0), grad_x.stride(1),
        length, channels // cut.parts, grid[1] // cut.parts, cut.units, **sizes, num_warps=WARPS,
        maxnreg=MOST_REGISTERS if sizes["BLOCK"] <= PROGRAM_VALUES else None,
    )  # fmt: skip
    if grad_last is not None:
        tail_gradient_kernel[(triton.cdiv(channels, TAIL_BLOCK), batch)](
            grad_last.contiguous(), *_edge(source)[2:], grad_x, grad_tail, grad_x.stride(0), grad_x.stride(1), length,
            channels, **_edge_flags(source),
        )  # fmt: skip
    return sum_rows(partial, source.weight_JC.dtype).view_as(source.weight_JC), grad_tail


def _launch(source: Source, cut: Cut, most: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """The grid of (walks, heads of all parts, rows), and what the kernels are compiled for.

    Heads stay whole where their norms are wanted; else channels are cut as suits the machine.
    """
    batch, length, channels = source.x_BTC.shape
    width = channels // cut.parts
    head = cut.head if cut.units else min(WIDEST_BLOCK, triton.next_power_of_2(width))
    block = triton.next_power_of_2(head)
    strips = max(1, PROGRAM_VALUES // block)
    steps = min(most, triton.next_power_of_2(triton.cdiv(length, strips)))
    grid = (triton.cdiv(length, strips * steps), cut.parts * triton.cdiv(width, head), batch)
    return grid, {
        "PARTS": cut.parts, "HEAD": head, "BLOCK": block, "STRIPS": strips, "STEPS": steps,
        "PLACES": triton.next_power_of_2(strips * steps + 6), "REACH": source.reach,
        "TAIL": source.tail_BRC is not None, "START": source.start_BT is not None, "SILU": cut.silu, "STAGES": STAGES,
    }  # fmt: skip


def _edge(source: Source) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_BTC, _, tail, start, *_ = source.pointers()
    return x_BTC, tail, start, start if source.count_B is None else source.count_B


def _edge_flags(source: Source) -> dict[str, Any]:
    return {
        "REACH": source.reach, "BLOCK": TAIL_BLOCK, "TAIL": source.tail_BRC is not None,
        "START": source.start_BT is not None, "COUNT": source.count_B is not None,
    }  # fmt: skip


@torch.library.custom_op("cmrn::convolve", mutates_args=())
def _convolve(
    x_BTC: Tensor, weight_JC: Tensor, tail_BRC: Tensor | None, start_BT: Tensor | None, count_B: Tensor | None,
    parts: int, units: int, head: int, silu: bool,
) -> list[Tensor]:  # fmt: skip
    return streams(Source(x_BTC, weight_JC, tail_BRC, start_BT, count_B), Cut(parts, units, head, silu))


@_convolve.register_fake
def _(
    x_BTC: Tensor, weight_JC: Tensor, tail_BRC: Tensor | None, start_BT: Tensor | None, count_B: Tensor | None,
    parts: int, units: int, head: int, silu: bool,
) -> list[Tensor]:  # fmt: skip
    batch, length, channels = x_BTC.shape
    outputs = [x_BTC.new_empty(batch, length, channels // parts) for _ in range(parts)]
    return [*outputs, x_BTC.new_empty(batch, weight_JC.shape[0] - 1, channels)]


@torch.library.custom_op("cmrn::convolve_backward", mutates_args=())
def _convolve_backward(
    grads: list[Tensor], grad_last: Tensor | None, x_BTC: Tensor, weight_JC: Tensor, tail_BRC: Tensor | None,
    start_BT: Tensor | None, count_B: Tensor | None, units: int, head: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    source, cut = Source(x_BTC, weight_JC, tail_BRC, start_BT, count_B), Cut(len(grads), units, head, silu)
    grad_x = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
    return grad_x, *gradients(grads, grad_last, source, cut, grad_x)


@_convolve_backward.register_fake
def _(
    grads: list[Tensor], grad_last: Tensor | None, x_BTC: Tensor, weight_JC: Tensor, tail_BRC: Tensor | None,
    start_BT: Tensor | None, count_B: Tensor | None, units: int, head: int, silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_x = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
    grad_tail = x_BTC.new_empty(x_BTC.shape[0], weight_JC.shape[0] - 1, x_BTC.shape[2])
    return grad_x, torch.empty_like(weight_JC), grad_tail


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, _, ctx.units, ctx.head, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    x_BTC, weight_JC, tail_BRC, start_BT, count_B = ctx.saved_tensors
    *parts, last = grads
    grad_x, grad_weight, grad_tail = _convolve_backward(
        parts, last, x_BTC, weight_JC, tail_BRC, start_BT, count_B, ctx.units, ctx.head, ctx.silu
    )
    return grad_x, grad_weight, None if tail_BRC is None else grad_tail, None, None, None, None, None, None


_convolve.register_autograd(_differentiate, setup_context=_remember)
