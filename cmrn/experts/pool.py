"""All experts of a block: dispatch, run each on the tokens that chose it, combine, add the shared one."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.experts.module import ExpertModule
from cmrn.layers import CausalConv, Norm
from cmrn.records import Routing, Segments
from cmrn.routing.dispatch import Dispatch, combine, dispatch, gather_rows

__all__ = ["ExpertPool"]


class ExpertPool(nn.Module):
    """x + Σ_k gate_k · expert_k(norm(x)) + shared(norm(x)).

    Experts map tokens one by one. What a pattern expert sees of earlier tokens, the causal n-gram features, is computed
    on the whole stream before dispatch and its tail carried; so nothing leaks from later tokens and nothing depends on
    which tokens were dispatched together.
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.experts = nn.ModuleDict(
            {expert.name: ExpertModule(config.d_model, config.hidden, expert.type) for expert in config.named_experts}
        )
        self.shared = ExpertModule(config.d_model, config.hidden) if config.shared_expert else None
        reads_ngrams = any(expert.type == "pattern" for expert in config.named_experts)
        self.ngram = CausalConv(config.d_model, width=3) if reads_ngrams else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, routing: Routing, tail_BTC: Tensor | None, segments: Segments
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(x_BTD, n-gram tail to carry, latent divergence: a scalar, 0 without generative experts)."""
        u_BTD = self.norm(x_BTD)
        ngrams_BTD, tail = self.ngram(u_BTD, tail_BTC, segments) if self.ngram is not None else (None, None)
        y_ND, latent = self._routed(u_BTD, ngrams_BTD, routing, segments)
        if self.shared is not None:
            y_ND = y_ND + self.shared(u_BTD.flatten(0, 1))[0]
        return x_BTD + self.dropout(y_ND.view_as(x_BTD)), tail, latent

    def _routed(
        self, u_BTD: Tensor, ngrams_BTD: Tensor | None, routing: Routing, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        plan = dispatch(routing.indices_BTK.flatten(0, 1), len(self.experts))
        token_rows = gather_rows(u_BTD.flatten(0, 1), plan).split(plan.sizes_E)
        ngram_rows = token_rows
        if ngrams_BTD is not None:
            ngram_rows = gather_rows(ngrams_BTD.flatten(0, 1), plan).split(plan.sizes_E)
        real_rows = _real_rows(plan, segments).split(plan.sizes_E)
        outputs, divergences, counts = [], [], []
        for expert, own, context, real_M in zip(self.experts.values(), token_rows, ngram_rows, real_rows, strict=True):
            module = cast(ExpertModule, expert)
            y_MD, divergence_M = module(context if module.expert_type == "pattern" else own)
            outputs.append(y_MD)
            if divergence_M is not None:
                divergences.append((divergence_M * real_M).sum())
                counts.append(real_M.sum())
        latent = u_BTD.new_zeros(())
        if divergences:
            latent = torch.stack(divergences).sum() / torch.stack(counts).sum().clamp(min=1)
        return combine(torch.cat(outputs), plan, routing.gates_BTK.flatten(0, 1)), latent


def _real_rows(plan: Dispatch, segments: Segments) -> Tensor:
    """(M,) bool: True for the rows of real tokens, False for padding, of the text and of the dispatch."""
    real_NK = torch.ones_like(plan.place_NK, dtype=torch.bool)
    if segments.real_BT is not None:
        real_NK = segments.real_BT.view(-1, 1).expand_as(real_NK)
    nowhere_M = torch.zeros_like(plan.token_M, dtype=torch.bool)
    return nowhere_M.index_put_((plan.place_NK,), real_NK)
