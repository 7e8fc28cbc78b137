"""What experts do over a set of texts: the analyses of Muennighoff et al. 2024, "OLMoE", section 5, but for saturation.

Co-activation: of the tokens that expert i reads, the share that expert j reads too, in each block. Domain
specialisation: of a domain's tokens, the share that an expert reads, in each block. Token specialisation: of the
occurrences of a vocabulary entry, the share that an expert reads, mean over blocks; entries are input tokens.
Saturation needs a second checkpoint: `cmrn.inference.compare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from cmrn.data.evaluation import EvaluationBatch, EvaluationSet
from cmrn.inference.generate import tokenizer_of
from cmrn.model import CMRN
from cmrn.records import CMRNOutput, CMRNState
from cmrn.tokenizer import CMRNTokenizer
from cmrn.unseen import DocumentScores, Unseen, unowned_share

__all__ = ["Analysis", "DomainUse", "ExpertUse", "Passage", "TokenShare", "analyse", "read_batches"]

SHOWN_TOKENS: Final = 20
SHOWN_PASSAGES: Final = 8
PASSAGE: Final = 32
SHORTEST_PASSAGE: Final = 4
PRIOR: Final = 8
"""Tokens are ranked by share·n/(n + 8) of n occurrences, so that one seen once does not come first."""


@dataclass(frozen=True)
class TokenShare:
    """A vocabulary entry: how often it was read, and for which share of that, mean over blocks, by the expert."""

    text: str
    count: int
    share: float


@dataclass(frozen=True)
class Passage:
    """At most 32 tokens of one document, and the expert's mean routing weight on them, in [0, 1]."""

    text: str
    domain: str
    weight: float


@dataclass(frozen=True)
class ExpertUse:
    """What one expert handled.

    domains: those it owns. weight: its mean routing weight over the domains read. specialisation: the mean, over the
    tokens it read, of the share of their vocabulary entry that it read; with nothing but chance it is `used`, the share
    of all tokens that it read. tokens, passages: what it handles most.
    """

    name: str
    domains: tuple[str, ...]
    weight: float
    used: float
    specialisation: float
    tokens: tuple[TokenShare, ...]
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class DomainUse:
    """One domain's tokens: how many, the mean routing weight of every expert, and how much of them none owns.

    chosen_LE: share of the tokens that each expert read, by block. unowned: see `cmrn.unseen`; None where no expert
    owns a domain. unseen: share of the documents that no expert owns, None where there is no threshold.
    """

    name: str
    tokens: int
    weights: tuple[float, ...]
    chosen_LE: tuple[tuple[float, ...], ...]
    unowned: float | None
    unseen: float | None

    @property
    def chosen_E(self) -> tuple[float, ...]:
        """`chosen_LE`, mean over blocks."""
        return tuple(sum(column) / len(column) for column in zip(*self.chosen_LE, strict=True))


