"""What is worth remembering, and how a token weighs what was remembered."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import Linear
from cmrn.records import EventChain

__all__ = ["Salience"]

LEAST_SURPRISE = 1e-6
OPEN = 2.0
"""Where the gate starts, before its sigmoid: nearly open, so that every entry can first show what it is worth."""


class Salience(nn.Module):
    """The learned parts of long-term memory: a gate for each entry, and sharpness and recency of each reading token.

    An entry's salience log σ(w·u + a log surprise + e [an event begins] + b) is at most 0. It is added to the scores
    of those that read the entry, so it is learned from them; it also decides which entries stay. A token and head
    read at sharpness r (1 + g log(1 + total)) and prefer the recent by w·u + c, in nats per log(total / age).
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        heads = config.memory_heads
        self.salience = Linear(config.d_model, 1)
        self.recency = Linear(config.d_model, heads)
        nn.init.zeros_(self.salience.weight)
        nn.init.zeros_(self.recency.weight)
        self.surprise_weight = nn.Parameter(torch.ones(()))
        self.event_weight = nn.Parameter(torch.ones(()))
        self.salience_bias = nn.Parameter(torch.full((), OPEN))
        self.recency_bias = nn.Parameter(torch.linspace(0.0, 1.0, heads))
        self.log_sharpness = nn.Parameter(torch.zeros(heads))
        self.growth = nn.Parameter(torch.zeros(heads))

    def gate(self, u_BTD: Tensor, events: EventChain) -> Tensor:
        """(B,T) salience of each token's entry, at most 0, at least float32."""
        wide = torch.promote_types(u_BTD.dtype, torch.float32)
        surprise_BT = events.surprise_BT.to(wide).clamp(min=LEAST_SURPRISE).log()
        told_BT = self.salience(u_BTD)[..., 0].to(wide)
        told_BT = told_BT + self.surprise_weight * surprise_BT + self.event_weight * events.begins_BT
        return F.logsigmoid(told_BT + self.salience_bias)

    def reading(self, u_BTD: Tensor, total_BT: Tensor) -> tuple[Tensor, Tensor]:
        """(sharpness_BTH, slope_BTH), at least float32."""
        wide = torch.promote_types(u_BTD.dtype, torch.float32)
        grown_BTH = 1 + self.growth * total_BT.clamp(min=0).to(wide).log1p()[..., None]
        return self.log_sharpness.exp() * grown_BTH, self.recency(u_BTD).to(wide) + self.recency_bias
