"""The kernels of the long-term part of the joint read, as `longterm` defines it, a tile of queries at a time.

Forward goes on from the softmax over working memory and the null slot; the backward pass computes the weights again
from the kept logarithm of the joint denominator, once by queries and once by entries. Logarithms are to base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.memory.triton_kernels import load_rows, store_rows

__all__ = ["far_entry_kernel", "far_query_kernel", "far_read_kernel"]

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(1 << 30)


@triton.jit
def _scalars(bounds, tuned, row, head, rows, heads, length, t):
    """(lower, limit, start, log2 total, sharpness, slope) of tokens t; beyond the last one nothing may be read."""
    plane, here = rows * length, row * length + t
    inside = t < length
    lower = tl.load(bounds + here, mask=inside, other=0)
    limit = tl.load(bounds + plane + here, mask=inside, other=-NEVER)
    start = tl.load(bounds + 2 * plane + here, mask=inside, other=0)
    total = tl.load(bounds + 3 * plane + here, mask=inside, other=1)
    at = (row * length + t) * heads + head
    sharp = tl.load(tuned + at, mask=inside, other=0.0)
    slope = tl.load(tuned + plane * heads + at, mask=inside, other=0.0)
    return lower, limit, start, tl.log2(tl.maximum(total, 1).to(tl.float32)), sharp, slope


@triton.jit
def far_read_kernel(
    q, k, v, q_b, q_t, q_h, k_b, k_h, k_n, v_b, v_h, v_n, salience, places, bounds, tuned, near, near_total, rows,
    heads, length, count, out, total_out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head's reading for one tile of tokens."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    t = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    lower, limit, start, ages, sharp, slope = _scalars(bounds, tuned, row, head, rows, heads, length, t)
    dense, step = (row * length * heads + head) * WIDTH, heads * WIDTH
    kept = tl.program_id(1).to(tl.int64) * length + t
    q_QC = load_rows(q + row * q_b + head * q_h, t, q_t, length, WIDTH, BLOCK)
    read = load_rows(near + dense, t, step, length, WIDTH, BLOCK).to(tl.float32)
    top = tl.load(near_total + kept, mask=t < length, other=0.0)
    total = tl.full((QUERIES,), 1.0, tl.float32)
    least, most = tl.min(tl.where(t < length, lower, NEVER)), tl.max(limit)
    k += row * k_b + head * k_h
    v += row * v_b + head * v_h
    for j in range(0, count, KEYS):
        n = j + tl.arange(0, KEYS)
        place = tl.load(places + row * count + n, mask=n < count, other=NEVER)
        if tl.max(((place >= least) & (place < most)).to(tl.int32)) > 0:
            b = tl.load(salience + row * count + n, mask=n < count, other=0.0)
            k_NC = load_rows(k, n, k_n, count, WIDTH, BLOCK)
            v_NC = load_rows(v, n, v_n, count, WIDTH, BLOCK)
            score = tl.dot(q_QC, tl.trans(k_NC), input_precision=PRECISION) * sharp[:, None] + b[None, :]
            age = tl.log2(tl.maximum(start[:, None] - place[None, :], 1).to(tl.float32))
            score = score * LOG2_E + slope[:, None] * (ages[:, None] - age)
            sees = (place[None, :] >= lower[:, None]) & (place[None, :] < limit[:, None])
            score = tl.where(sees, score, -float("inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            weight = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(top - higher)
            total = total * shrink + tl.sum(weight, 1)
            read = tl.dot(weight.to(v_NC.dtype), v_NC, read * shrink[:, None], input_precision=PRECISION)
            top = higher
    store_rows(out + dense, read / total[:, None], t, step, length, WIDTH, BLOCK)
    tl.store(total_out + kept, top + tl.log2(total), mask=t < length)


@triton.jit
def far_query_kernel(
    q, k, v, q_b, q_t, q_h, k_b, k_h, k_n, v_b, v_h, v_n, salience, places, bounds, tuned, grad, along_in, total_in,
    rows, heads, length, count, grad_q, grad_tuned, WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of queries, of their sharpness and of their slope."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    t = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    lower, limit, start, ages, sharp, slope = _scalars(bounds, tuned, row, head, rows, heads, length, t)
    dense, step = (row * length * heads + head) * WIDTH, heads * WIDTH
    kept = tl.program_id(1).to(tl.int64) * length + t
    q_QC = load_rows(q + row * q_b + head * q_h, t, q_t, length, WIDTH, BLOCK)
    grad_QC = load_rows(grad + dense, t, step, length, WIDTH, BLOCK)
    along = tl.load(along_in + kept, mask=t < length, other=0.0)
    total = tl.load(total_in + kept, mask=t < length, other=0.0)
    grad_q_QC = tl.zeros((QUERIES, BLOCK), tl.float32)
    grad_sharp, grad_slope = tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES,), tl.float32)
    least, most = tl.min(tl.where(t < length, lower, NEVER)), tl.max(limit)
    k += row * k_b + head * k_h
    v += row * v_b + head * v_h
    for j in range(0, count, KEYS):
        n = j + tl.arange(0, KEYS)
        place = tl.load(places + row * count + n, mask=n < count, other=NEVER)
        if tl.max(((place >= least) & (place < most)).to(tl.int32)) > 0:
            b = tl.load(salience + row * count + n, mask=n < count, other=0.0)
            k_NC = load_rows(k, n, k_n, count, WIDTH, BLOCK)
            v_NC = load_rows(v, n, v_n, count, WIDTH, BLOCK)
            dots = tl.dot(q_QC, tl.trans(k_NC), input_precision=PRECISION)
            recent = ages[:, None] - tl.log2(tl.maximum(start[:, None] - place[None, :], 1).to(tl.float32))
            score = (dots * sharp[:, None] + b[None, :]) * LOG2_E + slope[:, None] * recent
            sees = (place[None, :] >= lower[:, None]) & (place[None, :] < limit[:, None])
            weight = tl.where(sees, tl.exp2(score - total[:, None]), 0.0)
            change = weight * (tl.dot(grad_QC, tl.trans(v_NC), input_precision=PRECISION) - along[:, None])
            grad_sharp += tl.sum(change * dots, 1)
            grad_slope += tl.sum(change * recent, 1)
            change = (change * sharp[:, None]).to(k_NC.dtype)
            grad_q_QC = tl.dot(change, k_NC, grad_q_QC, input_precision=PRECISION)
    store_rows(grad_q + dense, grad_q_QC, t, step, length, WIDTH, BLOCK)
    at = (row * length + t) * heads + head
    tl.store(grad_tuned + at, grad_sharp, mask=t < length)
    tl.store(grad_tuned + rows * length * heads + at, grad_slope * LN_2, mask=t < length)


@triton.jit
def far_entry_kernel(
    q, k, v, q_b, q_t, q_h, k_b, k_h, k_n, v_b, v_h, v_n, salience, places, bounds, tuned, grad, along_in, total_in,
    rows, heads, length, count, grad_k, grad_v, grad_salience, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of entries and, for this head, of their salience; scores stand transposed."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    n = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    place = tl.load(places + row * count + n, mask=n < count, other=NEVER)
    b = tl.load(salience + row * count + n, mask=n < count, other=0.0)
    k_NC = load_rows(k + row * k_b + head * k_h, n, k_n, count, WIDTH, BLOCK)
    v_NC = load_rows(v + row * v_b + head * v_h, n, v_n, count, WIDTH, BLOCK)
    dense, step = (row * length * heads + head) * WIDTH, heads * WIDTH
    q += row * q_b + head * q_h
    kept = tl.program_id(1).to(tl.int64) * length
    grad_k_NC, grad_v_NC = tl.zeros((KEYS, BLOCK), tl.float32), tl.zeros((KEYS, BLOCK), tl.float32)
    grad_b = tl.zeros((KEYS,), tl.float32)
    nearest, farthest = tl.min(place), tl.max(tl.where(place < NEVER, place, -NEVER))
    for begin in range(0, length, QUERIES):
        t = begin + tl.arange(0, QUERIES)
        lower, limit, start, ages, sharp, slope = _scalars(bounds, tuned, row, head, rows, heads, length, t)
        if (tl.max(limit) > nearest) & (tl.min(tl.where(t < length, lower, NEVER)) <= farthest):
            q_QC = load_rows(q, t, q_t, length, WIDTH, BLOCK)
            grad_QC = load_rows(grad + dense, t, step, length, WIDTH, BLOCK)
            along = tl.load(along_in + kept + t, mask=t < length, other=0.0)
            total = tl.load(total_in + kept + t, mask=t < length, other=0.0)
            dots = tl.dot(k_NC, tl.trans(q_QC), input_precision=PRECISION)
            recent = ages[None, :] - tl.log2(tl.maximum(start[None, :] - place[:, None], 1).to(tl.float32))
            score = (dots * sharp[None, :] + b[:, None]) * LOG2_E + slope[None, :] * recent
            sees = (place[:, None] >= lower[None, :]) & (place[:, None] < limit[None, :])
            weight = tl.where(sees, tl.exp2(score - total[None, :]), 0.0)
            grad_v_NC = tl.dot(weight.to(grad_QC.dtype), grad_QC, grad_v_NC, input_precision=PRECISION)
            change = weight * (tl.dot(v_NC, tl.trans(grad_QC), input_precision=PRECISION) - along[None, :])
            grad_b += tl.sum(change, 1)
            change = (change * sharp[None, :]).to(q_QC.dtype)
            grad_k_NC = tl.dot(change, q_QC, grad_k_NC, input_precision=PRECISION)
    own = tl.program_id(1).to(tl.int64) * count * WIDTH
    store_rows(grad_k + own, grad_k_NC, n, WIDTH, count, WIDTH, BLOCK)
    store_rows(grad_v + own, grad_v_NC, n, WIDTH, count, WIDTH, BLOCK)
    tl.store(grad_salience + tl.program_id(1).to(tl.int64) * count + n, grad_b, mask=n < count)
