"""The gated delta rule's backward kernels; letters and scratch as in `triton_forward`.

With (I + A) U = R, R = β (V − e^γ K S), and dU the gradient of U, Z = (I + A)⁻ᵀ dU is the gradient of R and −Z Uᵀ,
strictly lower, that of A: neither W nor X needs a gradient of its own.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from cmrn.temporal.triton_chunk import DECAYS, between, chunk_of, load_tile

__all__ = ["gradient_kernel", "reverse_scan_kernel"]


@triton.jit(do_not_specialize=["T", "N"])
def reverse_scan_kernel(
    q, k, grad_o, decays, w, scores, grad_u, grad_states, grad_last, grad_first,
    q_b, q_t, q_h, k_b, k_t, k_h, o_b, o_t, o_h, T, N,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All chunks of one head, last to first, for BV columns of the state.

    dU = Pᵀ dO + (D_C K) dS' and dS = e^{γ_C} dS' + (e^γ Q)ᵀ dO − Wᵀ dU, where dS' is the gradient of the state after
    the chunk, which is written for `gradient_kernel`. What feeds no product is loaded by hand one chunk ahead.
    """
    value, head = tl.program_id(0) * BV + tl.arange(0, BV), tl.program_id(1).to(tl.int64)
    place, key = tl.arange(0, C), tl.arange(0, K)
    state_VK = head * KEY * VALUE + key[None, :] * VALUE + value[:, None]
    inside_VK = (key < KEY)[None, :] & (value < VALUE)[:, None]
    ds_VK = tl.load(grad_last + state_VK, mask=inside_VK, other=0.0)
    decays += head * N * DECAYS * C
    whole = tl.load(decays + (N - 1) * DECAYS * C + 3 * C - 1)
    end_C = tl.load(decays + (N - 1) * DECAYS * C + 3 * C + place)
    for step in range(N):
        chunk = N - 1 - step
        at = head * N + chunk
        following = decays + tl.maximum(chunk - 1, 0) * DECAYS * C
        next_whole, next_end_C = tl.load(following + 3 * C - 1), tl.load(following + 3 * C + place)
        real_C = place < T - chunk * C
        k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
        q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
        do_place = chunk_of(grad_o, o_b, o_t, o_h, head, chunk, H, C) + (place[None, :] * o_t + value[:, None])
        do_VC = tl.load(do_place, mask=real_C[None, :] & (value < VALUE)[:, None], other=0.0)
        w_CK = tl.load(w + at * C * K + (place[:, None] * K + key[None, :]))
        scores_CC = tl.load(scores + at * C * C + (place[:, None] * C + place[None, :]))
        start_C = tl.load(decays + chunk * DECAYS * C + 2 * C + place)
        narrow_VK = ds_VK.to(k_CK.dtype)
        tl.store(grad_states + at * V * K + (value[:, None] * K + key[None, :]), narrow_VK)
        du_VC = tl.dot(narrow_VK, tl.trans(k_CK), input_precision=PRECISION) * end_C[None, :]
        du_VC = tl.dot(do_VC, scores_CC, du_VC, input_precision=PRECISION).to(k_CK.dtype)
        tl.store(grad_u + at * V * C + (value[:, None] * C + place[None, :]), du_VC)
        read_VC = (do_VC * start_C[None, :]).to(k_CK.dtype)
        ds_VK = tl.dot(read_VC, q_CK, ds_VK * whole, input_precision=PRECISION)
        ds_VK = tl.dot(-du_VC, w_CK, ds_VK, input_precision=PRECISION)
        whole, end_C = next_whole, next_end_C
    tl.store(grad_first + state_VK, ds_VK, mask=inside_VK)


