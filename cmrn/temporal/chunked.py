"""The gated delta rule a chunk at a time, in plain PyTorch, with its gradient written out: the path of the CPU.

Within a chunk of C tokens, with γ_i = Σ_{j≤i} g_j, D_ij = e^{γ_i−γ_j} for j ≤ i and S the state before the chunk, the
errors u of all tokens solve
    (I + A) U = β V − (β e^γ K) S,    A_ij = β_i D_ij k_i·k_j  for j < i,
one triangular solve for all chunks at once, which gives U = X − W S (the WY form); then
    O = (e^γ Q) S + (D ∘ QKᵀ) U,    S' = e^{γ_C} S + (D_C K)ᵀ U,
where D_C is the last row of D. Source: Yang et al. 2024, "Gated Delta Networks", section 3.3. Differs: g = -inf starts
a document afresh, which makes D and e^γ zero across the document's first token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CHUNK", "gated_delta_rule"]

CHUNK = 64


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same results as `reference.gated_delta_rule`, with matrix products in the type of q, all else in the state's.

    state_BHKV is float32, or float64 for a float64 model. Returns o_BTHV in the type of q, the last state, and the
    surprise_BTH in the state's type. Output and state carry gradient; the surprise, a by-product, does not.
    """
    length = q_BTHK.shape[1]
    size = min(CHUNK, length)
    q, k, v = (_split(x, size) for x in (q_BTHK, k_BTHK, v_BTHV))
    g, beta = (_split(x.to(state_BHKV.dtype), size) for x in (g_BTH, beta_BTH))
    o, state_BHKV, surprise = _ChunkedRule.apply(  # type: ignore[no-untyped-call]
        q, k, v, g, beta, state_BHKV
    )
    return _join(o, length), state_BHKV, _join(surprise, length)


class _Decay(NamedTuple):
    """Products of decays inside a chunk, zero where a document begins in between.

    between_CC: D above. from_start_C: e^γ.
    """

    between_CC: Tensor
    from_start_C: Tensor


def _decay(g_BHNC: Tensor) -> _Decay:
    begins = g_BHNC.isneginf()
    gamma = g_BHNC.masked_fill(begins, 0.0).cumsum(-1)
    size = g_BHNC.shape[-1]
    apart = torch.ones(size, size, dtype=torch.bool, device=g_BHNC.device).triu(1)
    if bool(begins.any()):
        segment = begins.cumsum(-1)
        apart = apart | (segment[..., :, None] != segment[..., None, :])
        from_start = gamma.masked_fill(segment != 0, -torch.inf).exp_()
    else:
        from_start = gamma.exp()
    between = (gamma[..., :, None] - gamma[..., None, :]).masked_fill_(apart, -torch.inf).exp_()
    return _Decay(between, from_start)


