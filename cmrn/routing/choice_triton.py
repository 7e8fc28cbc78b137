"""The choice of experts on CUDA: rank, top-k, softmax and gates of a token in one launch, its gradient in another."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["choose", "pick_best"]


def choose(
    logits_NE: Tensor, bias_E: Tensor, temperature: Tensor, uniform_NE: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights_NE, indices_NK, gates_NK), as `cmrn.routing.gating.choose_experts` defines them.

    All float32 but the int64 indices; gradient reaches logits_NE. uniform_NE: draws from [0, 1) that the Gumbel noise
    is made of, None for a choice without noise. At equal logits the expert listed first counts as the larger.
    """
    weights_NE, indices_NK, gates_NK = torch.ops.cmrn.choose(logits_NE, bias_E, temperature, uniform_NE, k)
    return weights_NE, indices_NK, gates_NK


@torch.library.custom_op("cmrn::choose", mutates_args=())
def _choose(
    logits_NE: Tensor, bias_E: Tensor, temperature: Tensor, uniform_NE: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    logits_NE = logits_NE.contiguous()
    tokens, experts = logits_NE.shape
    weights_NE, indices_NK, gates_NK = _empty_choice(logits_NE, bias_E, temperature, uniform_NE, k)
    grid, tile = _tiles(tokens, experts)
    _choose_kernel[grid](
        logits_NE, bias_E.float(), temperature, uniform_NE, weights_NE, indices_NK, gates_NK, tokens, experts,
        CHOICES=k, NOISY=uniform_NE is not None, **tile,
    )  # fmt: skip
    return weights_NE, indices_NK, gates_NK


@_choose.register_fake
def _empty_choice(
    logits_NE: Tensor, bias_E: Tensor, temperature: Tensor, uniform_NE: Tensor | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, experts = logits_NE.shape
    indices_NK = logits_NE.new_empty(tokens, k, dtype=torch.int64)
    return logits_NE.new_empty(tokens, experts), indices_NK, logits_NE.new_empty(tokens, k)


@torch.library.custom_op("cmrn::choose_backward", mutates_args=())
def _choose_backward(
    logits_NE: Tensor,
    weights_NE: Tensor,
    indices_NK: Tensor,
    temperature: Tensor,
    dweights_NE: Tensor | None,
    dgates_NK: Tensor | None,
) -> Tensor:
    (tokens, experts), choices = logits_NE.shape, indices_NK.shape[1]
    dlogits_NE = torch.empty_like(logits_NE, memory_format=torch.contiguous_format)
    grid, tile = _tiles(tokens, experts)
    _choose_back_kernel[grid](
        logits_NE.contiguous(), weights_NE, indices_NK, temperature,
        None if dweights_NE is None else dweights_NE.contiguous(),
        None if dgates_NK is None else dgates_NK.contiguous(), dlogits_NE, tokens, experts, CHOICES=choices, **tile,
    )  # fmt: skip
    return dlogits_NE


@_choose_backward.register_fake
def _empty_gradient(logits_NE: Tensor, *others: Tensor | None) -> Tensor:
    return torch.empty_like(logits_NE, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_NE, _, temperature, _, _ = inputs
    weights_NE, indices_NK, _ = output
    ctx.save_for_backward(logits_NE, weights_NE, indices_NK, temperature)
    ctx.mark_non_differentiable(indices_NK)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, dweights_NE: Tensor | None, _: None, dgates_NK: Tensor | None) -> tuple[Tensor | None, ...]:
    if dweights_NE is None and dgates_NK is None:
        return None, None, None, None, None
    dlogits_NE = torch.ops.cmrn.choose_backward(*ctx.saved_tensors, dweights_NE, dgates_NK)
    return dlogits_NE, None, None, None, None


torch.library.register_autograd("cmrn::choose", _gradient, setup_context=_keep)


def _tiles(tokens: int, experts: int) -> tuple[tuple[int], dict[str, int]]:
    wide = triton.next_power_of_2(experts)
    rows = max(1, 512 // wide)
    return (triton.cdiv(tokens, rows),), {"ROWS": rows, "EXPERTS": wide}


@triton.jit
def _choose_kernel(logits_ptr, bias_ptr, temperature_ptr, uniform_ptr, weight_ptr, index_ptr, gate_ptr, tokens,
                   experts, CHOICES: tl.constexpr, NOISY: tl.constexpr, ROWS: tl.constexpr,
                   EXPERTS: tl.constexpr):  # fmt: skip
    token, expert = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, EXPERTS)[None, :]
    here, exists = token < tokens, expert < experts
    offset = token[:, None] * experts + expert
    mask = here[:, None] & exists
    scaled = tl.load(logits_ptr + offset, mask, 0.0) / tl.load(temperature_ptr)
    ranked = scaled + tl.load(bias_ptr + expert, exists, 0.0)
    if NOISY:
        uniform = tl.maximum(tl.load(uniform_ptr + offset, mask, 0.5), 1.1754943508222875e-38)
        ranked -= tl.log(-tl.log(uniform))
    pick_best(scaled, ranked, weight_ptr, index_ptr, gate_ptr, token, expert, here, experts, CHOICES, ROWS, EXPERTS)


@triton.jit
def pick_best(scaled, ranked, weight_ptr, index_ptr, gate_ptr, token, expert, here, experts, CHOICES: tl.constexpr,
              ROWS: tl.constexpr, EXPERTS: tl.constexpr):  # fmt: skip
    """Write the choice of some tokens: the largest of `ranked`, their softmax in `scaled`, and their gates."""
    exists = expert < experts
    offset = token[:, None] * experts + expert
    mask = here[:, None] & exists
    nothing = float("-inf")
    ranked = tl.where(exists, ranked, nothing)
    chosen = tl.zeros((ROWS, EXPERTS), tl.int32)
    for _ in tl.static_range(CHOICES):
        hit = expert == tl.minimum(tl.argmax(ranked, 1), experts - 1)[:, None]
        chosen = tl.where(hit, 1, chosen)
        ranked = tl.where(hit, nothing, ranked)

    left = tl.where(chosen == 1, scaled, nothing)
    raised = tl.exp(left - tl.max(left, 1)[:, None])
    share = raised / tl.sum(raised, 1)[:, None]
    tl.store(weight_ptr + offset, share, mask)
    if CHOICES == 1:
        every = tl.where(exists, scaled, nothing)
        every = tl.exp(every - tl.max(every, 1)[:, None])
        share = every / tl.sum(every, 1)[:, None]
    for i in tl.static_range(CHOICES):
        best = tl.minimum(tl.argmax(left, 1), experts - 1)
        hit = expert == best[:, None]
        tl.store(index_ptr + token * CHOICES + i, best.to(tl.int64), here)
        tl.store(gate_ptr + token * CHOICES + i, tl.sum(tl.where(hit, share, 0.0), 1), here)
        left = tl.where(hit, nothing, left)


@triton.jit
def _choose_back_kernel(logits_ptr, weight_ptr, index_ptr, temperature_ptr, dweight_ptr, dgate_ptr, out_ptr, tokens,
                        experts, CHOICES: tl.constexpr, ROWS: tl.constexpr, EXPERTS: tl.constexpr):  # fmt: skip
    """Gradient of a softmax, s (ds − ⟨s, ds⟩) / τ; over the chosen, but over all experts where one is chosen."""
    token, expert = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, EXPERTS)[None, :]
    here, exists = token < tokens, expert < experts
    offset = token[:, None] * experts + expert
    mask = here[:, None] & exists
    temperature = tl.load(temperature_ptr)
    ds = tl.zeros((ROWS, EXPERTS), tl.float32)
    if dgate_ptr is not None:
        for i in tl.static_range(CHOICES):
            hit = expert == tl.load(index_ptr + token * CHOICES + i, here, 0)[:, None]
            ds += tl.where(hit, tl.load(dgate_ptr + token * CHOICES + i, here, 0.0)[:, None], 0.0)
    if CHOICES == 1:
        every = tl.where(exists, tl.load(logits_ptr + offset, mask, 0.0) / temperature, float("-inf"))
        every = tl.exp(every - tl.max(every, 1)[:, None])
        share = every / tl.sum(every, 1)[:, None]
    else:
        share = tl.load(weight_ptr + offset, mask, 0.0)
        if dweight_ptr is not None:
            ds += tl.load(dweight_ptr + offset, mask, 0.0)
    tl.store(out_ptr + offset, share * (ds - tl.sum(share * ds, 1)[:, None]) / temperature, mask)
