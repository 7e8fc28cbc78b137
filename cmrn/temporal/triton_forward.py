"""The gated delta rule's forward kernels. Letters: B·H program rows, N chunks of C tokens, K and V padded head widths.

With A_ij = β_i D_ij k_i·k_j below the diagonal, a chunk that starts at S writes U = (I + A)⁻¹ β (V − e^γ K S). Scratch
lies chunk by chunk: rates_N5C, inverse_NCC, scores_NCC, u_NVC, states_NVK; S and U are held transposed, so that each
product of the recurrence takes its left operand from the registers it was computed in. Token strides are constants:
addresses that the compiler knows cost no registers.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.temporal.triton_chunk import RATES, between, chunk_of, load_tile, unit_lower_inverse

__all__ = ["output_kernel", "prepare_kernel", "scan_kernel", "step"]


@triton.jit
def _store_rates(rates, g_C, beta_C, C: tl.constexpr):
    """Write the chunk's rates; returns the first two rows."""
    place = tl.arange(0, C)
    begins = g_C == float("-inf")
    gamma_C = tl.cumsum(tl.where(begins, 0.0, g_C), 0)
    begun_C = tl.cumsum(begins.to(tl.float32), 0)
    last_gamma = tl.sum(tl.where(place == C - 1, gamma_C, 0.0), 0)
    last_begun = tl.sum(tl.where(place == C - 1, begun_C, 0.0), 0)
    tl.store(rates + place, gamma_C)
    tl.store(rates + C + place, begun_C)
    tl.store(rates + 2 * C + place, tl.where(begun_C == 0.0, tl.exp(gamma_C), 0.0))
    tl.store(rates + 3 * C + place, tl.where(begun_C == last_begun, tl.exp(last_gamma - gamma_C), 0.0))
    tl.store(rates + 4 * C + place, beta_C)
    return gamma_C, begun_C


