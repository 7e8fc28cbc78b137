"""The gated delta rule's forward kernels. Letters: B·H program rows, N chunks of C tokens, K and V padded head widths.

Scratch lies chunk by chunk: decays_N4C, w_NCK, u_NVC, states_NVK, inverse_NCC (transposed), scores_NCC; S and U are
held transposed, so that both products of the recurrence take their left operand from the registers it was computed in.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.temporal.triton_chunk import DECAYS, between, chunk_of, load_tile, precise_dot, unit_lower_inverse

__all__ = ["output_kernel", "prepare_kernel", "scan_kernel"]


@triton.jit
def _store_decays(decays, g_C, C: tl.constexpr):
    """Write the chunk's four rows of decays; returns the first three."""
    place = tl.arange(0, C)
    begins = g_C == float("-inf")
    gamma_C = tl.cumsum(tl.where(begins, 0.0, g_C), 0)
    begun_C = tl.cumsum(begins.to(tl.float32), 0)
    last_gamma = tl.sum(tl.where(place == C - 1, gamma_C, 0.0), 0)
    last_begun = tl.sum(tl.where(place == C - 1, begun_C, 0.0), 0)
    start_C = tl.where(begun_C == 0.0, tl.exp(gamma_C), 0.0)
    tl.store(decays + place, gamma_C)
    tl.store(decays + C + place, begun_C)
    tl.store(decays + 2 * C + place, start_C)
    tl.store(decays + 3 * C + place, tl.where(begun_C == last_begun, tl.exp(last_gamma - gamma_C), 0.0))
    return gamma_C, begun_C, start_C


@triton.jit(do_not_specialize=["T"])
def prepare_kernel(
    k, v, g, beta, decays, w, u, inverse, k_b, k_t, k_h, v_b, v_t, v_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: its decays, W = (I+A)⁻¹ β e^γ K, X = (I+A)⁻¹ β V (into u) and the inverse."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = head * tl.num_programs(0) + chunk
    place, key, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    real_C = place < T - chunk * C
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    v_CV = load_tile(chunk_of(v, v_b, v_t, v_h, head, chunk, H, C), v_t, value, real_C, VALUE, C)
    rates = ((head // H) * T + chunk * C + place) * H + head % H
    beta_C = tl.load(beta + rates, mask=real_C, other=0.0)
    g_C = tl.load(g + rates, mask=real_C, other=0.0)
    gamma_C, begun_C, start_C = _store_decays(decays + at * DECAYS * C, g_C, C)
    mixing_CC = tl.dot(k_CK, tl.trans(k_CK), input_precision=PRECISION) * between(gamma_C, begun_C, C)
    mixing_CC = tl.where(place[:, None] > place[None, :], mixing_CC * beta_C[:, None], 0.0)
    inverse_CC = unit_lower_inverse(mixing_CC, C, INVERSE)
    if KEEP:
        tl.store(inverse + at * C * C + place[None, :] * C + place[:, None], inverse_CC.to(inverse.dtype.element_ty))
    driven_CC = inverse_CC * beta_C[None, :]
    x_CV = precise_dot(driven_CC, v_CV)
    tl.store(u + at * V * C + value[None, :] * C + place[:, None], x_CV.to(u.dtype.element_ty))
    w_CK = precise_dot(driven_CC * start_C[None, :], k_CK)
    tl.store(w + at * C * K + place[:, None] * K + key[None, :], w_CK.to(w.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "N"])
def scan_kernel(
    k, decays, w, u, states, first, last, k_b, k_t, k_h, T, N,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All chunks of one head in turn, for BV columns of the state: the state before each, and U = X − W S in place.

    A load that feeds no product is not brought forward by the compiler: e^{γ_C} is, by hand, to the chunk before.
    """
    value, head = tl.program_id(0) * BV + tl.arange(0, BV), tl.program_id(1).to(tl.int64)
    place, key = tl.arange(0, C), tl.arange(0, K)
    state_VK = head * KEY * VALUE + key[None, :] * VALUE + value[:, None]
    inside_VK = (key < KEY)[None, :] & (value < VALUE)[:, None]
    s_VK = tl.load(first + state_VK, mask=inside_VK, other=0.0)
    decays += head * N * DECAYS * C
    whole = tl.load(decays + 3 * C - 1)
    for chunk in range(N):
        at = head * N + chunk
        next_whole = tl.load(decays + tl.minimum(chunk + 1, N - 1) * DECAYS * C + 3 * C - 1)
        w_CK = tl.load(w + at * C * K + (place[:, None] * K + key[None, :]))
        x_VC = tl.load(u + at * V * C + (value[:, None] * C + place[None, :]))
        k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, place < T - chunk * C, KEY, C)
        end_C = tl.load(decays + chunk * DECAYS * C + 3 * C + place)
        narrow_VK = s_VK.to(k_CK.dtype)
        tl.store(states + at * V * K + (value[:, None] * K + key[None, :]), narrow_VK)
        u_VC = x_VC - tl.dot(narrow_VK, tl.trans(w_CK), input_precision=PRECISION)
        tl.store(u + at * V * C + (value[:, None] * C + place[None, :]), u_VC.to(k_CK.dtype))
        kept_VC = (u_VC * end_C[None, :]).to(k_CK.dtype)
        s_VK = tl.dot(kept_VC, k_CK, s_VK * whole, input_precision=PRECISION)
        whole = next_whole
    tl.store(last + state_VK, s_VK, mask=inside_VK)


@triton.jit(do_not_specialize=["T"])
def output_kernel(
    q, k, decays, u, states, o, surprise, scores, q_b, q_t, q_h, k_b, k_t, k_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one head: O = (e^γ Q) S + P U with P = D ∘ QKᵀ, the norm of each row of U, and P itself."""
    chunk, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = head * tl.num_programs(0) + chunk
    place, key, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    real_C = place < T - chunk * C
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    s_VK = tl.load(states + at * V * K + (value[:, None] * K + key[None, :]))
    u_VC = tl.load(u + at * V * C + (value[:, None] * C + place[None, :]))
    decays += at * DECAYS * C
    gamma_C, begun_C, start_C = tl.load(decays + place), tl.load(decays + C + place), tl.load(decays + 2 * C + place)
    scores_CC = tl.dot(q_CK, tl.trans(k_CK), input_precision=PRECISION) * between(gamma_C, begun_C, C)
    scores_CC = scores_CC.to(q_CK.dtype)
    if KEEP:
        tl.store(scores + at * C * C + (place[:, None] * C + place[None, :]), scores_CC)
    o_CV = tl.dot(q_CK, tl.trans(s_VK), input_precision=PRECISION) * start_C[:, None]
    o_CV = tl.dot(scores_CC, tl.trans(u_VC), o_CV, input_precision=PRECISION)
    rows = ((head // H) * T + chunk * C + place) * H + head % H
    inside_CV = real_C[:, None] & (value < VALUE)[None, :]
    tl.store(o + rows[:, None] * VALUE + value[None, :], o_CV.to(o.dtype.element_ty), mask=inside_CV)
    wide_VC = u_VC.to(tl.float32)
    tl.store(surprise + rows, tl.sqrt(tl.sum(wide_VC * wide_VC, 0)), mask=real_C)
