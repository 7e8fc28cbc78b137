"""The gated delta rule's backward kernels; letters and scratch as in `triton_forward`.

With (I + A) U = R, R = β (V − e^γ K S), and dU the gradient of U, Z = (I + A)⁻ᵀ dU is the gradient of R and −Z Uᵀ,
strictly lower, that of A. The walk back leaves z_NVC and the gradients of the states, both transposed.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.temporal.triton_chunk import RATES, between, chunk_of, load_tile

__all__ = ["gradient_kernel", "reverse_scan_kernel", "step_back"]


@triton.jit
def step_back(
    ds_VK, narrow_VK, whole, end_C, value, q, k, grad_o, rates, inverse, scores, head, chunk, at,
    q_b, q_t: tl.constexpr, q_h, k_b, k_t: tl.constexpr, k_h, o_b, o_t: tl.constexpr, o_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the state before a chunk, and Z, from the gradient dS' of the state after it.

    dU = Pᵀ dO + (D_C K) dS' and dS = e^{γ_C} dS' + (e^γ Q)ᵀ dO − (β e^γ K)ᵀ Z; the product with Q waits for nothing.
    """
    place, key = tl.arange(0, C), tl.arange(0, K)
    square_CC = place[:, None] * C + place[None, :]
    real_C = place < T - chunk * C
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    do_place = chunk_of(grad_o, o_b, o_t, o_h, head, chunk, H, C) + (place[None, :] * o_t + value[:, None])
    do_VC = tl.load(do_place, mask=real_C[None, :] & (value < VALUE)[:, None], other=0.0)
    scores_CC = tl.load(scores + at * C * C + square_CC)
    inverse_CC = tl.load(inverse + at * C * C + square_CC)
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    rates += chunk * RATES * C + place
    start_C, beta_C = tl.load(rates + 2 * C), tl.load(rates + 4 * C)
    read_VC = (do_VC * start_C[None, :]).to(k_CK.dtype)
    ds_VK = tl.dot(read_VC, q_CK, ds_VK * whole, input_precision=PRECISION)
    du_VC = tl.dot(narrow_VK, tl.trans(k_CK), input_precision=PRECISION) * end_C[None, :]
    du_VC = tl.dot(do_VC, scores_CC, du_VC, input_precision=PRECISION).to(k_CK.dtype)
    z_VC = tl.dot(du_VC, inverse_CC, input_precision=PRECISION)
    known_VC = (z_VC * -(start_C * beta_C)[None, :]).to(k_CK.dtype)
    return tl.dot(known_VC, k_CK, ds_VK, input_precision=PRECISION), z_VC.to(k_CK.dtype)