@triton.jit(do_not_specialize=["T"])
def prepare_kernel(
    q, k, g, beta, rates, inverse, scores, q_b, q_t: tl.constexpr, q_h, k_b, k_t: tl.constexpr, k_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PRECISION: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: its rates, (I + A)⁻¹ and the scores P = D ∘ QKᵀ."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = head * tl.num_programs(0) + chunk
    place, key = tl.arange(0, C), tl.arange(0, K)
    square_CC = place[:, None] * C + place[None, :]
    real_C = place < T - chunk * C
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    rows = ((head // H) * T + chunk * C + place) * H + head % H
    beta_C = tl.load(beta + rows, mask=real_C, other=0.0)
    gamma_C, begun_C = _store_rates(rates + at * RATES * C, tl.load(g + rows, mask=real_C, other=0.0), beta_C, C)
    decay_CC = between(gamma_C, begun_C, C)
    scores_CC = tl.dot(q_CK, tl.trans(k_CK), input_precision=PRECISION) * decay_CC
    tl.store(scores + at * C * C + square_CC, scores_CC.to(k_CK.dtype))
    mixing_CC = tl.dot(k_CK, tl.trans(k_CK), input_precision=PRECISION) * decay_CC
    mixing_CC = tl.where(place[:, None] > place[None, :], mixing_CC * beta_C[:, None], 0.0)
    inverse_CC = unit_lower_inverse(mixing_CC, C, INVERSE)
    tl.store(inverse + at * C * C + square_CC, inverse_CC.to(k_CK.dtype))


@triton.jit
def step(
    s_VK, narrow_VK, whole, value, k, v, rates, inverse, head, chunk, at,
    k_b, k_t: tl.constexpr, k_h, v_b, v_t: tl.constexpr, v_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state after a chunk, and U, from the state before it; `rates` are the head's.

    (I + A)⁻¹ β V is a product of its own, which need not wait for the state.
    """
    place, key = tl.arange(0, C), tl.arange(0, K)
    real_C = place < T - chunk * C
    v_place = chunk_of(v, v_b, v_t, v_h, head, chunk, H, C) + (place[None, :] * v_t + value[:, None])
    v_VC = tl.load(v_place, mask=real_C[None, :] & (value < VALUE)[:, None], other=0.0)
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    inverse_CC = tl.load(inverse + at * C * C + (place[:, None] * C + place[None, :]))
    rates += chunk * RATES * C + place
    start_C, end_C, beta_C = tl.load(rates + 2 * C), tl.load(rates + 3 * C), tl.load(rates + 4 * C)
    driven_VC = (v_VC * beta_C[None, :]).to(k_CK.dtype)
    u_VC = tl.dot(driven_VC, tl.trans(inverse_CC), input_precision=PRECISION)
    known_VC = tl.dot(narrow_VK, tl.trans(k_CK), input_precision=PRECISION) * -(start_C * beta_C)[None, :]
    u_VC = tl.dot(known_VC.to(k_CK.dtype), tl.trans(inverse_CC), u_VC, input_precision=PRECISION)
    kept_VC = (u_VC * end_C[None, :]).to(k_CK.dtype)
    return tl.dot(kept_VC, k_CK, s_VK * whole, input_precision=PRECISION), u_VC.to(k_CK.dtype)


@triton.jit(do_not_specialize=["T", "N", "LENGTH"])
def scan_kernel(
    k, v, rates, inverse, u, states, first, last,
    k_b, k_t: tl.constexpr, k_h, v_b, v_t: tl.constexpr, v_h, f_r, f_v, f_k, T, N, LENGTH,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of LENGTH chunks in turn, for BV columns of the state: the state before each, and U.

    `first` holds the state before each segment, with strides of its own. A load that feeds no product is not brought
    forward by the compiler: e^{γ_C} is, by hand, to the chunk before.
    """
    segment, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    value, place, key = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, C), tl.arange(0, K)
    inside_VK = (key < KEY)[None, :] & (value < VALUE)[:, None]
    first += (head * tl.num_programs(1) + segment) * f_r
    s_VK = tl.load(first + value[:, None] * f_v + key[None, :] * f_k, mask=inside_VK, other=0.0)
    rates += head * N * RATES * C
    start, end = segment * LENGTH, tl.minimum(segment * LENGTH + LENGTH, N)
    whole = tl.load(rates + start * RATES * C + 3 * C - 1)
    for chunk in range(start, end):
        at = head * N + chunk
        next_whole = tl.load(rates + tl.minimum(chunk + 1, N - 1) * RATES * C + 3 * C - 1)
        narrow_VK = s_VK.to(states.dtype.element_ty)
        tl.store(states + at * V * K + (value[:, None] * K + key[None, :]), narrow_VK)
        s_VK, u_VC = step(
            s_VK, narrow_VK, whole, value, k, v, rates, inverse, head, chunk, at,
            k_b, k_t, k_h, v_b, v_t, v_h, T, H, KEY, VALUE, C, K, PRECISION,
        )  # fmt: skip
        tl.store(u + at * V * C + (value[:, None] * C + place[None, :]), u_VC)
        whole = next_whole
    state_VK = last + head * KEY * VALUE + key[None, :] * VALUE + value[:, None]
    tl.store(state_VK, s_VK, mask=inside_VK & (end == N))


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    q, rates, u, states, scores, o, surprise, q_b, q_t: tl.constexpr, q_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: O = (e^γ Q) S + P U, and the norm of each row of U."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = head * tl.num_programs(0) + chunk
    place, key, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    real_C = place < T - chunk * C
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    s_VK = tl.load(states + at * V * K + (value[:, None] * K + key[None, :]))
    u_VC = tl.load(u + at * V * C + (value[:, None] * C + place[None, :]))
    scores_CC = tl.load(scores + at * C * C + (place[:, None] * C + place[None, :]))
    start_C = tl.load(rates + at * RATES * C + 2 * C + place)
    o_CV = tl.dot(q_CK, tl.trans(s_VK), input_precision=PRECISION) * start_C[:, None]
    o_CV = tl.dot(scores_CC, tl.trans(u_VC), o_CV, input_precision=PRECISION)
    rows = ((head // H) * T + chunk * C + place) * H + head % H
    inside_CV = real_C[:, None] & (value < VALUE)[None, :]
    tl.store(o + rows[:, None] * VALUE + value[None, :], o_CV.to(o.dtype.element_ty), mask=inside_CV)
    wide_VC = u_VC.to(tl.float32)
    tl.store(surprise + rows, tl.sqrt(tl.sum(wide_VC * wide_VC, 0)), mask=real_C)
