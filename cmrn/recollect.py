"""Semantic recall: the stored passages nearest to a prompt, read before it.

A model with long-term memory reads each passage as a document of its own into its episodic memory, where the entries
keep the record they came from; one without reads them as text before the prompt. Passages are data: a special token
spelled in one is ordinary text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.errors import CMRNError
from cmrn.generation import PREFILL
from cmrn.memory.entries import NOTHING, SHARED
from cmrn.records import CMRNOutput, CMRNState
from cmrn.tokenizer import CMRNTokenizer

if TYPE_CHECKING:
    from cmrn.memory.entry import Hit
    from cmrn.memory.episodic import EpisodicMemory
    from cmrn.memory.passages import Passages
    from cmrn.memory.persistent import PersistentMemory

__all__ = ["PASSAGES", "Recollection", "Remembering", "readable_namespaces", "recollect"]

PASSAGES = 4
"""Most passages that a prompt recalls."""

PASSAGE_TOKENS = 1024
"""Most tokens of a passage that are read."""


class Remembering(Protocol):
    """A model that reads, and may have memories."""

    config: CMRNConfig
    tokenizer: CMRNTokenizer | None
    episodic: EpisodicMemory | None
    memory_system: PersistentMemory | Passages | None

    def __call__(  # noqa: D102
        self, input_ids: Tensor, *, states: CMRNState | None = None, update_memory: bool = False, use_memory: bool = ...
    ) -> CMRNOutput: ...


@dataclass(frozen=True)
class Recollection:
    """What a prompt brought to mind.

    hits: the passages, nearest first. namespaces: what may be read for this prompt, None for all. states: what the
    prompt goes on from, where the passages were read as text before it. tokens_read: none for passages read before.
    """

    hits: tuple[Hit, ...] = ()
    namespaces: frozenset[str] | None = None
    states: CMRNState | None = None
    tokens_read: int = 0


@torch.no_grad()
def recollect(
    model: Remembering, prompt_BT: Tensor, states: CMRNState | None = None, most: int = PASSAGES
) -> Recollection:
    """Recall at most `most` passages of model.memory_system for the rows of a prompt, and read them.

    states: of a text that the prompt goes on with; passages that are read as text come between the two.
    A passage that the episodic memory still holds is not read again; one changed or deleted since is forgotten.

    Raises:
        CMRNError: the model has no tokenizer.
        CheckpointError: the store is of another encoder, or was deleted while in use.
    """
    memory = passages_of(model.memory_system)
    if memory is None:
        return Recollection(states=states)
    if model.tokenizer is None:
        raise CMRNError("recalling passages needs text, and this model has no tokenizer",
                        hint="CMRN.from_pretrained attaches one; or pass CMRN(config, tokenizer)")  # fmt: skip
    if model.episodic is not None:
        _forget_changed(model.episodic, memory)
    allowed = readable_namespaces(model, prompt_BT, memory.namespaces())
    best: dict[int, Hit] = {}
    for text in {model.tokenizer.decode(row) for row in prompt_BT.tolist()}:
        for hit in memory.recall(text, most, allowed) if text.strip() else []:
            known = best.get(hit.record.record)
            best[hit.record.record] = hit if known is None or hit.score > known.score else known
    hits = tuple(sorted(best.values(), key=lambda hit: -hit.score)[:most])
    if model.episodic is None:
        states, read = _read_before(model, hits, prompt_BT, states)
        return Recollection(hits, allowed, states, read)
    return Recollection(hits, allowed, states, _read_into(model, model.episodic, memory, hits, prompt_BT.device))


def passages_of(memory: PersistentMemory | Passages | None) -> Passages | None:
    """The texts of a memory; None where it has none."""
    return memory.passages if isinstance(memory, nn.Module) else memory


def readable_namespaces(model: Remembering, prompt_BT: Tensor, names: Collection[str]) -> frozenset[str] | None:
    """The namespaces that a prompt may read: those of the experts that it is routed to most, and all of no expert's.

    None where none of them is an expert's, so that everything may be read.
    """
    experts = [expert.name for expert in model.config.named_experts]
    if not set(names) & set(experts):
        return None
    states, total_E = None, torch.zeros(len(experts), device=prompt_BT.device)
    for piece in prompt_BT.split(PREFILL, 1):
        output = model(piece, states=states, use_memory=False)
        states, total_E = output.states, total_E + output.routing_weights.float().sum((0, 1))
    chosen = {experts[place] for place in total_E.topk(model.config.routing_k).indices.tolist()}
    return frozenset(chosen) | (frozenset(names) - frozenset(experts))


def _read_into(
    model: Remembering,
    episodic: EpisodicMemory,
    memory: Passages,
    hits: Sequence[Hit],
    device: torch.device,
) -> int:
    """Read passages into episodic memory, the nearest last; how many tokens were read, which were not there already."""
    assert model.tokenizer is not None
    held, experts, read = _records_held(episodic), {expert.name for expert in model.config.named_experts}, 0
    for hit in reversed(hits):
        record = hit.record
        memory.read[record.record] = record.text
        ids = model.tokenizer.encode(record.text)[:PASSAGE_TOKENS]
        if record.record in held or not ids:
            continue
        episodic.begin(record.namespace if record.namespace in experts else SHARED, record.record)
        model(torch.tensor([ids], device=device), update_memory=True)
        read += len(ids)
    episodic.flush()
    return read


def _read_before(
    model: Remembering, hits: Sequence[Hit], prompt_BT: Tensor, states: CMRNState | None
) -> tuple[CMRNState | None, int]:
    """(the state after reading passages as text, the nearest last, and how many tokens that were)."""
    assert model.tokenizer is not None
    read = 0
    for hit in reversed(hits):
        ids = model.tokenizer.encode(hit.record.text)[:PASSAGE_TOKENS] + model.tokenizer.encode("\n\n")
        states = model(torch.tensor([ids], device=prompt_BT.device).expand(len(prompt_BT), -1), states=states).states
        read += len(ids)
    return states, read


def _records_held(episodic: EpisodicMemory) -> set[int]:
    """The records of which every memory block holds entries."""
    held = [set(block.entries().record_BN.unique().tolist()) if block.held is not None else set()
            for block in episodic.blocks.values()]  # fmt: skip
    return set.intersection(*held) if held else set()


def _forget_changed(episodic: EpisodicMemory, memory: Passages) -> None:
    """Make entries of records unreadable that the store no longer holds as they were read."""
    now = memory.texts(list(memory.read)) if memory.read else {}
    changed = [record for record, text in memory.read.items() if now.get(record) != text]
    for record in changed:
        del memory.read[record]
        for block in episodic.blocks.values():
            if block.held is not None:
                gone_BN = block.held.record_BN == record
                block.held.when_BN[gone_BN] = NOTHING
                block.held.record_BN[gone_BN] = NOTHING
