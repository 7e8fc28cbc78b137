"""Routing: a visible choice of named experts for every token."""

from cmrn.routing.balance import balance_step, domain_loss, expert_load, z_loss
from cmrn.routing.dispatch import Dispatch, combine, dispatch
from cmrn.routing.gating import choose_experts
from cmrn.routing.router import DynamicRouter

__all__ = [
    "Dispatch",
    "DynamicRouter",
    "balance_step",
    "choose_experts",
    "combine",
    "dispatch",
    "domain_loss",
    "expert_load",
    "z_loss",
]
