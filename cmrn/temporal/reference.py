"""The gated delta rule as it is defined, one token at a time. Slow; every fast form is tested against it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gated_delta_rule"]


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """S_t = α_t S_{t-1} + k_t (β_t (v_t − α_t S_{t-1}ᵀ k_t))ᵀ and o_t = S_tᵀ q_t, with α = exp(g).

    Source: Yang, Kautz, Hatamizadeh 2024, "Gated Delta Networks", eq. 10. Differs: g = -inf starts a document afresh.
    Returns o_BTHV, the last state and the surprise ‖β (v − α Sᵀ k)‖_BTH, all in the inputs' type; every one of them
    carries gradient.
    """
    outputs, surprises = [], []
    for t in range(q_BTHK.shape[1]):
        decayed = g_BTH[:, t].exp()[..., None, None] * state_BHKV
        predicted = torch.einsum("bhkv,bhk->bhv", decayed, k_BTHK[:, t])
        error = beta_BTH[:, t, :, None] * (v_BTHV[:, t] - predicted)
        state_BHKV = decayed + torch.einsum("bhk,bhv->bhkv", k_BTHK[:, t], error)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state_BHKV, q_BTHK[:, t]))
        surprises.append(error.norm(dim=-1))
    return torch.stack(outputs, 1), state_BHKV, torch.stack(surprises, 1)
