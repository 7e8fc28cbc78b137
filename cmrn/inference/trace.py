"""Which expert handled what: the records of a forward pass, laid out token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from cmrn.errors import DataError
from cmrn.inference.generate import tokenizer_of
from cmrn.inference.trace_memory import EntryShare, entry_shares, shown_reads
from cmrn.model import CMRN
from cmrn.records import CMRNOutput, CMRNState, Event, EventChain, map_tensors
from cmrn.temporal.events import list_events
from cmrn.unseen import Unseen, UnseenScore, unowned_share

__all__ = ["ExpertTotal", "ExpertWeight", "TokenTrace", "Trace", "trace_text"]

CHUNK: Final = 2048


@dataclass(frozen=True)
class ExpertWeight:
    """An expert's share of one token, in [0, 1]."""

    name: str
    weight: float


@dataclass(frozen=True)
class ExpertTotal:
    """An expert, the domains it owns, and its mean share over all tokens, in [0, 1]."""

    name: str
    domains: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class TokenTrace:
    """One token's way through the model.

    text: the characters start to end of the traced text; a character split over tokens is given to each of them.
    experts: share of every routed expert, mean over blocks, largest first; sums to 1.
    blocks: the same for each block.
    memory: the long-term entries that the token read most, largest share first; none where the memory holds nothing.
    surprise: β‖v − α Sᵀk‖, mean over heads, of the last block.
    unowned: share of the router's belief that no domain's experts hold, in [0, 1]; None where none owns a domain.
    """

    text: str
    start: int
    end: int
    experts: tuple[ExpertWeight, ...]
    blocks: tuple[tuple[ExpertWeight, ...], ...]
    memory: tuple[EntryShare, ...]
    surprise: float
    unowned: float | None


@dataclass(frozen=True)
class Trace:
    """A text's way through the model.

    experts: every routed expert with its mean share over tokens, largest first; sums to 1.
    tokens: in the order of the text.
    events: spans of tokens, in order and without gaps.
    unseen: how much of the text no expert owns; None where none owns a domain.
    """

    experts: tuple[ExpertTotal, ...]
    tokens: tuple[TokenTrace, ...]
    events: tuple[Event, ...]
    unseen: UnseenScore | None

    def to_json(self) -> dict[str, Any]:
        """The keys `experts`, `tokens`, `events` and `unseen`, of plain lists, dicts, strings and numbers."""
        return {
            "experts": [{"name": e.name, "domains": list(e.domains), "weight": e.weight} for e in self.experts],
            "tokens": [
                {
                    "text": token.text,
                    "start": token.start,
                    "end": token.end,
                    "experts": _weights_json(token.experts),
                    "blocks": [_weights_json(block) for block in token.blocks],
                    "memory": [entry.to_json() for entry in token.memory],
                    "surprise": token.surprise,
                    "unowned": token.unowned,
                }
                for token in self.tokens
            ],
            "events": [
                {"start": e.start, "end": e.end, "surprise": e.surprise, "previous": e.previous} for e in self.events
            ],
            "unseen": None if self.unseen is None else self.unseen.to_json(),
        }


@dataclass(frozen=True)
class Reading:
    """What the forward passes over one text's chunks recorded, chunks joined.

    mean_TE: shares, mean over blocks. blocks_LTE: shares in each of L blocks. surprise_T: of the last block.
    unowned_T: see `TokenTrace`, or None. chains: one a chunk. memory: of each token, or nothing.
    """

    mean_TE: Tensor
    blocks_LTE: Tensor
    surprise_T: Tensor
    unowned_T: Tensor | None
    chains: tuple[EventChain, ...]
    memory: tuple[tuple[EntryShare, ...], ...] = ()


