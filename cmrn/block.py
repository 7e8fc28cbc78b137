"""A block of the model, and the losses of the blocks' routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.experts import ExpertPool
from cmrn.memory import MemoryAttention
from cmrn.memory.recall import Recall
from cmrn.records import BlockRecord, BlockState, CMRNState, EventState, Segments, TemporalState
from cmrn.routing import DynamicRouter, domain_loss, z_loss
from cmrn.temporal import TemporalAbstraction

__all__ = ["Block", "RouterLosses", "last_hidden"]


class Block(nn.Module):
    """Temporal layers, a memory read in the blocks chosen for it, then routed experts; each adds to the stream."""

    def __init__(self, config: CMRNConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.temporal = TemporalAbstraction(config)
        self.memory = MemoryAttention(config) if index in config.reading_blocks else None
        self.router = DynamicRouter(config, index)
        self.experts = ExpertPool(config)

    def forward(
        self,
        x_BTD: Tensor,
        previous: BlockState | None,
        segments: Segments,
        numbers_BT: Tensor,
        recall: Recall | None = None,
    ) -> tuple[Tensor, BlockRecord]:
        """(x_BTD, what the block did and carries). numbers_BT is what a router without logits hashes.

        recall: how long-term memory is read; None where it is not.
        """
        before = previous.temporal if previous else None
        x_BTD, layers = self.temporal.read(x_BTD, before, segments)
        temporal: tuple[TemporalState | EventState, ...] = layers
        memory = events = gate = shown = None
        if self.memory is not None and recall is not None:
            events, temporal = self.temporal.track(layers, before, segments)
            # Not looked at unless it matters: blocks that are built alike are compiled once.
            known = replace(recall, events=events, block=0 if recall.memory is None else self.index)
            held = previous.memory if previous else None
            x_BTD, memory, gate, shown = self.memory.recall(x_BTD, held, segments, known)
        elif self.memory is not None:
            x_BTD, memory = self.memory(x_BTD, previous and previous.memory, segments)
        tail_BTC, sums_BC = (previous.router_tail_BTC, previous.router_sums_BC) if previous else (None, None)
        routing, router_tail, router_sums = self.router.read(x_BTD, tail_BTC, segments, numbers_BT, sums_BC)
        x_BTD, ngram_tail, latent = self.experts(x_BTD, routing, previous and previous.ngram_tail_BTC, segments)
        state = BlockState(temporal, memory, router_tail, ngram_tail, router_sums)
        return x_BTD, BlockRecord(routing, latent, state, events, gate, shown)


class RouterLosses(nn.Module):
    """The losses of every learned router, means over blocks. owners_GE: whether expert e owns domain g, bool."""

    owners_GE: Tensor

    def __init__(self, owners_GE: Tensor) -> None:
        super().__init__()
        self.register_buffer("owners_GE", owners_GE, persistent=False)

    def forward(self, logits: Sequence[Tensor], domains_BT: Tensor | None, segments: Segments) -> tuple[Tensor, Tensor]:
        """(domain loss, z-loss) of the blocks' logits_BTE, scalars that carry gradient; without labels the first is 0.

        The blocks' logits go through the formulae together: on a GPU many small calls would cost more than the sums.
        """
        logits_LBTE = torch.stack(tuple(logits))
        real_BT = segments.real_BT if segments.real_BT is not None else logits_LBTE.new_ones(logits_LBTE.shape[1:3])
        router_z = z_loss(logits_LBTE, real_BT) / len(logits)
        if domains_BT is None or not len(self.owners_GE):
            return router_z.new_zeros(()), router_z
        domains_BT = domains_BT.masked_fill(~real_BT.bool(), -1)
        return domain_loss(logits_LBTE, domains_BT, self.owners_GE) / len(logits), router_z


def last_hidden(hidden_BTD: Tensor, segments: Segments, states: CMRNState | None) -> Tensor:
    """(B,D) of each row's last real token, what was carried where it has none."""
    if segments.real_BT is None:
        return hidden_BTD[:, -1]
    count_B = segments.real_BT.sum(1)
    last_BD = hidden_BTD[torch.arange(len(count_B), device=count_B.device), (count_B - 1).clamp(min=0)]
    before_BD = torch.zeros_like(last_BD) if states is None else states.last_hidden_BD.to(last_BD.dtype)
    return torch.where(count_B[:, None] > 0, last_BD, before_BD)
