"""The kernels of the causal convolution. Lag l is the tap w_{J-1-l}; all of them compute in float32.

A program walks along a few strips of consecutive tokens side by side, the last inputs in registers, so that every value
is loaded once and the sums over tokens need no second look. Where no document begins, which is nearly everywhere, the
walk leaves out what keeps documents apart. Conditions that always hold are for Triton's sake: it loads ahead only if
what a loop carries on is computed in it.
Gradients of the weights are summed walk by walk, then over the walks, always in one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["backward_kernel", "forward_kernel", "sigmoid", "tail_gradient_kernel", "tail_kernel"]


@triton.jit
def sigmoid(a):
    """1 / (1 + e^-a); a squared inverse root takes fewer instructions than a quotient."""
    root = tl.rsqrt(1.0 + tl.exp2(a * -1.4426950408889634))
    return root * root


@triton.jit
def _inverse_norm(y):
    """1 / ‖y‖ of each row, 0 for one shorter than 1e-6."""
    square = tl.sum(y * y, 1)
    return tl.where(square > 1e-12, tl.rsqrt(tl.maximum(square, 1e-12)), 0.0)[:, None]


@triton.jit
def _tap(weight, lag: tl.constexpr, channel, channels, inside, REACH: tl.constexpr):
    """The tap of a lag for some channels, zero beyond the convolution's reach."""
    place = weight + (REACH - lag) * channels + channel
    return tl.load(place, mask=inside & (lag <= REACH), other=0.0).to(tl.float32)[None, :]


@triton.jit
def _taps(weight, channel, channels, inside, REACH: tl.constexpr):
    """The taps of lags 0 to 3."""
    w0 = _tap(weight, 0, channel, channels, inside, REACH)
    w1 = _tap(weight, 1, channel, channels, inside, REACH)
    w2 = _tap(weight, 2, channel, channels, inside, REACH)
    w3 = _tap(weight, 3, channel, channels, inside, REACH)
    return w0, w1, w2, w3


@triton.jit
def _earlier(x, tail, t, channel, mask, stride, channels, REACH: tl.constexpr, TAIL: tl.constexpr):
    """x at the places t of a row as float32; before the row's first token, what the tail holds there, or zeros."""
    value = tl.load(x + t[:, None] * stride + channel[None, :], mask=mask & (t >= 0)[:, None], other=0.0)
    value = value.to(tl.float32)
    if TAIL:
        carried = (t < 0) & (t >= -REACH)
        place = tail + (REACH + t)[:, None] * channels + channel[None, :]
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
    x, tail, start, t, channel, inside, stride, channels, length, REACH: tl.constexpr, TAIL: tl.constexpr,
    START: tl.constexpr,
):  # fmt: skip
    """The three inputs before t, newest first, and whether t-1 is joined to t-2, and both to t-3."""
    mask = inside[None, :] & (t < length)[:, None]
    x1 = _earlier(x, tail, t - 1, channel, mask, stride, channels, REACH, TAIL)
    x2 = _earlier(x, tail, t - 2, channel, mask, stride, channels, REACH, TAIL)
    x3 = _earlier(x, tail, t - 3, channel, mask, stride, channels, REACH, TAIL)
    joined1 = _joined(start, t - 1, length, START)
    joined2 = joined1 & _joined(start, t - 2, length, START)
    if START:
        x2 = tl.where(joined1[:, None], x2, 0.0)
        x3 = tl.where(joined2[:, None], x3, 0.0)
    return x1, x2, x3, joined1, joined2


@triton.jit
def _choose(first, second, third, part):
    chosen = first
    if part == 1:
        chosen = second
    if part == 2:
        chosen = third
    return chosen


@triton.jit
def _begins_within(start, begin, length, PLACES: tl.constexpr):
    """Whether a document begins at one of the places from three before `begin`."""
    place = begin - 3 + tl.arange(0, PLACES)
    return tl.max(tl.load(start + place, mask=(place >= 0) & (place < length), other=0).to(tl.int32), 0) > 0


