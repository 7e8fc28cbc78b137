"""All experts of a block: dispatch, run each on the tokens that chose it, combine, add the shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.experts.generative import GenerativeUnit
from cmrn.experts.module import ExpertModule
from cmrn.experts.symbolic import SymbolicLogicUnit
from cmrn.layers import MOST_FEW, CausalConv, Norm
from cmrn.records import Routing, Segments
from cmrn.routing.dispatch import Dispatch, combine, dispatch, gather_rows

if TYPE_CHECKING:
    from cmrn.experts.mixture_triton import Units

__all__ = ["ExpertPool"]

KINDS = ("general", "pattern", "generative", "symbolic")


class ExpertPool(nn.Module):
    """x + Σ_k gate_k · expert_k(norm(x)) + shared(norm(x)).

    Experts map tokens one by one. What a pattern expert sees of earlier tokens, the causal n-gram features, is computed
    on the whole stream before dispatch and its tail carried; so nothing leaks from later tokens and nothing depends on
    which tokens were dispatched together.

    On CUDA all experts run in one call of `mixture_triton`; elsewhere, in float64 and at widths it does not take, one
    after the other.
    """

    table_2E: Tensor
    no_latent: Tensor

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
        types = [expert.type for expert in config.named_experts]
        self.pointwise = all(each in ("general", "pattern") for each in types)
        table = [[KINDS.index(each) for each in types], [types[:i].count(each) for i, each in enumerate(types)]]
        self.register_buffer("table_2E", torch.tensor(table, dtype=torch.int32), persistent=False)
        # Kept, since making a zero is a launch, of which a token should cost few.
        self.register_buffer("no_latent", torch.zeros(()), persistent=False)

    def forward(
        self, x_BTD: Tensor, routing: Routing, tail_BTC: Tensor | None, segments: Segments
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(x_BTD, n-gram tail to carry, latent divergence: a scalar, 0 without generative experts)."""
        if self.ngram is None and not self.training and self._are_few(x_BTD):
            y_ND = self._few(x_BTD, None, routing, self.norm)
            return y_ND.view_as(x_BTD), None, self.no_latent
        u_BTD = self.norm(x_BTD)
        ngrams_BTD, tail = self.ngram(u_BTD, tail_BTC, segments) if self.ngram is not None else (None, None)
        if self._are_few(u_BTD):
            y_ND, latent = self._few(u_BTD, ngrams_BTD, routing), self.no_latent
        elif self._is_all(u_BTD):
            y_ND, latent = self._together(u_BTD, ngrams_BTD, routing, segments, x_BTD)
            return y_ND.view_as(x_BTD), tail, latent
        else:
            run = self._together if self._can_run_together(u_BTD) else self._one_by_one
            y_ND, latent = run(u_BTD, ngrams_BTD, routing, segments)
            if self.shared is not None:
                y_ND = y_ND + self.shared(u_BTD.flatten(0, 1))[0]
        return x_BTD + self.dropout(y_ND.view_as(x_BTD)), tail, latent

    def _are_few(self, u_BTD: Tensor) -> bool:
        """Whether the two launches for a few tokens do: on CUDA, without gradient, general and pattern experts."""
        few = u_BTD.is_cuda and u_BTD.shape[0] * u_BTD.shape[1] <= MOST_FEW and u_BTD.dtype != torch.float64
        return few and self.pointwise and not torch.is_grad_enabled()

    def _few(self, u_BTD: Tensor, ngrams_BTD: Tensor | None, routing: Routing, norm: Norm | None = None) -> Tensor:
        """What the experts add to the stream; with a norm, of which u is then the input, the stream after them."""
        from cmrn.experts.few_triton import mixture_of_few

        modules = [*self._modules_E(), *([] if self.shared is None else [self.shared])]
        return mixture_of_few(
            u_BTD.flatten(0, 1),
            None if ngrams_BTD is None else ngrams_BTD.flatten(0, 1),
            routing.indices_BTK.flatten(0, 1),
            routing.gates_BTK.flatten(0, 1),
            [module.up.weight for module in modules],
            [module.down.weight for module in modules],
            self.table_2E,
            None if norm is None else norm.weight,
            0.0 if norm is None else norm.eps,
        )

    def _can_run_together(self, u_BTD: Tensor) -> bool:
        """Whether the kernels take it: on CUDA, not in float64, and every row begins at a multiple of 16 bytes."""
        widths = (u_BTD.shape[-1], self._modules_E()[0].down.in_features)
        aligned = all(width * u_BTD.element_size() % 16 == 0 for width in widths)
        return u_BTD.is_cuda and u_BTD.dtype != torch.float64 and aligned

    def _one_by_one(
        self, u_BTD: Tensor, ngrams_BTD: Tensor | None, routing: Routing, segments: Segments
    ) -> tuple[Tensor, Tensor]:
        plan = dispatch(routing.indices_BTK.flatten(0, 1), len(self.experts))
        token_rows = gather_rows(u_BTD.flatten(0, 1), plan).split(plan.sizes_E)
        ngram_rows = token_rows
        if ngrams_BTD is not None:
            ngram_rows = gather_rows(ngrams_BTD.flatten(0, 1), plan).split(plan.sizes_E)
        real_rows = _real_rows(plan, segments).split(plan.sizes_E)
        outputs, divergences, counts = [], [], []
        for module, own, context, real_M in zip(self._modules_E(), token_rows, ngram_rows, real_rows, strict=True):
            y_MD, divergence_M = module(context if module.expert_type == "pattern" else own)
            outputs.append(y_MD)
            if divergence_M is not None:
                divergences.append((divergence_M * real_M).sum())
                counts.append(real_M.sum())
        latent = u_BTD.new_zeros(())
        if divergences:
            latent = torch.stack(divergences).sum() / torch.stack(counts).sum().clamp(min=1)
        return combine(torch.cat(outputs), plan, routing.gates_BTK.flatten(0, 1)), latent

    def _is_all(self, u_BTD: Tensor) -> bool:
        """Whether nothing but the sum over a token's choices is added to the stream, so that one kernel does both."""
        dropped = self.training and self.dropout.p > 0
        return self.shared is None and not dropped and self._can_run_together(u_BTD)

    def _together(
        self,
        u_BTD: Tensor,
        ngrams_BTD: Tensor | None,
        routing: Routing,
        segments: Segments,
        x_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        from cmrn.experts.mixture_triton import mixture

        units = self._units()
        noisy = self.training and units.kinds.generative
        seed = torch.randint(0, 2**31 - 1, (1,), device=u_BTD.device) if noisy else None
        return mixture(
            u_BTD.flatten(0, 1),
            None if ngrams_BTD is None else ngrams_BTD.flatten(0, 1),
            routing.indices_BTK.flatten(0, 1),
            routing.gates_BTK.flatten(0, 1),
            units,
            None if segments.real_BT is None else segments.real_BT.flatten(),
            seed,
            None if x_BTD is None else x_BTD.flatten(0, 1),
        )

    def _units(self) -> Units:
        from cmrn.experts.mixture_triton import Units
        from cmrn.experts.units_triton import Kinds

        modules = self._modules_E()
        types = {module.expert_type for module in modules}
        inners = [module.inner for module in modules]
        latents: list[Tensor] = [inner.log_sigma for inner in inners if isinstance(inner, GenerativeUnit)]
        logic = [inner for inner in inners if isinstance(inner, SymbolicLogicUnit)]
        return Units(
            [module.up.weight for module in modules],
            [module.down.weight for module in modules],
            self.table_2E,
            Kinds("pattern" in types, "generative" in types, "symbolic" in types),
            torch.stack(latents) if latents else None,
            torch.stack([unit.selection for unit in logic]).softmax(2) if logic else None,
            torch.stack([unit.conjunction for unit in logic]).sigmoid() if logic else None,
            torch.stack([unit.strength for unit in logic]).sigmoid() if logic else None,
        )

    def _modules_E(self) -> list[ExpertModule]:
        return [cast(ExpertModule, module) for module in self.experts.values()]


def _real_rows(plan: Dispatch, segments: Segments) -> Tensor:
    """(M,) bool: True for the rows of real tokens, False for padding, of the text and of the dispatch."""
    real_NK = torch.ones_like(plan.place_NK, dtype=torch.bool)
    if segments.real_BT is not None:
        real_NK = segments.real_BT.view(-1, 1).expand_as(real_NK)
    nowhere_M = torch.zeros_like(plan.token_M, dtype=torch.bool)
    return nowhere_M.index_put_((plan.place_NK,), real_NK)
