"""The read of working memory for one token a row on CUDA: three launches, of which the second reads and shifts.

That one convolves the key, reads what was carried and the null slot, and writes the entries shifted by one with the
token's own at the end: anew, never in place, since records do not change. Entries are kept without their places; the
query is turned towards each instead (`rotary`).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import convolve_one, output_one, project_one, unit_length
from cmrn.memory.rotary import BASE, rotated

__all__ = ["memory_one"]

ENTRIES_VALUES = 16384
"""Values of keys that a program holds at once."""
STRIP = 16
"""Columns of the values that a program reads and shifts; each computes the weights anew."""


def memory_one(
    x_ND: Tensor,
    norm: Tensor,
    weights: list[Tensor],
    conv_JC: Tensor,
    log_temperature_H: Tensor,
    null_HC: Tensor,
    output_DI: Tensor,
    eps: float,
    dtype: torch.dtype,
    start_N: Tensor | None,
    tail_NRC: Tensor,
    keys_NHWC: Tensor,
    values_NHWC: Tensor,
    valid_NW: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(x_ND, tail, keys, values, valid) after one token, as `MemoryAttention.forward` defines them; no gradient.

    weights: of query, key, value and gate. dtype: what matrix products run in, and the type of what is carried.
    start_N: True where a document starts with this token.
    """
    projected_NR, _ = project_one(x_ND, norm, eps, weights, dtype)
    read_NI, tail_NRC, keys_NHWC, values_NHWC, valid_NW = torch.ops.cmrn.memory_one(
        projected_NR, tail_NRC, conv_JC, log_temperature_H, null_HC, start_N, keys_NHWC, values_NHWC, valid_NW
    )
    x_ND, _ = output_one(read_NI, projected_NR, None, eps, null_HC.shape[0], output_DI, x_ND)
    return x_ND, tail_NRC, keys_NHWC, values_NHWC, valid_NW


