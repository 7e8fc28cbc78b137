"""The keys of a `PersistentMemory` in a durable store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import CheckpointError
from cmrn.memory.entry import Fingerprint, NewRecord
from cmrn.memory.index import VectorIndex
from cmrn.memory.schema import DATABASE
from cmrn.memory.slots import DUPLICATE
from cmrn.memory.store import MemoryStore
from cmrn.memory.table import Floats

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder
    from cmrn.memory.populate import PopulateResult

__all__ = ["Stored"]


class Stored:
    """A store and its index, open for writing; the first write creates the store, and says what its vectors are.

    size: most records, the least recently used making room. rate: how far a write moves the near-duplicate it meets.
    """

    def __init__(self, folder: Path, dim: int, size: int, rate: float) -> None:
        self._folder, self._dim, self._size, self._rate = folder, dim, size, rate
        self._store: MemoryStore | None = None
        self._index: VectorIndex | None = None
        if (folder / DATABASE).exists():
            self._use(MemoryStore.open(folder, write=True, max_records=size))

    def __len__(self) -> int:
        if self._index is None:
            return 0
        self._index.refresh()
        return self._index.records

    def search(
        self, queries_QD: Floats, k: int, namespaces: Collection[str] | None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Keys (Q,M,D) and numbers (Q,M) of the at most k best records of each query; that is a use."""
        if self._index is None or self._store is None:
            return np.zeros((len(queries_QD), 0, self._dim), np.float32), np.zeros((len(queries_QD), 0), np.int64)
        found = self._index.nearest(queries_QD, k, namespaces=namespaces)
        records_QM = np.stack([one.records for one in found]) if found else np.zeros((0, 0), np.int64)
        self._store.touch(records_QM.reshape(-1).tolist())
        return self._index.vectors(records_QM), records_QM

    def write(self, keys_ND: Floats, texts: Sequence[str] | None, about: dict[str, Any]) -> NDArray[np.int64]:
        """Store keys; the number of each one's record.

        A near-duplicate of a stored key is blended with it, whose text stays; without texts a key is its own name.
        """
        store, index = self._ensured(Fingerprint("keys", pooling="none", normalised=False, dim=self._dim))
        records_N = np.full(len(keys_ND), -1, np.int64)
        for place, key_D in enumerate(keys_ND if store.stats().records else []):
            nearest = index.nearest(key_D, 1, namespaces=[about["namespace"]])[0].records
            if len(nearest) and _cosine(key_D, old_D := index.vectors(nearest)[0]) >= DUPLICATE:
                store.edit(int(nearest[0]), vector=(old_D + self._rate * (key_D - old_D)).astype(np.float32))
                records_N[place] = nearest[0]
        new = np.flatnonzero(records_N < 0).tolist()
        entries = [
            NewRecord(texts[n], keys_ND[n], **about)
            if texts is not None
            else NewRecord("", keys_ND[n], id=blake2b(keys_ND[n].tobytes(), digest_size=16).hexdigest(), **about)
            for n in new
        ]
        records_N[new] = store.add(entries).records if entries else []
        return records_N

    def populate(self, texts: Iterable[Any], batch_size: int, embedder: Embedder, namespace: str) -> PopulateResult:
        """Embed texts and store them."""
        from cmrn.memory.fields import Fields
        from cmrn.memory.populate import PopulateOptions, populate_texts

        store, index = self._ensured(embedder.fingerprint())
        store.check_fingerprint(embedder.fingerprint())
        options = PopulateOptions(fields=Fields(namespace=namespace), batch_size=batch_size)
        result = populate_texts(store, texts, embedder, options)
        index.refresh()
        return result

    def close(self) -> None:
        """Write what is noted, and let others write to the store."""
        if self._index is not None and self._store is not None:
            self._index.close()
            self._store.close()
            self._index = self._store = None

    def _ensured(self, fingerprint: Fingerprint) -> tuple[MemoryStore, VectorIndex]:
        if self._store is None or self._index is None:
            self._use(MemoryStore.create(self._folder, fingerprint, max_records=self._size))
        assert self._store is not None
        assert self._index is not None
        return self._store, self._index

    def _use(self, store: MemoryStore) -> None:
        if store.dim != self._dim:
            store.close()
            message = f"its vectors have {store.dim} numbers, where the memory's keys have {self._dim}"
            raise CheckpointError(message, where=str(self._folder))
        self._store, self._index = store, VectorIndex.open(store)


def _cosine(first_D: Floats, second_D: Floats) -> float:
    return float(first_D @ second_D / max(1e-30, float(np.linalg.norm(first_D) * np.linalg.norm(second_D))))
