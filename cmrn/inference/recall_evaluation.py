"""Held-out text read with a memory of other text: bits per byte with it and without, by domain, in one pass."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.data.deduplicate import Passages
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationBatch, EvaluationSet
from cmrn.inference.generate import tokenizer_of
from cmrn.inference.recall_following import ORDERS, Following, Strength, contexts
from cmrn.memory.store import MemoryStore
from cmrn.model import CMRN
from cmrn.records import CMRNState, Routing

__all__ = ["MemoryEvaluation", "StoredText", "evaluate_with_memory", "unstored"]

SCAN = 1000
MOST_REPEATED = 0.1
"""Share of a document's 13-word passages that may stand in the memory it is evaluated with."""


@dataclass(frozen=True)
class MemoryEvaluation:
    """Bits per byte by domain, each table with its "mean" over domains; tokens: how many were scored.

    bits_per_byte: with the memory; without: by the same logits alone. seconds: of the whole pass.
    """

    bits_per_byte: dict[str, float]
    without: dict[str, float]
    tokens: int
    seconds: float


@dataclass(frozen=True)
class StoredText:
    """What a store's texts say follows what, apart for every namespace that belongs to an expert.

    shared: of all other namespaces, which every token may read; owned: by the place of the expert in the model's list,
    for the tokens that the last block sends to it. texts: the records' texts.
    """

    shared: Following
    owned: Mapping[int, Following]
    texts: tuple[str, ...]

    @classmethod
    def read(cls, model: CMRN, store: MemoryStore) -> StoredText:
        """Count the texts of every sound record of a store.

        Raises:
            UsageError: the model has no tokenizer.
        """
        tokenizer = tokenizer_of(model)
        names = {expert.name: place for place, expert in enumerate(model.config.named_experts)}
        rows: dict[int | None, list[list[int]]] = defaultdict(list)
        texts: list[str] = []
        for numbers, _, _ in store.scan(batch=SCAN):
            records = store.get(numbers.tolist())
            texts.extend(record.text for record in records)
            encoded = tokenizer.encode_batch([record.text for record in records])
            for record, ids in zip(records, encoded, strict=True):
                rows[names.get(record.namespace)].append(ids)
        device = next(model.parameters()).device
        counted = {owner: Following.of(some, tokenizer.vocab_size).to(device) for owner, some in rows.items()}
        shared = counted.pop(None, None) or Following.of([], tokenizer.vocab_size).to(device)
        return cls(shared, {owner: each for owner, each in counted.items() if owner is not None}, tuple(texts))

    def counts(self, before_BTO: Tensor, ids_BT: Tensor, routing: Routing) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What `Following.counts` gives, over the namespaces that each token may read; routing: where."""
        found = self.shared.counts(before_BTO, ids_BT)
        for owner, following in self.owned.items():
            chosen_BT = (routing.indices_BTK == owner).any(-1)
            more = following.counts(before_BTO, ids_BT)
            found = [
                tuple(all_BT + own_BT * chosen_BT for all_BT, own_BT in zip(one, other, strict=True))  # type: ignore[misc]
                for one, other in zip(found, more, strict=True)
            ]
        return found


def unstored(documents: Sequence[Document], texts: Sequence[str]) -> tuple[Document, ...]:
    """The documents of which at most a tenth of the 13-word passages stand in the texts."""
    passages = Passages.of([*texts, *(document.text for document in documents)])
    seen = torch.zeros(passages.count, dtype=torch.bool)
    seen[torch.from_numpy(passages.numbers[: passages.bounds[len(texts)]])] = True
    kept = []
    for place, document in enumerate(documents, start=len(texts)):
        found = seen[torch.from_numpy(passages[place])]
        if not len(found) or float(found.float().mean()) <= MOST_REPEATED:
            kept.append(document)
    return tuple(kept)


def evaluate_with_memory(
    model: CMRN,
    evaluation_set: EvaluationSet,
    memory: StoredText,
    *,
    max_tokens: int | None = None,
    bfloat16: bool = False,
) -> MemoryEvaluation:
    """Read each domain's held-out text from the start, with states carried along, and the memory beside every logit.

    A token is predicted from what stands before it in its document, from the memory, and from how much the memory was
    worth in the text read before. The model is in eval mode meanwhile and left as it was. bfloat16: of the products.
    """
    was_training = model.training
    model.eval()
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            sums = {
                domain: _read(model, batches, memory, bfloat16)
                for domain, batches in evaluation_set.streams(max_tokens).items()
            }
    finally:
        model.train(was_training)
    with_memory, without = (
        _with_mean({name: sums_D[place] / math.log(2) / sums_D[3] for name, sums_D in sums.items() if sums_D[3]})
        for place in (0, 1)
    )
    scored = int(sum(sums_D[2] for sums_D in sums.values()))
    return MemoryEvaluation(with_memory, without, scored, time.perf_counter() - began)


def _read(
    model: CMRN, batches: Iterable[EvaluationBatch], memory: StoredText, bfloat16: bool
) -> tuple[float, float, int, int]:
    """(nats with memory, nats without, tokens scored, their bytes) of one domain."""
    device = next(model.parameters()).device
    strength, before = Strength(), _Before()
    states: CMRNState | None = None
    sums, scored, text_bytes = torch.zeros(2, dtype=torch.float64, device=device), 0, 0
    for batch in batches:
        ids_BT, documents_BT, mask_BT, scored_BT = (
            each.to(device)
            for each in (batch.input_ids_BT, batch.document_ids_BT, batch.attention_mask_BT, batch.scored_BT)
        )
        padded = not bool(batch.attention_mask_BT.all())
        with _products(device, bfloat16):
            output = model(ids_BT, None, mask_BT if padded else None, document_ids=documents_BT, states=states)
        logits_BTV, routing, context_BTO = before.shift(output.logits, output.routing[-1], ids_BT, documents_BT)
        model_N = F.cross_entropy(logits_BTV[scored_BT].float(), ids_BT[scored_BT], reduction="none")
        counts = memory.counts(context_BTO, ids_BT, routing)
        nats_N = strength.nats(model_N, [tuple(each[scored_BT] for each in one) for one in counts])  # type: ignore[misc]
        sums += torch.stack([nats_N.sum(), model_N.double().sum()])
        scored, text_bytes = scored + int(batch.scored_BT.sum()), text_bytes + batch.scored_bytes
        states = output.states
    return float(sums[0]), float(sums[1]), scored, text_bytes


class _Before:
    """Moves what predicts a token to that token's place, over the edges of windows too."""

    def __init__(self) -> None:
        self._logits_B1V: Tensor | None = None
        self._chosen_B1K: Tensor | None = None
        self._ids_BL: Tensor | None = None
        self._documents_BL: Tensor | None = None

    def shift(
        self, logits_BTV: Tensor, routing: Routing, ids_BT: Tensor, documents_BT: Tensor
    ) -> tuple[Tensor, Routing, Tensor]:
        """(logits that predict each of ids_BT, the routing where they were made, the contexts (B,T,ORDERS))."""
        logits = self._logits_B1V if self._logits_B1V is not None else torch.zeros_like(logits_BTV[:, :1])
        chosen_BTK = routing.indices_BTK
        chosen = self._chosen_B1K if self._chosen_B1K is not None else torch.zeros_like(chosen_BTK[:, :1])
        ids = self._ids_BL if self._ids_BL is not None else torch.zeros_like(ids_BT[:, :1]).expand(-1, ORDERS)
        documents = self._documents_BL if self._documents_BL is not None else torch.full_like(ids, -1)
        ids_BL, documents_BL = torch.cat([ids, ids_BT], 1), torch.cat([documents, documents_BT], 1)
        self._logits_B1V, self._chosen_B1K = logits_BTV[:, -1:], chosen_BTK[:, -1:]
        self._ids_BL, self._documents_BL = ids_BL[:, -ORDERS:], documents_BL[:, -ORDERS:]
        moved = torch.cat([logits, logits_BTV[:, :-1]], 1)
        chosen_before = torch.cat([chosen, chosen_BTK[:, :-1]], 1)
        routed = Routing(routing.weights_BTE, chosen_before, routing.gates_BTK, routing.logits_BTE)
        return moved, routed, contexts(ids_BL, documents_BL)[:, ORDERS:]


def _products(device: torch.device, bfloat16: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()


def _with_mean(table: dict[str, float]) -> dict[str, float]:
    return {**table, "mean": sum(table.values()) / len(table)} if table else {}