def trace_text(model: CMRN, text: str, unseen: Unseen | None = None) -> Trace:
    """How `model`, without dropout or routing noise, reads `text` from a fresh state.

    What the model's long-term memory holds is read, and nothing is added to it. A long text is read in chunks with
    carried state, so memory grows with its tokens and not with their logits.
    unseen: what is usual for the model (`read_unseen` of its folder); without it a score has no threshold.

    Raises:
        UsageError: the model has no tokenizer.
        DataError: the text is empty.
    """
    tokenizer = tokenizer_of(model)
    ids = tokenizer.encode(text)
    if not ids:
        raise DataError("there is nothing to trace: the text is empty")
    was_training = model.training
    model.eval()
    try:
        with shown_reads(model):
            reading = read(model, ids)
    finally:
        model.train(was_training)

    names = [expert.name for expert in model.config.named_experts]
    total_E = reading.mean_TE.double().mean(0)
    domains = {expert.name: expert.domains for expert in model.config.named_experts}
    experts = tuple(ExpertTotal(e.name, domains[e.name], e.weight) for e in _ranked(names, total_E.tolist()))
    mean = reading.mean_TE.tolist()
    blocks = reading.blocks_LTE.tolist()
    surprise = reading.surprise_T.tolist()
    unowned = [None] * len(ids) if reading.unowned_T is None else reading.unowned_T.tolist()
    tokens = tuple(
        TokenTrace(
            text=text[start:end],
            start=start,
            end=end,
            experts=_ranked(names, mean[t]),
            blocks=tuple(_ranked(names, block[t]) for block in blocks),
            memory=reading.memory[t] if reading.memory else (),
            surprise=surprise[t],
            unowned=unowned[t],
        )
        for t, (start, end) in enumerate(tokenizer.offsets(text))
    )
    return Trace(experts, tokens, list_events(reading.chains, row=0), _score(reading.unowned_T, unseen))


@torch.no_grad()
def read(model: CMRN, ids: Sequence[int]) -> Reading:
    """The routing and surprise of every token, read in chunks with carried state; tensors on the CPU."""
    means: list[Tensor] = []
    blocks: list[Tensor] = []
    unowned: list[Tensor] = []
    chains: list[EventChain] = []
    memory: list[tuple[EntryShare, ...]] = []
    states: CMRNState | None = None
    for start in range(0, len(ids), CHUNK):
        chunk_BT = torch.tensor([ids[start : start + CHUNK]], device=next(model.parameters()).device)
        output: CMRNOutput = model(chunk_BT, states=states)
        states = output.states
        means.append(output.routing_weights[0].cpu())
        blocks.append(torch.stack([routing.weights_BTE[0].cpu() for routing in output.routing]))
        unowned_BT = unowned_share(model.config, output.routing)
        if unowned_BT is not None:
            unowned.append(unowned_BT[0].cpu())
        if output.memory_hits and model.episodic is not None:
            memory.extend(entry_shares(output.memory_hits, model.episodic.namespaces))
        chains.append(map_tensors(output.event_chain, Tensor.cpu))
    surprise_T = torch.cat([chain.surprise_BT[0] for chain in chains])
    unowned_T = torch.cat(unowned) if unowned else None
    return Reading(torch.cat(means), torch.cat(blocks, 1), surprise_T, unowned_T, tuple(chains), tuple(memory))


def _score(unowned_T: Tensor | None, unseen: Unseen | None) -> UnseenScore | None:
    if unowned_T is None:
        return None
    threshold = None if unseen is None else unseen.threshold(len(unowned_T))
    return UnseenScore(float(unowned_T.double().mean()), threshold)


def _ranked(names: Sequence[str], weights: Sequence[float]) -> tuple[ExpertWeight, ...]:
    pairs = zip(names, weights, strict=True)
    return tuple(ExpertWeight(name, weight) for name, weight in sorted(pairs, key=lambda pair: -pair[1]))


def _weights_json(weights: Sequence[ExpertWeight]) -> list[dict[str, Any]]:
    return [{"name": weight.name, "weight": weight.weight} for weight in weights]
