"""The causal convolution on CUDA, forward and backward, with the SiLU and the unit length of heads that may follow it.

A program reads a few strips of consecutive tokens side by side and marches along them, the last inputs in registers, so
that every value is loaded once and the sums over tokens need no second look. Taps and lags: lag l is the tap w_{J-1-l}.
The conditions that always hold are for Triton's sake: it loads ahead only if what a loop carries on is computed in it.
Gradients of the weights are summed strip by strip, then over the strips, always in one order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["convolve"]

PROGRAM_VALUES = 256
STEPS = 32
WARPS = 1
STAGES = 4


def convolve(
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    *,
    parts: int = 1,
    units: int = 0,
    head: int = 0,
    silu: bool = False,
) -> tuple[Tensor, ...]:
    """y_t = Σ_l w_{J-1-l} · x_{t-l} over the tokens of one document, J ≤ 4, cut into `parts` of equal width.

    With `silu`, SiLU follows. Of the first `units` parts, every head of `head` channels is then divided by its norm (0
    for one shorter than 1e-6). x_BTC, whose last dimension must be dense, is float32, bfloat16 or float16, and so is
    the result; tail_BRC holds the J-1 inputs before x, zeros where it is None; start_BT is True where documents begin.
    Computes in float32. x, weight and tail carry gradient, the weight's in its own type.
    """
    assert weight_JC.shape[0] <= 4, "the kernels hold three inputs"
    outputs: list[Tensor] = _convolve(x_BTC, weight_JC, tail_BRC, start_BT, parts, units, head, silu)
    return tuple(outputs)


@torch.library.custom_op("cmrn::convolve", mutates_args=())
def _convolve(
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    parts: int,
    units: int,
    head: int,
    silu: bool,
) -> list[Tensor]:
    batch, length, channels = x_BTC.shape
    outputs = [x_BTC.new_empty(batch, length, channels // parts) for _ in range(parts)]
    grid, sizes = _launch(x_BTC, weight_JC, parts, units, head)
    first, second, third = (outputs * 3)[:3]
    _forward_kernel[grid](
        *_inputs(x_BTC, weight_JC, tail_BRC, start_BT), first, second, third, *sizes, tail_BRC is not None,
        start_BT is not None, silu, STAGES, num_warps=WARPS,
    )  # fmt: skip
    return outputs


@_convolve.register_fake
def _(
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    parts: int,
    units: int,
    head: int,
    silu: bool,
) -> list[Tensor]:
    batch, length, channels = x_BTC.shape
    return [x_BTC.new_empty(batch, length, channels // parts) for _ in range(parts)]


@torch.library.custom_op("cmrn::convolve_backward", mutates_args=())
def _convolve_backward(
    grads: list[Tensor],
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    units: int,
    head: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = len(grads)
    grid, sizes = _launch(x_BTC, weight_JC, parts, units, head)
    grad_x = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
    grad_tail = x_BTC.new_empty(x_BTC.shape[0], weight_JC.shape[0] - 1, x_BTC.shape[2])
    partial = x_BTC.new_empty(grid[0] * grid[2], *weight_JC.shape, dtype=torch.float32)
    first, second, third = (grads * 3)[:3]
    _backward_kernel[grid](
        *_inputs(x_BTC, weight_JC, tail_BRC, start_BT), first, second, third, grad_x, grad_tail, partial, *sizes,
        tail_BRC is not None, start_BT is not None, silu, STAGES, num_warps=WARPS,
    )  # fmt: skip
    return grad_x, partial.sum(0).to(weight_JC.dtype), grad_tail


@_convolve_backward.register_fake
def _(
    grads: list[Tensor],
    x_BTC: Tensor,
    weight_JC: Tensor,
    tail_BRC: Tensor | None,
    start_BT: Tensor | None,
    units: int,
    head: int,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x_BTC, memory_format=torch.contiguous_format)
    grad_tail = x_BTC.new_empty(x_BTC.shape[0], weight_JC.shape[0] - 1, x_BTC.shape[2])
    return grad_x, torch.empty_like(weight_JC), grad_tail


def _remember(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x_BTC, weight_JC, tail_BRC, start_BT, _, ctx.units, ctx.head, ctx.silu = inputs
    ctx.save_for_backward(x_BTC, weight_JC, tail_BRC, start_BT)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    x_BTC, weight_JC, tail_BRC, start_BT = ctx.saved_tensors
    dense = [grad.contiguous() for grad in grads]
    grad_x, grad_weight, grad_tail = _convolve_backward(
        dense, x_BTC, weight_JC, tail_BRC, start_BT, ctx.units, ctx.head, ctx.silu
    )
    return grad_x, grad_weight, None if tail_BRC is None else grad_tail, None, None, None, None, None


_convolve.register_autograd(_differentiate, setup_context=_remember)


def _launch(
    x_BTC: Tensor, weight_JC: Tensor, parts: int, units: int, head: int
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The grid (strips, heads, rows), and the sizes that both kernels take."""
    batch, length, channels = x_BTC.shape
    if not units:
        head = min(128, triton.next_power_of_2(channels // parts))
    block = triton.next_power_of_2(head)
    steps = min(STEPS, triton.next_power_of_2(length))
    strips = max(1, min(PROGRAM_VALUES // block, triton.next_power_of_2(triton.cdiv(length, steps))))
    heads = triton.cdiv(channels // parts, head)
    grid = triton.cdiv(length, strips * steps), heads * parts, batch
    return grid, (length, channels // parts, heads, units, weight_JC.shape[0] - 1, parts, head, block, strips, steps)


def _inputs(x_BTC: Tensor, weight_JC: Tensor, tail_BRC: Tensor | None, start_BT: Tensor | None) -> tuple[Any, ...]:
    """Pointers and strides of what both kernels read; x stands in for what is absent."""
    assert x_BTC.stride(2) == 1, "the channels of x must be dense"
    tail = x_BTC if tail_BRC is None else tail_BRC.contiguous()
    start = x_BTC if start_BT is None else start_BT.contiguous()
    return x_BTC, weight_JC.contiguous(), tail, start, x_BTC.stride(0), x_BTC.stride(1)


@triton.jit
def _sigmoid(a):
    """1 / (1 + e^-a); a squared inverse root takes fewer instructions than a quotient."""
    root = tl.rsqrt(1.0 + tl.exp2(a * -1.4426950408889634))
    return root * root


@triton.jit
def _taps(weight, reach, channel, channels, inside):
    """The taps of lags 0 to 3 for some channels, zero beyond the convolution's reach."""
    newest = weight + reach * channels + channel
    w0 = tl.load(newest, mask=inside, other=0.0).to(tl.float32)[None, :]
    w1 = tl.load(newest - channels, mask=inside & (reach >= 1), other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(newest - 2 * channels, mask=inside & (reach >= 2), other=0.0).to(tl.float32)[None, :]
    w3 = tl.load(newest - 3 * channels, mask=inside & (reach >= 3), other=0.0).to(tl.float32)[None, :]
    return w0, w1, w2, w3


@triton.jit
def _earlier(x, tail, t, channel, mask, reach, stride, channels, TAIL: tl.constexpr):
    """x at the places t of a row as float32; before the row's first token, what the tail holds there, or zeros."""
    value = tl.load(x + t[:, None] * stride + channel[None, :], mask=mask & (t >= 0)[:, None], other=0.0)
    value = value.to(tl.float32)
    if TAIL:
        carried = (t < 0) & (t >= -reach)
        place = tail + (reach + t)[:, None] * channels + channel[None, :]
        value += tl.load(place, mask=mask & carried[:, None], other=0.0).to(tl.float32)
    return value


@triton.jit
def _joined(start, t, length, START: tl.constexpr):
    """Whether the token at t belongs to the document of the token before it."""
    joined = t < length
    if START:
        joined = tl.load(start + t, mask=(t >= 0) & (t < length), other=0) == 0
    return joined


@triton.jit
def _history(
    x, tail, start, t, channel, inside, reach, stride, channels, length, TAIL: tl.constexpr, START: tl.constexpr
):
    """The three inputs before t, newest first, and whether t-1 is joined to t-2, and both to t-3."""
    mask = inside[None, :] & (t < length)[:, None]
    x1 = _earlier(x, tail, t - 1, channel, mask, reach, stride, channels, TAIL)
    x2 = _earlier(x, tail, t - 2, channel, mask, reach, stride, channels, TAIL)
    x3 = _earlier(x, tail, t - 3, channel, mask, reach, stride, channels, TAIL)
    joined1 = _joined(start, t - 1, length, START)
    joined2 = joined1 & _joined(start, t - 2, length, START)
    if START:
        x2 = tl.where(joined1[:, None], x2, 0.0)
        x3 = tl.where(joined2[:, None], x3, 0.0)
    return x1, x2, x3, joined1, joined2


@triton.jit
def _forward_kernel(
    x, weight, tail, start, stride_b, stride_t, first, second, third, length, part_channels, heads, units, reach,
    PARTS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr,
    TAIL: tl.constexpr, START: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One head of one row, STRIPS strips of STEPS tokens."""
    part, row = tl.program_id(1) // heads, tl.program_id(2).to(tl.int64)
    inner = (tl.program_id(1) % heads) * HEAD + tl.arange(0, BLOCK)
    inside = (tl.arange(0, BLOCK) < HEAD) & (inner < part_channels)
    channel, channels = part * part_channels + inner, PARTS * part_channels
    begin, strip = tl.program_id(0).to(tl.int64) * STRIPS * STEPS, tl.arange(0, STRIPS) * STEPS
    x += row * stride_b
    start += row * length
    w0, w1, w2, w3 = _taps(weight, reach, channel, channels, inside)
    x1, x2, x3, _, _ = _history(
        x, tail + row * reach * channels, start, begin + strip, channel, inside, reach, stride_t, channels, length,
        TAIL, START,
    )  # fmt: skip
    out = first
    if part == 1:
        out = second
    if part == 2:
        out = third
    out += (row * length + begin) * part_channels
    x += begin * stride_t
    start += begin
    left = (length - begin).to(tl.int32)
    read, write = strip[:, None] * stride_t + channel[None, :], strip[:, None] * part_channels + inner[None, :]
    for i in tl.range(STEPS, num_stages=STAGES):
        mask = inside[None, :] & (strip + i < left)[:, None]
        x0 = tl.load(x + i * stride_t + read, mask=mask, other=0.0).to(tl.float32)
        if START:
            joined = _joined(start, strip + i, left, START)[:, None]
            x1 = tl.where(joined, x1, 0.0)
            x2 = tl.where(joined, x2, 0.0)
            x3 = tl.where(joined, x3, 0.0)
        y = w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        if SILU:
            y = y * _sigmoid(y)
        if part < units:
            square = tl.sum(y * y, 1)
            y = y * tl.where(square > 1e-12, tl.rsqrt(tl.maximum(square, 1e-12)), 0.0)[:, None]
        tl.store(out + i * part_channels + write, y.to(out.dtype.element_ty), mask=mask)
        x3 = tl.where(i < STEPS + 3, x2, 0.0)
        x2 = tl.where(i < STEPS + 3, x1, 0.0)
        x1 = x0


@triton.jit
def _backward_kernel(
    x, weight, tail, start, stride_b, stride_t, first, second, third, grad_x, grad_tail, partial, length,
    part_channels, heads, units, reach, PARTS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
    STRIPS: tl.constexpr, STEPS: tl.constexpr, TAIL: tl.constexpr, START: tl.constexpr, SILU: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The same strips and three tokens more, whose outputs the strip's last inputs reached.

    p_l is the gradient gathered so far by the input l tokens back; it is whole after lag 3.
    """
    part, row = tl.program_id(1) // heads, tl.program_id(2).to(tl.int64)
    inner = (tl.program_id(1) % heads) * HEAD + tl.arange(0, BLOCK)
    inside = (tl.arange(0, BLOCK) < HEAD) & (inner < part_channels)
    channel, channels = part * part_channels + inner, PARTS * part_channels
    begin, strip = tl.program_id(0).to(tl.int64) * STRIPS * STEPS, tl.arange(0, STRIPS) * STEPS
    x += row * stride_b
    start += row * length
    w0, w1, w2, w3 = _taps(weight, reach, channel, channels, inside)
    x1, x2, x3, joined1, joined2 = _history(
        x, tail + row * reach * channels, start, begin + strip, channel, inside, reach, stride_t, channels, length,
        TAIL, START,
    )  # fmt: skip
    upstream = first
    if part == 1:
        upstream = second
    if part == 2:
        upstream = third
    upstream += (row * length + begin) * part_channels
    grad_x += (row * length + begin - 3) * channels
    grad_tail += (row + 1) * reach * channels - 3 * channels
    x += begin * stride_t
    start += begin
    left = (length - begin).to(tl.int32)
    read, take = strip[:, None] * stride_t + channel[None, :], strip[:, None] * part_channels + inner[None, :]
    write = strip[:, None] * channels + channel[None, :]
    p1 = tl.zeros((STRIPS, BLOCK), tl.float32)
    p2, p3, sum0, sum1, sum2, sum3 = p1, p1, p1, p1, p1, p1
    for i in tl.range(STEPS + 3, num_stages=STAGES):
        t = strip + i
        mask = inside[None, :] & (t < left)[:, None]
        x0 = tl.load(x + i * stride_t + read, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(upstream + i * part_channels + take, mask=mask, other=0.0).to(tl.float32)
        if START:
            joined = _joined(start, t, left, START)
            x1 = tl.where(joined[:, None], x1, 0.0)
            x2 = tl.where(joined[:, None], x2, 0.0)
            x3 = tl.where(joined[:, None], x3, 0.0)
        grad = _before_norm(grad, w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, part < units, SILU)
        if START:
            joined2 &= joined
            joined1 &= joined
            whole = p3 + tl.where(joined2[:, None], w3 * grad, 0.0)
            p3 = p2 + tl.where(joined1[:, None], w2 * grad, 0.0)
            p2 = p1 + tl.where(joined[:, None], w1 * grad, 0.0)
            joined2 = joined1
            joined1 = joined
        else:
            whole = p3 + w3 * grad
            p3 = p2 + w2 * grad
            p2 = p1 + w1 * grad
        p1 = w0 * grad
        ready = inside[None, :] & ((t < left + 3) & (i >= 3))[:, None]
        tl.store(grad_x + i * channels + write, whole.to(grad_x.dtype.element_ty), mask=ready)
        if (i < 3) & (begin == 0):
            reached = inside[None, :] & (strip == 0)[:, None] & (i >= 3 - reach)
            tl.store(grad_tail + i * channels + write, whole.to(grad_tail.dtype.element_ty), mask=reached)
        grad = tl.where(i < STEPS, grad, 0.0)
        sum0 += grad * x0
        sum1 += grad * x1
        sum2 += grad * x2
        sum3 += grad * x3
        x3 = tl.where(i < STEPS + 3, x2, 0.0)
        x2 = tl.where(i < STEPS + 3, x1, 0.0)
        x1 = x0
    newest = partial + ((row * tl.num_programs(0) + tl.program_id(0)) * (reach + 1) + reach) * channels + channel
    tl.store(newest, tl.sum(sum0, 0), mask=inside)
    tl.store(newest - channels, tl.sum(sum1, 0), mask=inside & (reach >= 1))
    tl.store(newest - 2 * channels, tl.sum(sum2, 0), mask=inside & (reach >= 2))
    tl.store(newest - 3 * channels, tl.sum(sum3, 0), mask=inside & (reach >= 3))


@triton.jit
def _before_norm(grad, a, unit, SILU: tl.constexpr):
    """The gradient of a, given that of the head it becomes through SiLU and, where `unit`, division by its norm."""
    y = a
    if SILU:
        gate = _sigmoid(a)
        y = a * gate
    if unit:
        square = tl.sum(y * y, 1)
        inverse = tl.where(square > 1e-12, tl.rsqrt(tl.maximum(square, 1e-12)), 0.0)[:, None]
        along = tl.sum(grad * y, 1)[:, None] * inverse * inverse
        grad = (grad - y * along) * inverse
    if SILU:
        grad = grad * (gate + y * (1.0 - gate))
    return grad
