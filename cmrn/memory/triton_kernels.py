"""The kernels of the read of working memory: softmax over a window and a null slot, a tile of queries at a time.

With s_tj = q_t·k_j and the null slot's n_t = q_t·k_0, token t of a document reads
    o_t = Σ_j p_tj v_j,    p_tj = e^{s_tj} / (e^{n_t} + Σ_i e^{s_ti})    over the W entries j before it,
by the running softmax of Dao et al. 2022, "FlashAttention", algorithm 1, which here starts from the null slot. The
backward pass computes p again from the kept logarithm of the denominator: once by queries, once by entries, so that no
sum is shared between programs. Only tiles at the window's edges are masked. Logarithms are to base 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["entry_kernel", "load_rows", "query_kernel", "read_kernel", "store_rows"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(stream, index, stride, limit, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows `index` of a stream, zeros from `limit` on and beyond WIDTH."""
    column = tl.arange(0, BLOCK)
    mask = (index < limit)[:, None] & (column < WIDTH)[None, :]
    return tl.load(stream + index[:, None] * stride + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(out, value, index, stride, limit, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store rows `index` below `limit`, in the type of `out`."""
    column = tl.arange(0, BLOCK)
    mask = (index < limit)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + index[:, None] * stride + column[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _lowest(first, t, length, window, STARTED: tl.constexpr):
    """The first place each token may read, negative among the carried entries; `length` beyond the last token."""
    low = t - window
    if STARTED:
        began = tl.load(first + t, mask=t < length, other=0)
        low = tl.where(began < 0, low, tl.maximum(low, began))
    return tl.where(t < length, low, length)


@triton.jit
def _sees(t, low, j, valid, window, EARLIER: tl.constexpr):
    """(queries t, entries j): which entries a token may read; EARLIER entries are the carried ones, from 0."""
    if EARLIER:
        kept = tl.load(valid + j, mask=j < window, other=0) != 0
        sees = (j[None, :] - window >= low[:, None]) & kept[None, :]
    else:
        sees = (j[None, :] < t[:, None]) & (j[None, :] >= low[:, None])
    return sees


@triton.jit
def _reach(low, t, first_t, length, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """(begin, whole, near, end): entries from begin to end are read, those from whole to near by every token."""
    begin = tl.maximum(tl.min(low), 0) // KEYS * KEYS
    near = first_t // KEYS * KEYS
    whole = tl.cdiv(tl.maximum(tl.max(tl.where(t < length, low, 0)), 0), KEYS) * KEYS
    return begin, tl.minimum(whole, near), near, tl.minimum(first_t + QUERIES, length) - 1


@triton.jit
def _read_tile(
    q, keys, values, stride_k, stride_v, t, low, j, limit, valid, window, top, total, read,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLIER: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of entries taken into the running softmax."""
    k = load_rows(keys, j, stride_k, limit, WIDTH, BLOCK)
    v = load_rows(values, j, stride_v, limit, WIDTH, BLOCK)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        score = tl.where(_sees(t, low, j, valid, window, EARLIER), score, -float("inf"))
    higher = tl.maximum(top, tl.max(score, 1) * LOG2_E)
    weight = tl.exp2(score * LOG2_E - higher[:, None])
    shrink = tl.exp2(top - higher)
    total = total * shrink + tl.sum(weight, 1)
    read = tl.dot(weight.to(v.dtype), v, read * shrink[:, None], input_precision=PRECISION)
    return higher, total, read


@triton.jit
def read_kernel(
    q, k, v, carried_k, carried_v, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, ck_b, ck_h, ck_w, cv_b, cv_h, cv_w,
    null, first, valid, length, window, heads, out, total_out, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CARRIED: tl.constexpr, STARTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head's reading for one tile of tokens."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    first_t, place, column = tl.program_id(0) * QUERIES, tl.arange(0, KEYS), tl.arange(0, BLOCK)
    t = first_t + tl.arange(0, QUERIES)
    k += row * k_b + head * k_h
    v += row * v_b + head * v_h
    valid += row * window
    low = _lowest(first + row * length, t, length, window, STARTED)
    q_QC = load_rows(q + row * q_b + head * q_h, t, q_t, length, WIDTH, BLOCK)
    null_C = tl.load(null + head * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    top = tl.sum(q_QC.to(tl.float32) * null_C[None, :], 1) * LOG2_E
    total = tl.full((QUERIES,), 1.0, tl.float32)
    read = tl.zeros((QUERIES, BLOCK), tl.float32)
    if CARRIED:
        carried_k += row * ck_b + head * ck_h
        carried_v += row * cv_b + head * cv_h
        for j in range(first_t // KEYS * KEYS, window, KEYS):
            top, total, read = _read_tile(
                q_QC, carried_k, carried_v, ck_w, cv_w, t, low, j + place, window, valid, window, top, total, read,
                WIDTH, BLOCK, True, True, PRECISION,
            )  # fmt: skip
    begin, whole, near, end = _reach(low, t, first_t, length, QUERIES, KEYS)
    for j in range(begin, whole, KEYS):
        top, total, read = _read_tile(
            q_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, top, total, read, WIDTH, BLOCK, False, True,
            PRECISION,
        )  # fmt: skip
    for j in range(tl.maximum(begin, whole), near, KEYS):
        top, total, read = _read_tile(
            q_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, top, total, read, WIDTH, BLOCK, False,
            False, PRECISION,
        )  # fmt: skip
    for j in range(near, end, KEYS):
        top, total, read = _read_tile(
            q_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, top, total, read, WIDTH, BLOCK, False, True,
            PRECISION,
        )  # fmt: skip
    out += (row * length * heads + head) * WIDTH
    store_rows(out, read / total[:, None], t, heads * WIDTH, length, WIDTH, BLOCK)
    tl.store(total_out + tl.program_id(1).to(tl.int64) * length + t, top + tl.log2(total), mask=t < length)


@triton.jit
def _query_tile(
    q, grad, keys, values, stride_k, stride_v, t, low, j, limit, valid, window, total, along, grad_q,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLIER: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of one tile of entries in the gradient of q: Σ_j p_tj (do_t·v_j − do_t·o_t) k_j."""
    k = load_rows(keys, j, stride_k, limit, WIDTH, BLOCK)
    v = load_rows(values, j, stride_v, limit, WIDTH, BLOCK)
    weight = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2_E - total[:, None])
    if MASKED:
        weight = tl.where(_sees(t, low, j, valid, window, EARLIER), weight, 0.0)
    change = weight * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - along[:, None])
    return tl.dot(change.to(k.dtype), k, grad_q, input_precision=PRECISION)


@triton.jit
def query_kernel(
    q, k, v, carried_k, carried_v, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, ck_b, ck_h, ck_w, cv_b, cv_h, cv_w,
    null, first, valid, length, window, heads, grad, out, total_in, along_out, grad_q, partial, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CARRIED: tl.constexpr, STARTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries and its share in the null key's; keeps do·o for the entries' kernel."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    first_t, place, column = tl.program_id(0) * QUERIES, tl.arange(0, KEYS), tl.arange(0, BLOCK)
    t = first_t + tl.arange(0, QUERIES)
    k += row * k_b + head * k_h
    v += row * v_b + head * v_h
    valid += row * window
    low = _lowest(first + row * length, t, length, window, STARTED)
    dense, step = (row * length * heads + head) * WIDTH, heads * WIDTH
    scalars = tl.program_id(1).to(tl.int64) * length + t
    q_QC = load_rows(q + row * q_b + head * q_h, t, q_t, length, WIDTH, BLOCK)
    grad_QC = load_rows(grad + dense, t, step, length, WIDTH, BLOCK)
    along = tl.sum(grad_QC.to(tl.float32) * load_rows(out + dense, t, step, length, WIDTH, BLOCK).to(tl.float32), 1)
    tl.store(along_out + scalars, along, mask=t < length)
    total = tl.load(total_in + scalars, mask=t < length, other=0.0)
    null_C = tl.load(null + head * WIDTH + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    wide = q_QC.to(tl.float32)
    change = -tl.exp2(tl.sum(wide * null_C[None, :], 1) * LOG2_E - total) * along
    slot = ((row * tl.num_programs(0) + tl.program_id(0)) * heads + head) * WIDTH
    tl.store(partial + slot + column, tl.sum(change[:, None] * wide, 0), mask=column < WIDTH)
    grad_q_QC = change[:, None] * null_C[None, :]
    if CARRIED:
        carried_k += row * ck_b + head * ck_h
        carried_v += row * cv_b + head * cv_h
        for j in range(first_t // KEYS * KEYS, window, KEYS):
            grad_q_QC = _query_tile(
                q_QC, grad_QC, carried_k, carried_v, ck_w, cv_w, t, low, j + place, window, valid, window, total, along,
                grad_q_QC, WIDTH, BLOCK, True, True, PRECISION,
            )  # fmt: skip
    begin, whole, near, end = _reach(low, t, first_t, length, QUERIES, KEYS)
    for j in range(begin, whole, KEYS):
        grad_q_QC = _query_tile(
            q_QC, grad_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, total, along, grad_q_QC, WIDTH,
            BLOCK, False, True, PRECISION,
        )  # fmt: skip
    for j in range(tl.maximum(begin, whole), near, KEYS):
        grad_q_QC = _query_tile(
            q_QC, grad_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, total, along, grad_q_QC, WIDTH,
            BLOCK, False, False, PRECISION,
        )  # fmt: skip
    for j in range(near, end, KEYS):
        grad_q_QC = _query_tile(
            q_QC, grad_QC, k, v, k_t, v_t, t, low, j + place, length, valid, window, total, along, grad_q_QC, WIDTH,
            BLOCK, False, True, PRECISION,
        )  # fmt: skip
    store_rows(grad_q + dense, grad_q_QC, t, step, length, WIDTH, BLOCK)


@triton.jit
def _entry_tile(
    q, grad, k, v, stride_q, stride_g, t, j, first, valid, length, window, total_in, along_in, grad_k, grad_v,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EARLIER: tl.constexpr, STARTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The share of one tile of tokens in the gradients of entries; scores stand transposed, entries by tokens."""
    q_QC = load_rows(q, t, stride_q, length, WIDTH, BLOCK)
    grad_QC = load_rows(grad, t, stride_g, length, WIDTH, BLOCK)
    total = tl.load(total_in + t, mask=t < length, other=0.0)
    along = tl.load(along_in + t, mask=t < length, other=0.0)
    low = _lowest(first, t, length, window, STARTED)
    weight = tl.exp2(tl.dot(k, tl.trans(q_QC), input_precision=PRECISION) * LOG2_E - total[None, :])
    if EARLIER:
        kept = tl.load(valid + j, mask=j < window, other=0) != 0
        sees = (j[:, None] - window >= low[None, :]) & kept[:, None]
    else:
        sees = (j[:, None] < t[None, :]) & (j[:, None] >= low[None, :])
    weight = tl.where(sees, weight, 0.0)
    grad_v = tl.dot(weight.to(grad_QC.dtype), grad_QC, grad_v, input_precision=PRECISION)
    change = weight * (tl.dot(v, tl.trans(grad_QC), input_precision=PRECISION) - along[None, :])
    grad_k = tl.dot(change.to(q_QC.dtype), q_QC, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit
def entry_kernel(
    q, k, v, carried_k, carried_v, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, ck_b, ck_h, ck_w, cv_b, cv_h, cv_w,
    null, first, valid, length, window, heads, grad, total_in, along_in, grad_k, grad_v, grad_ck, grad_cv,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, CARRIED: tl.constexpr,
    STARTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of entries, the tokens' own first, then the carried ones."""
    row, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    dense, step = (row * length * heads + head) * WIDTH, heads * WIDTH
    q += row * q_b + head * q_h
    grad += dense
    total_in += tl.program_id(1).to(tl.int64) * length
    along_in += tl.program_id(1).to(tl.int64) * length
    first += row * length
    valid += row * window
    own, place = tl.cdiv(length, KEYS), tl.arange(0, QUERIES)
    grad_k_JC = tl.zeros((KEYS, BLOCK), tl.float32)
    grad_v_JC = tl.zeros((KEYS, BLOCK), tl.float32)
    if tl.program_id(0) < own:
        begin = tl.program_id(0) * KEYS
        j = begin + tl.arange(0, KEYS)
        k_JC = load_rows(k + row * k_b + head * k_h, j, k_t, length, WIDTH, BLOCK)
        v_JC = load_rows(v + row * v_b + head * v_h, j, v_t, length, WIDTH, BLOCK)
        for t in range((begin + 1) // QUERIES * QUERIES, tl.minimum(length, begin + KEYS + window), QUERIES):
            grad_k_JC, grad_v_JC = _entry_tile(
                q, grad, k_JC, v_JC, q_t, step, t + place, j, first, valid, length, window, total_in, along_in,
                grad_k_JC, grad_v_JC, WIDTH, BLOCK, False, STARTED, PRECISION,
            )  # fmt: skip
        store_rows(grad_k + dense, grad_k_JC, j, step, length, WIDTH, BLOCK)
        store_rows(grad_v + dense, grad_v_JC, j, step, length, WIDTH, BLOCK)
    elif CARRIED:
        begin = (tl.program_id(0) - own) * KEYS
        j = begin + tl.arange(0, KEYS)
        k_JC = load_rows(carried_k + row * ck_b + head * ck_h, j, ck_w, window, WIDTH, BLOCK)
        v_JC = load_rows(carried_v + row * cv_b + head * cv_h, j, cv_w, window, WIDTH, BLOCK)
        for t in range(0, tl.minimum(length, begin + KEYS), QUERIES):
            grad_k_JC, grad_v_JC = _entry_tile(
                q, grad, k_JC, v_JC, q_t, step, t + place, j, first, valid, length, window, total_in, along_in,
                grad_k_JC, grad_v_JC, WIDTH, BLOCK, True, STARTED, PRECISION,
            )  # fmt: skip
        own_row = tl.program_id(1).to(tl.int64) * window * WIDTH
        store_rows(grad_ck + own_row, grad_k_JC, j, WIDTH, window, WIDTH, BLOCK)
        store_rows(grad_cv + own_row, grad_v_JC, j, WIDTH, window, WIDTH, BLOCK)
