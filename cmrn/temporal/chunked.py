"""The gated delta rule a chunk at a time, in plain PyTorch, with its gradient written out: the path of the CPU.

Within a chunk of C tokens, with γ_i = Σ_{j≤i} g_j, D_ij = e^{γ_i−γ_j} for j ≤ i and S the state before the chunk, the
errors u of all tokens solve
    (I + A) U = β V − (β e^γ K) S,    A_ij = β_i D_ij k_i·k_j  for j < i,
whose triangular inverse, for all chunks at once, gives U = X − W S (the WY form); then
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


def _decay(g: Tensor) -> _Decay:
    begins = g.isneginf()
    gamma = g.masked_fill(begins, 0.0).cumsum(-1)
    size = g.shape[-1]
    apart = torch.ones(size, size, dtype=torch.bool, device=g.device).triu(1)
    if bool(begins.any()):
        segment = begins.cumsum(-1)
        apart = apart | (segment[..., :, None] != segment[..., None, :])
        from_start = gamma.masked_fill(segment != 0, -torch.inf).exp_()
    else:
        from_start = gamma.exp()
    between = (gamma[..., :, None] - gamma[..., None, :]).masked_fill_(apart, -torch.inf).exp_()
    return _Decay(between, from_start)


class _ChunkedRule(torch.autograd.Function):
    """(q, k, v, g, beta) split into chunks (N,B,H,C,…) and a state, to (o, state, surprise)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        narrow, wide = q.dtype, state.dtype
        between, from_start = _decay(g)
        keys_CC = (k @ k.mT).to(wide)
        mixing = (keys_CC * between).mul_(beta[..., None]).tril_(-1)
        identity = torch.eye(k.shape[-2], dtype=wide, device=k.device).expand_as(mixing)
        inverse = torch.linalg.solve_triangular(mixing, identity, upper=False, unitriangular=True).to(narrow)
        start, narrow_beta = from_start[..., None].to(narrow), beta[..., None].to(narrow)
        fresh = inverse @ (v * narrow_beta)
        reaction = inverse @ (k * (narrow_beta * start))
        write = k * between[..., -1, :, None].to(narrow)
        errors, states = torch.empty_like(v), q.new_empty(*q.shape[:3], *state.shape[2:])
        whole = from_start[..., -1, None, None]
        for n in range(k.shape[0]):
            states[n] = state
            torch.sub(fresh[n], reaction[n] @ states[n], out=errors[n])
            state = torch.addcmul((write[n].mT @ errors[n]).to(wide), whole[n], state)
        scores = (q @ k.mT).mul_(between.to(narrow))
        o = (q * start) @ states
        o += scores @ errors
        surprise = torch.linalg.vector_norm(errors, dim=-1, dtype=wide)
        ctx.save_for_backward(q, k, v, g, beta, keys_CC, inverse, fresh, reaction, errors, states, between, from_start)
        ctx.mark_non_differentiable(surprise)
        ctx.set_materialize_grads(False)
        return o, state, surprise

    @staticmethod
    def backward(ctx: Any, grad_o: Tensor | None, grad_state: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, keys_CC, inverse, fresh, reaction, errors, states, between, from_start = ctx.saved_tensors
        narrow, wide = q.dtype, keys_CC.dtype
        grad_o = torch.zeros_like(errors) if grad_o is None else grad_o.to(narrow).contiguous()
        if grad_state is None:
            grad_state = keys_CC.new_zeros(states.shape[1:])
        narrow_between, start = between.to(narrow), from_start[..., None].to(narrow)
        last = narrow_between[..., -1, :, None]
        read, write, whole = q * start, k * last, from_start[..., -1, None, None]

        scores = (q @ k.mT).mul_(narrow_between)
        grad_errors = scores.mT @ grad_o
        grad_write, grad_reaction, grad_states = torch.empty_like(k), torch.empty_like(k), torch.empty_like(states)
        for n in reversed(range(k.shape[0])):
            grad_states[n] = grad_state
            grad_errors[n] += write[n] @ grad_states[n]
            change = (read[n].mT @ grad_o[n]).sub_(reaction[n].mT @ grad_errors[n])
            grad_state = torch.addcmul(change.to(wide), whole[n], grad_state)
        torch.matmul(errors, grad_states.mT, out=grad_write)
        torch.matmul(grad_errors, states.mT, out=grad_reaction).neg_()
        grad_whole = _dot(states.flatten(-2), grad_states.flatten(-2), wide)

        from_value, from_key = inverse.mT @ grad_errors, inverse.mT @ grad_reaction
        grad_mixing = (from_value @ fresh.mT).add_(from_key @ reaction.mT).to(wide).neg_().tril_(-1)
        key_part = _dot(from_key, k, wide)
        narrow_beta = beta[..., None].to(narrow)
        grad_beta = _dot(from_value, v, wide) + key_part * from_start
        grad_v = from_value * narrow_beta

        mixed = grad_mixing.mul_(between)
        attenuated = mixed * keys_CC
        grad_beta += attenuated.sum(-1)
        grad_scores = grad_o @ errors.mT
        spread = attenuated.mul_(beta[..., None]).add_(grad_scores * scores)
        spread[..., -1, :] += _dot(grad_write, write, wide)
        mixed = mixed.mul_(beta[..., None]).to(narrow)
        attended = grad_scores.mul_(narrow_between)
        grad_read = grad_o @ states.mT
        grad_q = torch.addcmul(attended @ k, grad_read, start)
        grad_k = (mixed + mixed.mT) @ k
        grad_k += attended.mT @ q
        grad_k.addcmul_(grad_write, last).addcmul_(from_key, narrow_beta * start)

        grad_start = _dot(grad_read, q, wide) + key_part * beta
        grad_start[..., -1] += grad_whole
        grad_gamma = spread.sum(-1) - spread.sum(-2) + grad_start * from_start
        grad_g = grad_gamma.flip(-1).cumsum(-1).flip(-1).masked_fill_(g.isneginf(), 0.0)
        return grad_q, grad_k, grad_v, grad_g, grad_beta, grad_state


def _dot(x: Tensor, y: Tensor, wide: torch.dtype) -> Tensor:
    """Σ x·y over the last dimension, summed in the wide type."""
    return (x * y).sum(-1, dtype=wide)


def _split(x: Tensor, size: int) -> Tensor:
    """(B,T,H,…) to (N,B,H,C,…), zeros after the end: they decay nothing and write nothing."""
    padding = -x.shape[1] % size
    if padding:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding))
    chunks: Tensor = x.unflatten(1, (-1, size))
    return chunks.movedim(3, 1).movedim(2, 0).contiguous()


def _join(x: Tensor, length: int) -> Tensor:
    """(N,B,H,C,…) back to (B,T,H,…)."""
    joined: Tensor = x.movedim(0, 2).movedim(1, 3).flatten(1, 2)
    return joined[:, :length]
