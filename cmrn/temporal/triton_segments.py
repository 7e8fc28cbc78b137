"""The scan's two levels, for long sequences with few heads: segments of chunks in parallel, then from end to end.

A chunk takes the transposed state to S M + B, where M = e^{γ_C} I − (β e^γ K)ᵀ (I + A)⁻ᵀ D_C K. Every segment is walked
from nothing, which leaves its B, and from the identity, which leaves its M; with these the true state before each
segment follows in a few products, and the scan then walks all segments at once. Gradients go back through Mᵀ.
M and B are float32 and as exact as the scan's own steps. Scratch as in `triton_forward`, and for the G segments of a
head ends_GVK, transitions_GKK.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.temporal.triton_backward import step_back
from cmrn.temporal.triton_chunk import RATES
from cmrn.temporal.triton_forward import step

__all__ = ["combine_kernel", "reverse_segment_kernel", "segment_kernel"]


@triton.jit(do_not_specialize=["T", "N", "LENGTH"])
def segment_kernel(
    k, v, rates, inverse, ends, transitions, k_b, k_t: tl.constexpr, k_h, v_b, v_t: tl.constexpr, v_h, T, N, LENGTH,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of LENGTH chunks, for BV of the V rows that start from nothing or of the K rows of the identity.

    The identity's rows lie behind the values' columns, where V is 0.
    """
    segment, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, key = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, K)
    s_VK = tl.where(row[:, None] - V == key[None, :], 1.0, 0.0)
    rates += head * N * RATES * C
    start, end = segment * LENGTH, tl.minimum(segment * LENGTH + LENGTH, N)
    whole = tl.load(rates + start * RATES * C + 3 * C - 1)
    for chunk in range(start, end):
        next_whole = tl.load(rates + tl.minimum(chunk + 1, N - 1) * RATES * C + 3 * C - 1)
        s_VK, _ = step(
            s_VK, s_VK.to(k.dtype.element_ty), whole, row, k, v, rates, inverse, head, chunk, head * N + chunk,
            k_b, k_t, k_h, v_b, v_t, v_h, T, H, KEY, VALUE, C, K, PRECISION,
        )  # fmt: skip
        whole = next_whole
    at = head * tl.num_programs(1) + segment
    if tl.program_id(0) * BV < V:
        tl.store(ends + at * V * K + (row[:, None] * K + key[None, :]), s_VK)
    else:
        tl.store(transitions + at * K * K + ((row - V)[:, None] * K + key[None, :]), s_VK)


@triton.jit(do_not_specialize=["T", "N", "LENGTH"])
def reverse_segment_kernel(
    q, k, grad_o, rates, inverse, scores, ends,
    q_b, q_t: tl.constexpr, q_h, k_b, k_t: tl.constexpr, k_h, o_b, o_t: tl.constexpr, o_h, T, N, LENGTH,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of LENGTH chunks, last to first: the gradient of its start, but for what comes from behind its end."""
    segment, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    value, place, key = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, C), tl.arange(0, K)
    ds_VK = tl.zeros([BV, K], tl.float32)
    rates += head * N * RATES * C
    start, end = segment * LENGTH, tl.minimum(segment * LENGTH + LENGTH, N)
    whole = tl.load(rates + (end - 1) * RATES * C + 3 * C - 1)
    end_C = tl.load(rates + (end - 1) * RATES * C + 3 * C + place)
    for back in range(end - start):
        chunk = end - 1 - back
        following = rates + tl.maximum(chunk - 1, 0) * RATES * C
        next_whole, next_end_C = tl.load(following + 3 * C - 1), tl.load(following + 3 * C + place)
        ds_VK, _ = step_back(
            ds_VK, ds_VK.to(k.dtype.element_ty), whole, end_C, value, q, k, grad_o, rates, inverse, scores,
            head, chunk, head * N + chunk,
            q_b, q_t, q_h, k_b, k_t, k_h, o_b, o_t, o_h, T, H, KEY, VALUE, C, K, PRECISION,
        )  # fmt: skip
        whole, end_C = next_whole, next_end_C
    at = head * tl.num_programs(1) + segment
    tl.store(ends + at * V * K + (value[:, None] * K + key[None, :]), ds_VK)


@triton.jit(do_not_specialize=["G"])
def combine_kernel(
    outer, ends, transitions, G,
    KEY: tl.constexpr, VALUE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """From the state before all segments of a head the state before each, over `ends`; reversed, gradients after each.

    S_{g+1} = S_g M_g + B_g for BV of the rows; reversed, dS_{g-1} = dS_g M_gᵀ + dB_g.
    """
    value, head = tl.program_id(0) * BV + tl.arange(0, BV), tl.program_id(1).to(tl.int64)
    key = tl.arange(0, K)
    outer_VK = outer + head * KEY * VALUE + key[None, :] * VALUE + value[:, None]
    s_VK = tl.load(outer_VK, mask=(key < KEY)[None, :] & (value < VALUE)[:, None], other=0.0)
    square_KK = key[:, None] * K + key[None, :]
    for count in range(G):
        at = head * G + (G - 1 - count if REVERSE else count)
        end_VK = ends + at * V * K + (value[:, None] * K + key[None, :])
        added_VK = tl.load(end_VK)
        m_KK = tl.load(transitions + at * K * K + square_KK)
        tl.store(end_VK, s_VK)
        s_VK = tl.dot(s_VK, tl.trans(m_KK) if REVERSE else m_KK, added_VK, input_precision="tf32x3")
