"""What keeps a router honest: a loss that names its experts, a loss that bounds its logits, a bias that balances."""

from __future__ import annotations

import torch
from torch import Tensor

from cmrn.records import Routing

__all__ = ["balance_step", "domain_loss", "expert_load", "z_loss"]


def domain_loss(logits_BTE: Tensor, domain_BT: Tensor, owners_GE: Tensor) -> Tensor:
    """Mean of −log Σ_{e owns g} softmax(logits)_e over the tokens labelled with a domain g; nats, 0 where none is.

    domain_BT: index into the owned domains, −1 for unlabelled text, which adds nothing. owners_GE: bool.
    """
    labelled_BT = domain_BT >= 0
    owned_BTE = owners_GE[domain_BT.clamp(min=0)]
    inside_BT = logits_BTE.masked_fill(~owned_BTE, -torch.inf).logsumexp(-1)
    nats_BT = logits_BTE.logsumexp(-1) - inside_BT
    return nats_BT.masked_fill(~labelled_BT, 0.0).sum() / labelled_BT.sum().clamp(min=1)


def z_loss(logits_BTE: Tensor, real_BT: Tensor) -> Tensor:
    """Mean of (log Σ_e exp logits_e)² over real tokens (Zoph et al. 2022, "ST-MoE", eq. 5)."""
    squared_BT = logits_BTE.logsumexp(-1).square()
    return (squared_BT * real_BT).sum() / real_BT.sum().clamp(min=1)


def expert_load(routing: Routing, real_BT: Tensor | None = None) -> Tensor:
    """(E,) share of the choices each expert received; sums to 1; no gradient."""
    chosen_BTE = (routing.weights_BTE.detach() > 0).float()
    if real_BT is not None:
        chosen_BTE = chosen_BTE * real_BT[..., None]
    counts_E = chosen_BTE.flatten(0, 1).sum(0)
    return counts_E / counts_E.sum().clamp(min=1)


@torch.no_grad()
def balance_step(bias_E: Tensor, load_E: Tensor, rate: float) -> None:
    """Raise in place the bias of experts below the mean load by `rate`, lower that of those above.

    Source: DeepSeek-V3 2024, section 2.1.2. Called after the optimizer's step, never between forward and backward.
    """
    bias_E += rate * torch.sign(load_E.mean() - load_E).to(bias_E.dtype)