@triton.jit
def forward_kernel(
    x, weight, tail, start, stride_b, stride_t, first, second, third, length, part_channels, heads, units,
    PARTS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr,
    PLACES: tl.constexpr, REACH: tl.constexpr, TAIL: tl.constexpr, START: tl.constexpr, SILU: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One head of one row, STRIPS strips of STEPS tokens."""
    part, row = tl.program_id(1) // heads, tl.program_id(2).to(tl.int64)
    inner = (tl.program_id(1) % heads) * HEAD + tl.arange(0, BLOCK)
    inside = (tl.arange(0, BLOCK) < HEAD) & (inner < part_channels)
    channel, channels = part * part_channels + inner, PARTS * part_channels
    begin = tl.program_id(0).to(tl.int64) * STRIPS * STEPS
    x += row * stride_b
    start += row * length
    tail += row * REACH * channels
    out = _choose(first, second, third, part) + (row * length + begin) * part_channels
    apart = False
    if START:
        apart = _begins_within(start, begin, length, PLACES)
    if apart:
        _walk(
            x, weight, tail, start, stride_t, out, length, part_channels, channel, channels, inner, inside, begin,
            part < units, BLOCK, STRIPS, STEPS, REACH, TAIL, True, SILU, STAGES,
        )  # fmt: skip
    else:
        _walk(
            x, weight, tail, start, stride_t, out, length, part_channels, channel, channels, inner, inside, begin,
            part < units, BLOCK, STRIPS, STEPS, REACH, TAIL, False, SILU, STAGES,
        )  # fmt: skip


@triton.jit
def _walk(
    x, weight, tail, start, stride_t, out, length, part_channels, channel, channels, inner, inside, begin, unit,
    BLOCK: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr, REACH: tl.constexpr, TAIL: tl.constexpr,
    START: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    strip = tl.arange(0, STRIPS) * STEPS
    w0, w1, w2, w3 = _taps(weight, channel, channels, inside, REACH)
    x1, x2, x3, _, _ = _history(
        x, tail, start, begin + strip, channel, inside, stride_t, channels, length, REACH, TAIL, START
    )
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
            y = y * sigmoid(y)
        if unit:
            y = y * _inverse_norm(y)
        tl.store(out + i * part_channels + write, y.to(out.dtype.element_ty), mask=mask)
        x3 = tl.where(i < STEPS + 3, x2, 0.0)
        x2 = tl.where(i < STEPS + 3, x1, 0.0)
        x1 = x0


@triton.jit
def backward_kernel(
    x, weight, tail, start, stride_b, stride_t, first, second, third, grad_x, grad_tail, partial, grad_b, grad_t,
    length, part_channels, heads, units, PARTS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
    STRIPS: tl.constexpr, STEPS: tl.constexpr, PLACES: tl.constexpr, REACH: tl.constexpr, TAIL: tl.constexpr,
    START: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One head of one row, STRIPS strips of STEPS tokens: the walk that these need."""
    part, row = tl.program_id(1) // heads, tl.program_id(2).to(tl.int64)
    inner = (tl.program_id(1) % heads) * HEAD + tl.arange(0, BLOCK)
    inside = (tl.arange(0, BLOCK) < HEAD) & (inner < part_channels)
    channel, channels = part * part_channels + inner, PARTS * part_channels
    begin = tl.program_id(0).to(tl.int64) * STRIPS * STEPS
    x += row * stride_b
    start += row * length
    tail += row * REACH * channels
    grad_x += row * grad_b
    grad_tail += row * REACH * channels
    upstream = _choose(first, second, third, part) + (row * length + begin) * part_channels
    partial += (row * tl.num_programs(0) + tl.program_id(0)) * (REACH + 1) * channels
    apart = False
    if START:
        apart = _begins_within(start, begin, length, PLACES)
    if apart:
        _walk_back(
            x, weight, tail, start, stride_t, upstream, grad_x, grad_tail, partial, grad_t, length, part_channels,
            channel, channels, inner, inside, begin, part < units,
            BLOCK, STRIPS, STEPS, REACH, TAIL, True, SILU, STAGES,
        )  # fmt: skip
    else:
        _walk_back(
            x, weight, tail, start, stride_t, upstream, grad_x, grad_tail, partial, grad_t, length, part_channels,
            channel, channels, inner, inside, begin, part < units,
            BLOCK, STRIPS, STEPS, REACH, TAIL, False, SILU, STAGES,
        )  # fmt: skip


@triton.jit
def _walk_back(
    x, weight, tail, start, stride_t, upstream, grad_x, grad_tail, partial, grad_t, length, part_channels,
    channel, channels, inner, inside, begin, unit, BLOCK: tl.constexpr, STRIPS: tl.constexpr, STEPS: tl.constexpr,
    REACH: tl.constexpr, TAIL: tl.constexpr, START: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Along the strips and three tokens more, whose outputs the strip's last inputs reached.

    p_l is the gradient gathered so far by the input l tokens back; it is whole after lag 3.
    """
    strip = tl.arange(0, STRIPS) * STEPS
    w0, w1, w2, w3 = _taps(weight, channel, channels, inside, REACH)
    x1, x2, x3, joined1, joined2 = _history(
        x, tail, start, begin + strip, channel, inside, stride_t, channels, length, REACH, TAIL, START
    )
    x += begin * stride_t
    start += begin
    grad_x += (begin - 3) * grad_t
    grad_tail += (REACH - 3) * channels
    left = (length - begin).to(tl.int32)
    read, take = strip[:, None] * stride_t + channel[None, :], strip[:, None] * part_channels + inner[None, :]
    write, keep = strip[:, None] * grad_t + channel[None, :], strip[:, None] * channels + channel[None, :]
    p1 = tl.zeros((STRIPS, BLOCK), tl.float32)
    p2, p3, sum0, sum1, sum2, sum3 = p1, p1, p1, p1, p1, p1
    for i in tl.range(STEPS + 3, num_stages=STAGES):
        at = strip + i
        mask = inside[None, :] & (at < left)[:, None]
        x0 = tl.load(x + i * stride_t + read, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(upstream + i * part_channels + take, mask=mask, other=0.0).to(tl.float32)
        if START:
            joined = _joined(start, at, left, START)
            x1 = tl.where(joined[:, None], x1, 0.0)
            x2 = tl.where(joined[:, None], x2, 0.0)
            x3 = tl.where(joined[:, None], x3, 0.0)
        grad = _before_norm(grad, w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, unit, SILU)
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
        ready = inside[None, :] & ((at < left + 3) & (i >= 3))[:, None]
        tl.store(grad_x + i * grad_t + write, whole.to(grad_x.dtype.element_ty), mask=ready)
        if (i < 3) & (begin == 0):
            reached = inside[None, :] & (strip == 0)[:, None] & (i >= 3 - REACH)
            tl.store(grad_tail + i * channels + keep, whole.to(grad_tail.dtype.element_ty), mask=reached)
        grad = tl.where(i < STEPS, grad, 0.0)
        sum0 += grad * x0
        sum1 += grad * x1
        sum2 += grad * x2
        sum3 += grad * x3
        x3 = tl.where(i < STEPS + 3, x2, 0.0)
        x2 = tl.where(i < STEPS + 3, x1, 0.0)
        x1 = x0
    newest = partial + REACH * channels + channel
    tl.store(newest, tl.sum(sum0, 0), mask=inside)
    tl.store(newest - channels, tl.sum(sum1, 0), mask=inside)
    if REACH >= 2:
        tl.store(newest - 2 * channels, tl.sum(sum2, 0), mask=inside)
    if REACH >= 3:
        tl.store(newest - 3 * channels, tl.sum(sum3, 0), mask=inside)


@triton.jit
def _before_norm(grad, a, unit, SILU: tl.constexpr):
    """The gradient of a, given that of the head it becomes through SiLU and, where `unit`, division by its norm."""
    y = a
    if SILU:
        gate = sigmoid(a)
        y = a * gate
    if unit:
        inverse = _inverse_norm(y)
        along = tl.sum(grad * y, 1)[:, None] * inverse * inverse
        grad = (grad - y * along) * inverse
    if SILU:
        grad = grad * (gate + y * (1.0 - gate))
    return grad


@triton.jit
def _last_place(start, end, j: tl.constexpr, REACH: tl.constexpr, START: tl.constexpr):
    """(token that the next tail holds at j, negative before the row; whether it is of the row's last document)."""
    kept = end >= 0
    if START:
        for later in tl.static_range(j + 1, REACH):
            token = end + later - REACH
            kept &= tl.load(start + token, mask=token >= 0, other=0) == 0
    return end + j - REACH, kept


@triton.jit
def tail_kernel(
    x, tail, start, count, last, stride_b, stride_t, length, channels, REACH: tl.constexpr, BLOCK: tl.constexpr,
    TAIL: tl.constexpr, START: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """What a row carries on: its last REACH inputs, zeros for those of an earlier document."""
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = length
    if COUNT:
        end = tl.load(count + row).to(tl.int32)
    for j in tl.static_range(REACH):
        token, kept = _last_place(start + row * length, end, j, REACH, START)
        inside = (channel < channels) & kept
        place = x + row * stride_b + token.to(tl.int64) * stride_t + channel
        value = tl.load(place, mask=inside & (token >= 0), other=0.0)
        if TAIL:
            place = tail + (row * REACH + REACH + token) * channels + channel
            value = tl.where(token < 0, tl.load(place, mask=inside & (token < 0), other=0.0), value)
        tl.store(last + (row * REACH + j) * channels + channel, value, mask=channel < channels)


@triton.jit
def tail_gradient_kernel(
    grad_last, start, count, grad_x, grad_tail, grad_b, grad_t, length, channels, REACH: tl.constexpr,
    BLOCK: tl.constexpr, TAIL: tl.constexpr, START: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Add what the carried inputs get back to the gradients of x and of the tail before it."""
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    end = length
    if COUNT:
        end = tl.load(count + row).to(tl.int32)
    for j in tl.static_range(REACH):
        token, kept = _last_place(start + row * length, end, j, REACH, START)
        inside = (channel < channels) & kept
        more = tl.load(grad_last + (row * REACH + j) * channels + channel, mask=inside, other=0.0).to(tl.float32)
        place = grad_x + row * grad_b + token.to(tl.int64) * grad_t + channel
        if token < 0:
            place = grad_tail + (row * REACH + REACH + token) * channels + channel
        total = tl.load(place, mask=inside, other=0.0).to(tl.float32) + more
        tl.store(place, total.to(grad_x.dtype.element_ty), mask=inside)
