"""The memory that a model queries and writes: in this process's memory, or in a durable store of texts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmrn.errors import UsageError
from cmrn.memory.slots import Slots

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder
    from cmrn.memory.passages import Passages
    from cmrn.memory.populate import PopulateResult

__all__ = ["MemoryHits", "PersistentMemory"]

NO_STORE = 'PersistentMemory(store=Path("memory"))'


@dataclass(frozen=True)
class MemoryHits:
    """What queries found, best first; `...` are the queries' own dimensions, M at most k.

    keys, values: (…,M,D). scores: inner products of query and key, (…,M). records: their numbers, int64 (…,M).
    Gradient reaches the query through scores, and through values what made them, where that requires it.
    """

    keys_MD: Tensor
    values_MD: Tensor
    scores_M: Tensor
    records_M: Tensor


class PersistentMemory(nn.Module):
    """Keys found by their inner product with a query, and their values; the least recently used makes room.

    store: a folder, where the memory is then durable, in float32; without one it lives with the module, on the device
    and in the type of what is first written. update_rate: how far a write moves the near-duplicate
    (cosine 0.999 or more, in one namespace) that it meets instead of being added. embedder: what `populate_from_text`
    uses; by default all-MiniLM-L6-v2.

    >>> memory = PersistentMemory(2)
    >>> memory.update(torch.eye(2)).tolist()
    [1, 2]
    >>> memory.query(torch.tensor([3.0, 1.0]), k=1).scores_M.tolist()
    [3.0]

    Raises:
        UsageError: a width or size below 1, or a rate outside [0, 1].
        CheckpointError: `store` is no store, a damaged one, or one of vectors of another width.
        LockedError: another process is writing to it.
    """

    def __init__(
        self,
        memory_dim: int = 384,
        max_size: int = 1_000_000,
        *,
        store: Path | None = None,
        update_rate: float = 0.01,
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__()
        if memory_dim < 1 or max_size < 1 or not 0 <= update_rate <= 1:
            raise UsageError("memory_dim and max_size must be 1 or more, and update_rate in [0, 1]")
        self.memory_dim, self.max_size, self.update_rate = memory_dim, max_size, update_rate
        self._embedder = embedder
        self._folder = store
        self._passages: Passages | None = None
        self._slots = Slots(memory_dim, max_size, update_rate)
        self._stored = None
        if store is not None:
            from cmrn.memory.stored import Stored

            self._stored = Stored(store, memory_dim, max_size, update_rate)

    @property
    def passages(self) -> Passages | None:
        """The texts of its durable store, to be recalled by a model; None without one, or before it is made.

        Raises:
            CheckpointError: the store was damaged, or deleted, since.
        """
        if self._passages is None and self._folder is not None and self._stored is not None and len(self._stored):
            from cmrn.memory.passages import Passages

            self._passages = Passages(self._folder, self._embedder)
        return self._passages

    def __len__(self) -> int:
        """How many records it holds."""
        return len(self._slots) if self._stored is None else len(self._stored)

    def query(self, vectors: Tensor, k: int = 32, namespaces: Collection[str] | None = None) -> MemoryHits:
        """The at most k records whose keys have the largest inner products with each of `vectors`, (…,D).

        M is 0 where there are none. namespaces: where given, of these alone.

        Raises:
            UsageError: k below 1, or vectors of another width.
        """
        if k < 1:
            raise UsageError(f"k must be 1 or more, and is {k}")
        queries_QD = self._rows(vectors)
        if self._stored is None:
            slots_QM = self._slots.search(queries_QD, k, namespaces)
            keys_QMD, values_QMD = self._slots.keys_ND[slots_QM], self._slots.values(slots_QM)
            records_QM = self._slots.records_N[slots_QM]
        else:
            keys_QMD, values_QMD, records_QM = self._stored.search(queries_QD, k, namespaces)
        keys_QMD, values_QMD = keys_QMD.to(vectors), values_QMD.to(vectors)
        shape, found = vectors.shape[:-1], records_QM.shape[1]
        return MemoryHits(
            keys_MD=keys_QMD.view(*shape, found, self.memory_dim),
            values_MD=values_QMD.view(*shape, found, self.memory_dim),
            scores_M=torch.einsum("qd,qmd->qm", queries_QD, keys_QMD).view(*shape, found),
            records_M=records_QM.to(vectors.device).view(*shape, found),
        )

    def update(
        self,
        keys: Tensor,
        values: Tensor | None = None,
        *,
        namespace: str = "default",
        texts: Sequence[str] | None = None,
        source: str = "",
        origin: str = "model",
        trust: float = 1.0,
    ) -> Tensor:
        """Write keys, (…,D), and their values, by default the keys; the number of each one's record, int64 (…).

        What does not fit replaces the least recently used; of more new ones than `max_size` the last stay, the others'
        number is -1. Keys carry no gradient once written, values do, until `detach` or, in a durable store, `close`.
        texts, source, origin and trust go into a durable store.

        Raises:
            UsageError: keys or values of another shape, or texts where they cannot be kept.
            DataError: a key that is not finite; in a durable store also one of zeros, or such a value. Nothing is
                written.
        """
        rows_ND = self._rows(keys)
        if values is not None and values.shape != keys.shape:
            raise UsageError(f"values must be shaped like keys, {tuple(keys.shape)}, and are {tuple(values.shape)}")
        if self._stored is None:
            if texts is not None:
                raise UsageError("texts need a durable store", hint=NO_STORE)
            held_ND = rows_ND if values is None else values.reshape(-1, self.memory_dim)
            return self._slots.write(rows_ND, held_ND, namespace).view(keys.shape[:-1])
        if texts is not None and len(texts) != len(rows_ND):
            raise UsageError(f"{len(texts)} texts for {len(rows_ND)} keys")
        about = {"namespace": namespace, "source": source, "origin": origin, "trust": trust}
        values_ND = None if values is None else values.reshape(-1, self.memory_dim)
        return self._stored.write(rows_ND, values_ND, texts, about).to(keys.device).view(keys.shape[:-1])

    def populate_from_text(
        self,
        knowledge_base: Iterable[Any],
        batch_size: int = 1000,
        embedding_model: str | None = None,
        *,
        namespace: str = "default",
    ) -> PopulateResult:
        """Embed the texts of a knowledge base, such as `load_knowledge_base` gives, and store them, durably.

        batch_size: records a commit. embedding_model: a folder or hub id of a sentence-transformers model.

        Raises:
            UsageError: the memory has no store.
            DataError: a text that cannot be read or stored; what was committed before is kept.
            CheckpointError: the store's vectors are of another model.
        """
        if self._stored is None:
            raise UsageError("texts need a durable store", hint=NO_STORE)
        from cmrn.memory.embedding import Embedder

        if self._embedder is None or embedding_model is not None:
            self._embedder = Embedder(embedding_model)
        return self._stored.populate(knowledge_base, batch_size, self._embedder, namespace)

    def detach(self) -> None:
        """Let go of the history of stored values, so that no later gradient reaches what made them."""
        self._slots.detach()
        if self._stored is not None:
            self._stored.tracked.clear()

    def reset(self) -> None:
        """Forget everything that is not in a durable store."""
        self._slots.clear()

    def close(self) -> None:
        """Write what is noted, and let others write to the store; without one this does nothing."""
        if self._passages is not None:
            self._passages.close()
            self._passages = None
        if self._stored is not None:
            self._stored.close()

    def _rows(self, vectors: Tensor) -> Tensor:
        if vectors.dim() < 1 or vectors.shape[-1] != self.memory_dim:
            raise UsageError(f"vectors must have {self.memory_dim} numbers each, and have shape {tuple(vectors.shape)}")
        return vectors.reshape(-1, self.memory_dim)