@torch.library.custom_op("cmrn::memory_one", mutates_args=())
def _memory_one(
    projected_NR: Tensor,
    tail_NRC: Tensor,
    conv_JC: Tensor,
    log_temperature_H: Tensor,
    null_HC: Tensor,
    start_N: Tensor | None,
    keys_NHWC: Tensor,
    values_NHWC: Tensor,
    valid_NW: Tensor,
) -> list[Tensor]:
    """[read_NI in float32, tail, keys, values, valid]."""
    rows, heads, window, width = keys_NHWC.shape
    read_NI, after_NRC, next_keys, next_values, next_valid = _empty_memory(
        projected_NR, tail_NRC, conv_JC, log_temperature_H, null_HC, start_N, keys_NHWC, values_NHWC, valid_NW
    )
    wide, half = triton.next_power_of_2(width), rotated(width) // 2
    _memory_kernel[(rows, heads, triton.cdiv(width, STRIP))](
        projected_NR, tail_NRC.contiguous(), conv_JC.contiguous(), log_temperature_H, null_HC.contiguous(),
        None if start_N is None else start_N.contiguous(), keys_NHWC.contiguous(), values_NHWC.contiguous(),
        valid_NW.contiguous(), read_NI, after_NRC, next_keys, next_values, next_valid, heads, window, width,
        projected_NR.shape[1], REACH=conv_JC.shape[0] - 1, WIDTH=wide, STRIP=STRIP, HALF=half,
        PAIRS=triton.next_power_of_2(max(1, half)), LOG_BASE=math.log2(BASE),
        ENTRIES=min(triton.next_power_of_2(window), max(16, ENTRIES_VALUES // wide)), num_warps=8,
    )  # fmt: skip
    return [read_NI, after_NRC, next_keys, next_values, next_valid]


@_memory_one.register_fake
def _empty_memory(
    projected_NR: Tensor,
    tail_NRC: Tensor,
    conv_JC: Tensor,
    log_temperature_H: Tensor,
    null_HC: Tensor,
    start_N: Tensor | None,
    keys_NHWC: Tensor,
    values_NHWC: Tensor,
    valid_NW: Tensor,
) -> list[Tensor]:
    rows, heads, _, width = keys_NHWC.shape
    return [
        projected_NR.new_empty(rows, heads * width, dtype=torch.float32),
        projected_NR.new_empty(tail_NRC.shape),
        projected_NR.new_empty(keys_NHWC.shape),
        projected_NR.new_empty(values_NHWC.shape),
        valid_NW.new_empty(valid_NW.shape),
    ]


@triton.jit
def _memory_kernel(p_ptr, tail_ptr, conv_ptr, temperature_ptr, null_ptr, start_ptr, key_ptr, value_ptr, valid_ptr,
                   read_ptr, after_ptr, next_key_ptr, next_value_ptr, next_valid_ptr, heads, window, width, stride,
                   REACH: tl.constexpr, WIDTH: tl.constexpr, STRIP: tl.constexpr, HALF: tl.constexpr,
                   PAIRS: tl.constexpr, LOG_BASE: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """One row, one head and a strip of its values: an online softmax that begins with the null slot."""
    token, head, strip = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    inner = heads * width
    c, own = tl.arange(0, WIDTH), strip * STRIP + tl.arange(0, STRIP)
    inside, kept = c < width, own < width
    mine = inside & (c >= strip * STRIP) & (c < (strip + 1) * STRIP)
    joined = head < heads
    if start_ptr is not None:
        joined = tl.load(start_ptr + token) == 0
    p_ptr += token * stride
    at = head * width + c
    q = tl.load(p_ptr + at, inside, 0.0).to(tl.float32)
    square = tl.sum(q * q, 0)
    scale = tl.where(square > 1e-12, tl.rsqrt(tl.maximum(square, 1e-12)), 0.0)
    scale *= tl.exp(tl.load(temperature_ptr + head).to(tl.float32))
    q *= scale
    # The features that turn, as pairs, and the rest.
    pair = tl.arange(0, PAIRS)
    turns = pair < HALF
    q_left = scale * tl.load(p_ptr + head * width + pair, turns, 0.0).to(tl.float32)
    q_right = scale * tl.load(p_ptr + head * width + HALF + pair, turns, 0.0).to(tl.float32)
    q_rest = tl.where(c < 2 * HALF, 0.0, q)
    rate = tl.where(turns, tl.exp2(pair.to(tl.float32) * (-LOG_BASE / max(HALF, 1))), 0.0)
    k = tl.load(p_ptr + inner + at, inside, 0.0).to(tl.float32)
    k = convolve_one(k, conv_ptr, tail_ptr + token * REACH * inner, after_ptr + token * REACH * inner, joined,
                     strip == 0, at, inside, inner, REACH)  # fmt: skip
    k = unit_length(k)
    v = tl.load(p_ptr + 2 * inner + head * width + own, kept, 0.0)

    first = (token * heads + head) * window * width
    largest = tl.sum(q * tl.load(null_ptr + at, inside, 0.0).to(tl.float32), 0)
    total, read = tl.full((), 1.0, tl.float32), tl.zeros((STRIP,), tl.float32)
    for begin in range(0, window, ENTRIES):
        w = begin + tl.arange(0, ENTRIES)
        present, shifted = w < window, (w >= 1) & (w < window)
        key = tl.load(key_ptr + first + w[:, None] * width + c[None, :], present[:, None] & inside[None, :], 0.0)
        value = tl.load(value_ptr + first + w[:, None] * width + own[None, :], present[:, None] & kept[None, :], 0.0)
        valid = (tl.load(valid_ptr + token * window + w, present, 0) != 0) & joined
        earlier = first + (w[:, None] - 1) * width
        tl.store(next_key_ptr + earlier + c[None, :], key, shifted[:, None] & mine[None, :])
        tl.store(next_value_ptr + earlier + own[None, :], value, shifted[:, None] & kept[None, :])
        tl.store(next_valid_ptr + token * window + w - 1, valid, shifted & (head + strip == 0))
        # Taken again from what the first load brought near.
        paired = present[:, None] & turns[None, :]
        left = tl.load(key_ptr + first + w[:, None] * width + pair[None, :], paired, 0.0).to(tl.float32)
        right = tl.load(key_ptr + first + w[:, None] * width + HALF + pair[None, :], paired, 0.0).to(tl.float32)
        angle = (window - w)[:, None].to(tl.float32) * rate[None, :]
        cos, sin = tl.cos(angle), tl.sin(angle)
        scores = tl.sum(left * (q_left * cos - q_right * sin) + right * (q_left * sin + q_right * cos), 1)
        scores = tl.where(valid, scores + tl.sum(key.to(tl.float32) * q_rest[None, :], 1), float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(scores, 0))
        weights = tl.exp(scores - largest)
        # An entry that cannot be read may hold anything.
        value = tl.where(valid[:, None], value.to(tl.float32), 0.0)
        total = total * tl.exp(before - largest) + tl.sum(weights, 0)
        read = read * tl.exp(before - largest) + tl.sum(weights[:, None] * value, 0)
    last = first + (window - 1) * width
    tl.store(next_key_ptr + last + c, k.to(next_key_ptr.dtype.element_ty), mine)
    tl.store(next_value_ptr + last + own, v, kept)
    if head + strip == 0:
        tl.store(next_valid_ptr + token * window + window - 1, head == 0)
    tl.store(read_ptr + token * inner + head * width + own, read / total, kept)