class _ChunkedRule(torch.autograd.Function):
    """(q, k, v, g, beta) split into chunks (B,H,N,C,…) and a state, to (o, state, surprise)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        narrow, wide = q.dtype, state.dtype
        decay = _decay(g)
        between, from_start = decay
        keys_CC = (k @ k.mT).to(wide)
        mixing = (keys_CC * between).mul_(beta[..., None]).tril_(-1)
        drive = torch.cat([v.to(wide) * beta[..., None], k.to(wide) * (beta * from_start)[..., None]], -1)
        solved = torch.linalg.solve_triangular(mixing, drive, upper=False, unitriangular=True)
        fresh, reaction = solved.split([v.shape[-1], k.shape[-1]], -1)
        reaction = reaction.to(narrow)
        write = k * between[..., -1, :, None].to(narrow)
        errors, states = torch.empty_like(v, dtype=narrow), q.new_empty(*q.shape[:3], *state.shape[2:])
        surprise = torch.empty_like(g)
        for n in range(k.shape[2]):
            states[:, :, n] = state
            error = fresh[:, :, n] - reaction[:, :, n] @ states[:, :, n]
            errors[:, :, n] = error
            surprise[:, :, n] = error.norm(dim=-1)
            state = from_start[:, :, n, -1, None, None] * state + write[:, :, n].mT @ errors[:, :, n]
        scores = (q @ k.mT) * between.to(narrow)
        o = (q * from_start[..., None].to(narrow)) @ states
        o += scores @ errors
        ctx.save_for_backward(q, k, v, g, beta, mixing, fresh, reaction, errors, states, between, from_start)
        ctx.mark_non_differentiable(surprise)
        ctx.set_materialize_grads(False)
        return o, state, surprise

    @staticmethod
    def backward(ctx: Any, grad_o: Tensor | None, grad_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, mixing, fresh, reaction, errors, states, between, from_start = ctx.saved_tensors
        narrow, wide = q.dtype, mixing.dtype
        grad_o = torch.zeros_like(errors) if grad_o is None else grad_o.contiguous()
        if grad_state is None:
            grad_state = mixing.new_zeros(*states.shape[:2], *states.shape[3:])
        narrow_between, start = between.to(narrow), from_start[..., None].to(narrow)
        read, write = q * start, k * between[..., -1, :, None].to(narrow)

        scores = (q @ k.mT) * narrow_between
        grad_errors = scores.mT @ grad_o
        grad_write, grad_whole = torch.empty_like(k), torch.empty_like(from_start[..., -1])
        grad_reaction = torch.empty_like(reaction)
        for n in reversed(range(k.shape[2])):
            before, after = states[:, :, n], grad_state.to(narrow)
            grad_errors[:, :, n] += write[:, :, n] @ after
            grad_write[:, :, n] = errors[:, :, n] @ after.mT
            grad_whole[:, :, n] = (before.to(wide) * grad_state).sum((-2, -1))
            grad_reaction[:, :, n] = -(grad_errors[:, :, n] @ before.mT)
            grad_state = from_start[:, :, n, -1, None, None] * grad_state
            grad_state += read[:, :, n].mT @ grad_o[:, :, n] - reaction[:, :, n].mT @ grad_errors[:, :, n]

        grad_solved = torch.cat([grad_errors, grad_reaction], -1).to(wide)
        grad_drive = torch.linalg.solve_triangular(mixing.mT, grad_solved, upper=True, unitriangular=True)
        solved = torch.cat([fresh.to(narrow), reaction], -1)
        grad_mixing = -(grad_drive.to(narrow) @ solved.mT).to(wide).tril(-1)
        from_value, from_key = grad_drive.split([v.shape[-1], k.shape[-1]], -1)
        key_part = (from_key * k).sum(-1)
        grad_beta = (from_value * v).sum(-1) + key_part * from_start
        grad_v = (from_value * beta[..., None]).to(narrow)

        keys_CC = (k @ k.mT).to(wide)
        mixed = grad_mixing * between
        grad_beta += (mixed * keys_CC).sum(-1)
        mixed *= beta[..., None]
        grad_scores = grad_o @ errors.mT
        spread = mixed * keys_CC + grad_scores * scores
        spread[..., -1, :] += (grad_write * write).sum(-1, dtype=wide)
        symmetric = (mixed + mixed.mT).to(narrow)
        attended = grad_scores * narrow_between
        grad_read = grad_o @ states.mT
        grad_q = torch.addcmul(attended @ k, grad_read, start)
        grad_k = symmetric @ k + attended.mT @ q + grad_write * between[..., -1, :, None].to(narrow)
        grad_k += (from_key * (beta * from_start)[..., None]).to(narrow)

        grad_start = (grad_read * q).sum(-1, dtype=wide) + key_part * beta
        grad_start[..., -1] += grad_whole
        grad_gamma = spread.sum(-1) - spread.sum(-2) + grad_start * from_start
        grad_g = grad_gamma.flip(-1).cumsum(-1).flip(-1).masked_fill_(g.isneginf(), 0.0)
        return grad_q, grad_k, grad_v, grad_g, grad_beta, grad_state


def _split(x: Tensor, size: int) -> Tensor:
    """(B,T,H,…) to (B,H,N,C,…), zeros after the end: they decay nothing and write nothing."""
    padding = -x.shape[1] % size
    if padding:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding))
    chunks: Tensor = x.unflatten(1, (-1, size))
    return chunks.movedim(3, 1).contiguous()


def _join(x: Tensor, length: int) -> Tensor:
    """(B,H,N,C,…) back to (B,T,H,…)."""
    joined: Tensor = x.movedim(1, 3).flatten(1, 2)
    return joined[:, :length]