@triton.jit(do_not_specialize=["T"])
def gradient_kernel(
    q, k, v, beta, grad_o, decays, inverse, u, grad_u, states, grad_states, grad_q, grad_k, grad_v, grad_g, grad_beta,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, o_b, o_t, o_h, T,
    H: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one head and BK columns of its keys: the gradients from those of U and of the state after it.

    Each γ_i stands with q_i, with k_i as a row of A and R, and against k_i as what is written, so that its gradient
    is q_i·dq_i + β_i k_i·dr_i − k_i·dc_i, where dk_i = β_i dr_i + dc_i, with what the chunk's end adds to the last.
    grad_g and grad_beta are sums over the keys' columns: each block of columns writes its part, (K/BK,B,T,H).
    """
    blocks: tl.constexpr = K // BK
    chunk, block, head = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1).to(tl.int64)
    at = head * (tl.num_programs(0) // blocks) + chunk
    place, key, value = tl.arange(0, C), block * BK + tl.arange(0, BK), tl.arange(0, V)
    real_C = place < T - chunk * C
    square_CC = place[:, None] * C + place[None, :]
    wide_VC, wide_VK = value[:, None] * C + place[None, :], value[:, None] * K + key[None, :]
    inverse_CC = tl.load(inverse + at * C * C + square_CC)
    du_VC = tl.load(grad_u + at * V * C + wide_VC)
    do_CV = load_tile(chunk_of(grad_o, o_b, o_t, o_h, head, chunk, H, C), o_t, value, real_C, VALUE, C)
    u_VC = tl.load(u + at * V * C + wide_VC)
    s_VK = tl.load(states + at * V * K + wide_VK)
    ds_VK = tl.load(grad_states + at * V * K + wide_VK)
    k_CK = load_tile(chunk_of(k, k_b, k_t, k_h, head, chunk, H, C), k_t, key, real_C, KEY, C)
    q_CK = load_tile(chunk_of(q, q_b, q_t, q_h, head, chunk, H, C), q_t, key, real_C, KEY, C)
    decays += at * DECAYS * C
    gamma_C, begun_C = tl.load(decays + place), tl.load(decays + C + place)
    start_C, end_C = tl.load(decays + 2 * C + place), tl.load(decays + 3 * C + place)
    last = tl.sum(s_VK.to(tl.float32) * ds_VK) * tl.load(decays + 3 * C - 1)
    rows = ((head // H) * T + chunk * C + place) * H + head % H
    inside_CK = real_C[:, None] & (key < KEY)[None, :]
    beta_C = tl.load(beta + rows, mask=real_C, other=0.0)

    z_CV = tl.dot(inverse_CC, tl.trans(du_VC), input_precision=PRECISION)
    dbeta_C = tl.zeros([C], tl.float32)
    if block == 0:
        v_CV = load_tile(chunk_of(v, v_b, v_t, v_h, head, chunk, H, C), v_t, value, real_C, VALUE, C)
        dv_CV = (z_CV * beta_C[:, None]).to(v_CV.dtype)
        inside_CV = real_C[:, None] & (value < VALUE)[None, :]
        tl.store(grad_v + rows[:, None] * VALUE + value[None, :], dv_CV, mask=inside_CV)
        dbeta_C = tl.sum(z_CV * v_CV, 1)
    z_CV = z_CV.to(k_CK.dtype)
    decay_CC = between(gamma_C, begun_C, C)
    read_CC = (tl.dot(do_CV, u_VC, input_precision=PRECISION) * decay_CC).to(k_CK.dtype)
    mixed_CC = tl.dot(z_CV, u_VC, input_precision=PRECISION) * -decay_CC
    mixed_CC = tl.where(place[:, None] > place[None, :], mixed_CC, 0.0)

    dq_CK = tl.dot(do_CV, s_VK, input_precision=PRECISION) * start_C[:, None]
    dq_CK = tl.dot(read_CC, k_CK, dq_CK, input_precision=PRECISION)
    tl.store(grad_q + rows[:, None] * KEY + key[None, :], dq_CK.to(k_CK.dtype), mask=inside_CK)
    row_CK = tl.dot(z_CV, s_VK, input_precision=PRECISION) * -start_C[:, None]
    row_CK = tl.dot(mixed_CC.to(k_CK.dtype), k_CK, row_CK, input_precision=PRECISION)
    from_row_C = tl.sum(row_CK * k_CK, 1)
    balance_CK = dq_CK * q_CK

    column_KC = tl.dot(tl.trans(ds_VK), u_VC, input_precision=PRECISION) * end_C[None, :]
    last += tl.sum(column_KC * tl.trans(k_CK))
    column_KC = tl.dot(tl.trans(q_CK), read_CC, column_KC, input_precision=PRECISION)
    mixed_CC = (mixed_CC * beta_C[:, None]).to(k_CK.dtype)
    column_KC = tl.dot(tl.trans(k_CK), mixed_CC, column_KC, input_precision=PRECISION)
    column_CK = tl.trans(column_KC)
    dk_CK = row_CK * beta_C[:, None] + column_CK
    tl.store(grad_k + rows[:, None] * KEY + key[None, :], dk_CK.to(k_CK.dtype), mask=inside_CK)

    dgamma_C = tl.sum(balance_CK - column_CK * k_CK, 1) + beta_C * from_row_C + tl.where(place == C - 1, last, 0.0)
    begun_before_C = tl.load(decays + C + place - 1, mask=place > 0, other=0.0)
    dg_C = tl.where(begun_C != begun_before_C, 0.0, tl.cumsum(dgamma_C, 0, reverse=True))
    part = rows + block.to(tl.int64) * tl.num_programs(1) * T
    tl.store(grad_g + part, dg_C, mask=real_C)
    tl.store(grad_beta + part, dbeta_C + from_row_C, mask=real_C)
