"""The keys and values of a `PersistentMemory` in a durable store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cmrn.errors import CheckpointError
from cmrn.memory.entry import Fingerprint, NewRecord
from cmrn.memory.index import VectorIndex
from cmrn.memory.rows import matrix_of
from cmrn.memory.schema import DATABASE
from cmrn.memory.slots import DUPLICATE, roots_of, with_history
from cmrn.memory.store import MemoryStore
from cmrn.memory.table import Floats
from cmrn.memory.values import checked_values

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder
    from cmrn.memory.populate import PopulateResult

__all__ = ["Stored"]


class Stored:
    """A store and its index, open for writing; the first write creates the store, and says what its vectors are.

    size: most records, the least recently used making room. rate: how far a write moves the near-duplicate it meets.
    tracked: values that require gradient, by record, with their history; the store holds their numbers.
    """

    def __init__(self, folder: Path, dim: int, size: int, rate: float) -> None:
        self._folder, self._dim, self._size, self._rate = folder, dim, size, rate
        self._store: MemoryStore | None = None
        self._index: VectorIndex | None = None
        self._device = "cpu"
        self.tracked: dict[int, Tensor] = {}
        if (folder / DATABASE).exists():
            self._use(MemoryStore.open(folder, write=True, max_records=size))

    def __len__(self) -> int:
        if self._index is None:
            return 0
        self._index.refresh()
        return self._index.records

    def search(self, queries_QD: Tensor, k: int, namespaces: Collection[str] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (Q,M,D) and numbers (Q,M) of the at most k best records of each query; that is a use.

        The vectors are searched on the queries' device, and what is found is on the CPU.
        """
        if self._index is None or self._store is None:
            none_QMD = torch.zeros(len(queries_QD), 0, self._dim)
            return none_QMD, none_QMD, torch.zeros(len(queries_QD), 0, dtype=torch.int64)
        if queries_QD.device.type == "cuda" and str(queries_QD.device) != self._device:
            self._device = str(queries_QD.device)
            self._index.to(self._device)
        found = self._index.nearest(_floats(queries_QD), k, namespaces=namespaces)
        records_QM = np.stack([one.records for one in found]) if found else np.zeros((0, 0), np.int64)
        self._store.touch(records_QM.reshape(-1).tolist())
        keys_QMD = self._index.vectors(records_QM)
        values_QMD = self._store.values(records_QM.reshape(-1).tolist()).reshape(keys_QMD.shape)
        values = torch.from_numpy(np.where(np.isnan(values_QMD), keys_QMD, values_QMD))
        records = torch.from_numpy(records_QM)
        return torch.from_numpy(keys_QMD), with_history(values, records, self.tracked), records

    def write(
        self, keys_ND: Tensor, values_ND: Tensor | None, texts: Sequence[str] | None, about: dict[str, Any]
    ) -> Tensor:
        """Store keys with their values; the number of each one's record, (N,), -1 where more were new than may stay.

        A near-duplicate of a stored key, and then of another of these, is blended with it, whose text stays; without
        texts a key is its own name. Each blend is a commit, and so is what is new.

        Raises:
            DataError: a key or value that cannot be stored; nothing is written.
        """
        given = matrix_of(list(_floats(keys_ND)), self._dim)
        if values_ND is not None:
            checked_values(_floats(values_ND), len(given), self._dim)
        store, index = self._ensured(Fingerprint("keys", pooling="none", normalised=False, dim=self._dim))
        records = self._duplicates(index, given, about["namespace"])
        for place, record in enumerate(records):
            if record >= 0:
                self._blend(store, record, given[place], None if values_ND is None else values_ND[place])
        new = [place for place, record in enumerate(records) if record < 0]
        roots = roots_of(torch.from_numpy(given[new]))
        kept = [place for place, root in zip(new, roots, strict=True) if new[root] == place][-self._size :]
        owner = dict(zip(kept, self._add(store, given, values_ND, kept, texts, about), strict=True))
        for place, root in zip(new, roots, strict=True):
            records[place] = owner.get(new[root], -1)
            if records[place] >= 0 and place not in owner:
                self._blend(store, records[place], given[place], None if values_ND is None else values_ND[place])
        return torch.tensor(records, dtype=torch.int64)

    def _duplicates(self, index: VectorIndex, keys_ND: Floats, namespace: str) -> list[int]:
        """For each key the record of its namespace that scores highest with it, where a near-duplicate, or -1."""
        found = index.nearest(keys_ND, 1, namespaces=[namespace])
        nearest_N = np.array([one.records[0] if len(one.records) else -1 for one in found], np.int64)
        there = np.flatnonzero(nearest_N >= 0)
        old_ND = index.vectors(nearest_N[there])
        for place, old_D in zip(there, old_ND, strict=True):
            if _cosine(keys_ND[place], old_D) < DUPLICATE:
                nearest_N[place] = -1
        records: list[int] = nearest_N.tolist()
        return records

    def _blend(self, store: MemoryStore, record: int, key_D: Floats, value_D: Tensor | None) -> None:
        """Move a record's key and value by `rate` of the difference."""
        old_D, kept_D = store.vectors([record])[0], store.values([record])[0]
        has_value = not np.isnan(kept_D[0])
        stored_D = torch.from_numpy(kept_D if has_value else old_D)
        old = self.tracked.get(record, stored_D)
        target = torch.from_numpy(key_D) if value_D is None else value_D
        value = old + self._rate * (target.to(old) - old)
        given = _floats(value) if has_value or value_D is not None else None
        store.edit(record, vector=(old_D + self._rate * (key_D - old_D)).astype(np.float32), value=given)
        self._track(record, value)

    def _add(
        self,
        store: MemoryStore,
        keys_ND: Floats,
        values_ND: Tensor | None,
        places: list[int],
        texts: Sequence[str] | None,
        about: dict[str, Any],
    ) -> list[int]:
        """Store the keys at `places` as records of their own, or of their texts; the number of each."""
        if not places:
            return []
        entries = [
            NewRecord("" if texts is None else texts[n], keys_ND[n], id=_name(keys_ND[n]) if texts is None else None,
                      **about) for n in places
        ]  # fmt: skip
        given = None if values_ND is None else np.ascontiguousarray(_floats(values_ND)[places])
        result = store.add(entries, values=given)
        records = list(result.records)
        if result.added < len(places):
            stored_ND = store.vectors(records)
            for place, record, stored_D in zip(places, records, stored_ND, strict=True):
                if not np.array_equal(stored_D, keys_ND[place]):
                    store.edit(record, vector=keys_ND[place])
        for place, record in zip(places, records, strict=True):
            self._track(record, None if values_ND is None else values_ND[place])
        return records

    def _track(self, record: int, value_D: Tensor | None) -> None:
        self.tracked.pop(record, None)
        if value_D is not None and value_D.requires_grad:
            self.tracked[record] = value_D

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


def _floats(vectors: Tensor) -> Floats:
    """What a store keeps of vectors."""
    floats: Floats = vectors.detach().float().cpu().contiguous().numpy()
    return floats


def _name(key_D: Floats) -> str:
    """The id of a key without a text."""
    return blake2b(key_D.tobytes(), digest_size=16).hexdigest()


def _cosine(first_D: Floats, second_D: Floats) -> float:
    return float(first_D @ second_D / max(1e-30, float(np.linalg.norm(first_D) * np.linalg.norm(second_D))))
