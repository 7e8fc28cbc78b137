"""From logits to a choice of experts: top-k with Gumbel noise in training, without it in evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.records import Routing

__all__ = ["MOST_TOGETHER", "choose_experts", "fixed_choice", "hash_experts"]

MOST_TOGETHER = 128
"""Experts that a GPU chooses among in one launch; more take the plain form."""


def choose_experts(logits_BTE: Tensor, bias_E: Tensor, temperature: Tensor, k: int, *, noisy: bool) -> Routing:
    """The k experts with the largest logits/τ + bias (+ Gumbel noise), weighted by softmax(logits/τ).

    Weights are renormalised over the chosen and carry their gradient straight through the discrete choice, which has
    none; neither noise nor bias enters a weight. With k = 1 the gate is the expert's probability itself, since a
    renormalised weight would be 1 whatever the logits and leave no gradient. All in the type of the logits.
    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 3–5, with Gumbel noise; DeepSeek-V3 2024,
    eq. 16, for the bias.
    """
    if logits_BTE.is_cuda and logits_BTE.dtype == torch.float32 and logits_BTE.shape[-1] <= MOST_TOGETHER:
        return _choose_together(logits_BTE, bias_E, temperature, k, noisy=noisy)
    scaled_BTE = logits_BTE / temperature
    ranked_BTE = scaled_BTE.detach() + bias_E
    if noisy:
        uniform_BTE = torch.rand_like(ranked_BTE).clamp(min=torch.finfo(ranked_BTE.dtype).tiny)
        ranked_BTE = ranked_BTE - torch.log(-torch.log(uniform_BTE))
    chosen_BTK = ranked_BTE.topk(k, dim=-1).indices
    chosen_logits_BTK, order_BTK = scaled_BTE.gather(-1, chosen_BTK).sort(dim=-1, descending=True, stable=True)
    chosen_BTK = chosen_BTK.gather(-1, order_BTK)
    shares_BTK = chosen_logits_BTK.softmax(-1)
    weights_BTE = torch.zeros_like(logits_BTE).scatter(-1, chosen_BTK, shares_BTK)
    gates_BTK = scaled_BTE.softmax(-1).gather(-1, chosen_BTK) if k == 1 else shares_BTK
    return Routing(weights_BTE, chosen_BTK, gates_BTK, logits_BTE)


def _choose_together(logits_BTE: Tensor, bias_E: Tensor, temperature: Tensor, k: int, *, noisy: bool) -> Routing:
    """The same in one launch."""
    from cmrn.routing.choice_triton import choose

    uniform_NE = torch.rand_like(logits_BTE).flatten(0, 1) if noisy else None
    choice = choose(logits_BTE.flatten(0, 1), bias_E, temperature, uniform_NE, k)
    weights_BTE, chosen_BTK, gates_BTK = (each.unflatten(0, logits_BTE.shape[:2]) for each in choice)
    return Routing(weights_BTE, chosen_BTK, gates_BTK, logits_BTE)


def hash_experts(numbers_BT: Tensor, num_experts: int, k: int, salt: int | Tensor) -> Tensor:
    """(B,T,K) distinct experts, a fixed function of each number; spread evenly over the experts.

    The first is a multiplicative hash; the others follow it at equal steps round the list of experts.
    """
    mixed = (numbers_BT + 1) * 2_654_435_761 + salt * 40_503
    mixed = ((mixed >> 15) ^ mixed) & 0xFFFF_FFFF
    mixed = (mixed * 2_246_822_519) & 0xFFFF_FFFF
    first = (mixed >> 13) % num_experts
    steps = torch.arange(k, device=numbers_BT.device) * max(1, num_experts // k)
    return (first[..., None] + steps) % num_experts


def fixed_choice(chosen_BTK: Tensor, num_experts: int, dtype: torch.dtype) -> Routing:
    """Equal shares for experts that were chosen without logits."""
    shares_BTK = torch.full(chosen_BTK.shape, 1.0 / chosen_BTK.shape[-1], dtype=dtype, device=chosen_BTK.device)
    weights_BTE = F.one_hot(chosen_BTK, num_experts).to(dtype).sum(-2) / chosen_BTK.shape[-1]
    return Routing(weights_BTE, chosen_BTK, shares_BTK, None)