@dataclass(frozen=True)
class Analysis:
    """The analyses of a set of texts.

    co_activation_LEE[l][i][j]: of expert i's tokens, the share that expert j reads too, in block l.
    """

    experts: tuple[ExpertUse, ...]
    domains: tuple[DomainUse, ...]
    co_activation_LEE: tuple[tuple[tuple[float, ...], ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers; matrices are in the order of `experts`."""
        return {
            "experts": [each.name for each in self.experts],
            "domain_specialisation": {each.name: _lists(each.chosen_LE) for each in self.domains},
            "domain_weights": {each.name: list(each.weights) for each in self.domains},
            "co_activation": [_lists(block) for block in self.co_activation_LEE],
            "token_specialisation": {
                each.name: {
                    "used": each.used,
                    "specialisation": each.specialisation,
                    "tokens": [vars(token) for token in each.tokens],
                    "passages": [vars(passage) for passage in each.passages],
                }
                for each in self.experts
            },
            "unseen": {each.name: {"score": each.unowned, "documents": each.unseen} for each in self.domains},
            "tokens": {each.name: each.tokens for each in self.domains},
        }


def analyse(model: CMRN, texts: EvaluationSet, unseen: Unseen | None = None, max_tokens: int | None = None) -> Analysis:
    """Read the first `max_tokens` of every domain's text, or all of it, and count what each expert did.

    Raises:
        UsageError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    counts = _Counts(model)
    for domain, batch, output in read_batches(model, texts, max_tokens):
        counts.add(domain, batch, output)
    experts = tuple(counts.expert(index, tokenizer) for index in range(model.config.num_experts))
    pairs_LEE = counts.pairs_LEE / counts.pairs_LEE.diagonal(dim1=1, dim2=2).clamp(min=1)[..., None]
    return Analysis(
        experts,
        tuple(domain.use(name, unseen) for name, domain in counts.domains.items() if domain.tokens),
        tuple(tuple(tuple(row) for row in block) for block in pairs_LEE.tolist()),
    )


@torch.no_grad()
def read_batches(
    model: CMRN, texts: EvaluationSet, max_tokens: int | None = None
) -> Iterator[tuple[str, EvaluationBatch, CMRNOutput]]:
    """(domain, window, output) of every window in order, states carried; the model is left as it was."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        for domain, batches in texts.streams(max_tokens).items():
            states: CMRNState | None = None
            for batch in batches:
                mask_BT = None if bool(batch.attention_mask_BT.all()) else batch.attention_mask_BT.to(device)
                output = model(
                    batch.input_ids_BT.to(device),
                    attention_mask=mask_BT,
                    document_ids=batch.document_ids_BT.to(device),
                    states=states,
                )
                states = output.states
                yield domain, batch, output
    finally:
        model.train(was_training)


class _DomainCounts:
    """Sums over one domain's tokens, float64."""

    def __init__(self, blocks: int, experts: int) -> None:
        self.tokens = 0
        self.weights_E = torch.zeros(experts, dtype=torch.float64)
        self.chosen_LE = torch.zeros(blocks, experts, dtype=torch.float64)
        self.documents: DocumentScores | None = None

    def use(self, name: str, unseen: Unseen | None) -> DomainUse:
        unowned = None if self.documents is None else self.documents.mean
        share = None if self.documents is None or unseen is None else self.documents.unseen_share(unseen)
        chosen = tuple(tuple(row) for row in (self.chosen_LE / self.tokens).tolist())
        return DomainUse(name, self.tokens, tuple((self.weights_E / self.tokens).tolist()), chosen, unowned, share)


class _Counts:
    """Sums over all tokens read."""

    def __init__(self, model: CMRN) -> None:
        self.config = model.config
        blocks, experts = model.config.num_blocks, model.config.num_experts
        self.domains: dict[str, _DomainCounts] = {}
        self.pairs_LEE = torch.zeros(blocks, experts, experts, dtype=torch.float64)
        self.entries_VE = torch.zeros(model.config.vocab_size, experts, dtype=torch.float64)
        self.entries_V = torch.zeros(model.config.vocab_size, dtype=torch.float64)
        self.passages: list[list[tuple[float, str, int, tuple[int, ...]]]] = [[] for _ in range(experts)]

    def add(self, name: str, batch: EvaluationBatch, output: CMRNOutput) -> None:
        """Count a window's real tokens N."""
        real_BT = batch.attention_mask_BT
        ids_N = batch.input_ids_BT[real_BT]
        weights_LNE = torch.stack([block.weights_BTE.cpu()[real_BT] for block in output.routing]).double()
        chosen_LNE = (weights_LNE > 0).double()
        weights_NE = weights_LNE.mean(0)
        domain = self.domains.setdefault(name, _DomainCounts(len(weights_LNE), weights_LNE.shape[-1]))
        domain.tokens += len(ids_N)
        domain.weights_E += weights_NE.sum(0)
        domain.chosen_LE += chosen_LNE.sum(1)
        self.pairs_LEE += chosen_LNE.mT @ chosen_LNE
        self.entries_VE.index_add_(0, ids_N, chosen_LNE.mean(0))
        self.entries_V.index_add_(0, ids_N, torch.ones(len(ids_N), dtype=torch.float64))
        unowned_BT = unowned_share(self.config, output.routing)
        if unowned_BT is not None:
            domain.documents = domain.documents or DocumentScores()
            domain.documents.add(unowned_BT.cpu(), batch.document_ids_BT, real_BT)
        self._add_passages(name, batch, weights_NE)

    def _add_passages(self, name: str, batch: EvaluationBatch, weights_NE: Tensor) -> None:
        """Keep what each expert weighed most; a passage lies in one document and in one cell of a grid of 32 tokens."""
        real_BT, documents_BT = batch.attention_mask_BT, batch.document_ids_BT
        begins_BT = torch.ones_like(real_BT)
        begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        begins_BT[:, ::PASSAGE] = True
        firsts_P = begins_BT[real_BT].nonzero()[:, 0]
        lengths_P = torch.diff(firsts_P, append=torch.tensor([len(weights_NE)]))
        sums_NE = torch.cat([weights_NE.new_zeros(1, weights_NE.shape[1]), weights_NE.cumsum(0)])
        means_PE = (sums_NE[firsts_P + lengths_P] - sums_NE[firsts_P]) / lengths_P[:, None]
        means_PE[lengths_P < SHORTEST_PASSAGE] = -1.0
        ids_N, documents_N = batch.input_ids_BT[real_BT], documents_BT[real_BT]
        best = means_PE.topk(min(SHOWN_PASSAGES, len(means_PE)), dim=0)
        for expert, kept in enumerate(self.passages):
            for weight, place in zip(best.values[:, expert].tolist(), best.indices[:, expert].tolist(), strict=True):
                first, length = int(firsts_P[place]), int(lengths_P[place])
                if weight > 0:
                    kept.append((weight, name, int(documents_N[first]), tuple(ids_N[first : first + length].tolist())))
            kept.sort(key=lambda each: -each[0])
            one_a_document = {each[1:3]: each for each in reversed(kept)}
            kept[:] = sorted(one_a_document.values(), key=lambda each: -each[0])[:SHOWN_PASSAGES]

    def expert(self, index: int, tokenizer: CMRNTokenizer) -> ExpertUse:
        """What one expert did."""
        expert = self.config.named_experts[index]
        own_V, seen_V = self.entries_VE[:, index], self.entries_V.clamp(min=1)
        share_V = own_V / seen_V
        rank_V = share_V * self.entries_V / (self.entries_V + PRIOR)
        tokens = tuple(
            TokenShare(tokenizer.decode([entry]), int(self.entries_V[entry]), float(share_V[entry]))
            for entry in rank_V.topk(min(SHOWN_TOKENS, len(rank_V))).indices.tolist()
            if own_V[entry] > 0
        )
        passages = tuple(
            Passage(tokenizer.decode(ids), domain, weight) for weight, domain, _, ids in self.passages[index]
        )
        weights = [float(each.weights_E[index]) / each.tokens for each in self.domains.values() if each.tokens]
        return ExpertUse(
            expert.name,
            expert.domains,
            sum(weights) / max(1, len(weights)),
            float(own_V.sum() / self.entries_V.sum().clamp(min=1)),
            float((own_V * share_V).sum() / own_V.sum().clamp(min=1e-12)),
            tokens,
            passages,
        )


def _lists(rows: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    return [list(row) for row in rows]