@triton.jit(do_not_specialize=["T", "N", "LENGTH"])
def reverse_scan_kernel(
    q, k, grad_o, rates, inverse, scores, z, grad_states, grad_last, grad_first,
    q_b, q_t: tl.constexpr, q_h, k_b, k_t: tl.constexpr, k_h, o_b, o_t: tl.constexpr, o_h, l_r, l_v, l_k, T, N, LENGTH,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of LENGTH chunks, last to first, for BV columns of the state: Z, and the gradient after each chunk.

    `grad_last` holds the gradient after each segment, with strides of its own. What feeds no product is loaded by hand
    one chunk ahead.
    """
    segment, head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    value, place, key = tl.program_id(0) * BV + tl.arange(0, BV), tl.arange(0, C), tl.arange(0, K)
    inside_VK = (key < KEY)[None, :] & (value < VALUE)[:, None]
    grad_last += (head * tl.num_programs(1) + segment) * l_r
    ds_VK = tl.load(grad_last + value[:, None] * l_v + key[None, :] * l_k, mask=inside_VK, other=0.0)
    rates += head * N * RATES * C
    start, end = segment * LENGTH, tl.minimum(segment * LENGTH + LENGTH, N)
    whole = tl.load(rates + (end - 1) * RATES * C + 3 * C - 1)
    end_C = tl.load(rates + (end - 1) * RATES * C + 3 * C + place)
    for back in range(end - start):
        chunk = end - 1 - back
        at = head * N + chunk
        following = rates + tl.maximum(chunk - 1, 0) * RATES * C
        next_whole, next_end_C = tl.load(following + 3 * C - 1), tl.load(following + 3 * C + place)
        narrow_VK = ds_VK.to(grad_states.dtype.element_ty)
        tl.store(grad_states + at * V * K + (value[:, None] * K + key[None, :]), narrow_VK)
        ds_VK, z_VC = step_back(
            ds_VK, narrow_VK, whole, end_C, value, q, k, grad_o, rates, inverse, scores, head, chunk, at,
            q_b, q_t, q_h, k_b, k_t, k_h, o_b, o_t, o_h, T, H, KEY, VALUE, C, K, PRECISION,
        )  # fmt: skip
        tl.store(z + at * V * C + (value[:, None] * C + place[None, :]), z_VC)
        whole, end_C = next_whole, next_end_C
    state_VK = grad_first + head * KEY * VALUE + key[None, :] * VALUE + value[:, None]
    tl.store(state_VK, ds_VK, mask=inside_VK & (segment == 0))


@triton.jit(do_not_specialize=["T"])
def gradient_kernel(
    q, k, v, grad_o, rates, u, z, states, grad_states, grad_q, grad_k, grad_v, grad_g, grad_beta,
    q_b, q_t: tl.constexpr, q_h, k_b, k_t: tl.constexpr, k_h,
    v_b, v_t: tl.constexpr, v_h, o_b, o_t: tl.constexpr, o_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one head and BK columns of its keys: the gradients from Z and from that of the state after it.

    Each γ_i stands with q_i, with k_i as a row of A and R, and against k_i as what is written, so that its gradient
    is q_i·dq_i + β_i k_i·dr_i − k_i·dc_i, where dk_i = β_i dr_i + dc_i, with what the chunk's end adds to the last.
    grad_g and grad_beta are sums over the keys' columns: each block of columns writes its part, (K/BK,B,T,H).
    """
    blocks: tl.constexpr = K // BK
    chunk, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1).to(tl.int64)
    at = head * (tl.num_programs(0) // blocks) + chunk
    place, key, value = tl.arange(0, C), block * BK + tl.arange(0, BK), tl.arange(0, V)
    real_C = place < T - chunk * C
    wide_VC, wide_VK = value[:, None] * C + place[None, :], value[:, None] * K + key[None, :]
    do_CV = load_tile(chunk_of(grad_o, o_b, o_t, o_h, head, chunk, H, C), o_t, value, real_C, VALUE, C)
    u_VC = tl.load(u + at * V * C + wide_VC)
    z_CV = tl.trans(tl.load(z + at * V * C + wide_VC))
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    rates += at * RATES * C
    gamma_C, begun_C = tl.load(rates + place), tl.load(rates + C + place)
    start_C, end_C = tl.load(rates + 2 * C + place), tl.load(rates + 3 * C + place)
    beta_C, whole = tl.load(rates + 4 * C + place), tl.load(rates + 3 * C - 1)
    rows = ((head // H) * T + chunk * C + place) * H + head % H
    inside_CK = real_C[:, None] & (key < KEY)[None, :]
    dbeta_C = tl.zeros([C], tl.float32)
    if block == 0:
        v_CV = load_tile(chunk_of(v, v_b, v_t, v_h, head, chunk, H, C), v_t, value, real_C, VALUE, C)
        dv_CV = (z_CV * beta_C[:, None]).to(v_CV.dtype)
        inside_CV = real_C[:, None] & (value < VALUE)[None, :]
        tl.store(grad_v + rows[:, None] * VALUE + value[None, :], dv_CV, mask=inside_CV)
        dbeta_C = tl.sum(z_CV.to(tl.float32) * v_CV, 1)
    decay_CC = between(gamma_C, begun_C, C)
    read_CC = (tl.dot(do_CV, u_VC, input_precision=PRECISION) * decay_CC).to(k_CK.dtype)
    mixed_CC = tl.dot(z_CV, u_VC, input_precision=PRECISION) * -decay_CC
    mixed_CC = tl.where(place[:, None] > place[None, :], mixed_CC, 0.0)
    s_VK = tl.load(states + at * V * K + wide_VK)
    ds_VK = tl.load(grad_states + at * V * K + wide_VK)
    last = tl.sum(s_VK.to(tl.float32) * ds_VK) * whole

    dq_CK = tl.dot(do_CV, s_VK, input_precision=PRECISION) * start_C[:, None]
    dq_CK = tl.dot(read_CC, k_CK, dq_CK, input_precision=PRECISION)
    tl.store(grad_q + rows[:, None] * KEY + key[None, :], dq_CK.to(k_CK.dtype), mask=inside_CK)
    balance_C = tl.sum(dq_CK * q_CK, 1)
    row_CK = tl.dot(z_CV, s_VK, input_precision=PRECISION) * -start_C[:, None]
    row_CK = tl.dot(mixed_CC.to(k_CK.dtype), k_CK, row_CK, input_precision=PRECISION)
    from_row_C = tl.sum(row_CK * k_CK, 1)

    mixed_CC = (mixed_CC * beta_C[:, None]).to(k_CK.dtype)
    column_CK = tl.dot(tl.trans(u_VC), ds_VK, input_precision=PRECISION) * end_C[:, None]
    last += tl.sum(column_CK * k_CK)
    column_CK = tl.dot(tl.trans(read_CC), q_CK, column_CK, input_precision=PRECISION)
    column_CK = tl.dot(tl.trans(mixed_CC), k_CK, column_CK, input_precision=PRECISION)
    dk_CK = row_CK * beta_C[:, None] + column_CK
    tl.store(grad_k + rows[:, None] * KEY + key[None, :], dk_CK.to(k_CK.dtype), mask=inside_CK)

    balance_C += beta_C * from_row_C - tl.sum(column_CK * k_CK, 1)
    dgamma_C = balance_C + tl.where(place == C - 1, last, 0.0)
    begun_before_C = tl.load(rates + C + place - 1, mask=place > 0, other=0.0)
    dg_C = tl.where(begun_C != begun_before_C, 0.0, tl.cumsum(dgamma_C, 0, reverse=True))
    part = rows + block.to(tl.int64) * tl.num_programs(1) * T
    tl.store(grad_g + part, dg_C, mask=real_C)
    tl.store(grad_beta + part, dbeta_C + from_row_C, mask=real_C)
