"""The vectors of a store's records side by side in memory, by place, with what a search needs to know of each."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table", "source_numbers"]

Floats = NDArray[np.float32]
Places = NDArray[np.int64]


class Table:
    """Vectors in the order of their records' numbers; a deleted record's place stays, dead and zeroed.

    vectors: FAISS's flat index of them, by inner product. moved: where it is a list, places whose vectors were
    replaced are added to it. N places, D width.
    """

    moved: list[Places] | None = None

    def __init__(self, dim: int) -> None:
        import faiss

        self.vectors: Any = faiss.IndexFlatIP(dim)
        self._names: dict[str, int] = {}
        self._records = np.zeros(0, np.int64)
        self._sources = np.zeros(0, np.int64)
        self._spaces = np.zeros(0, np.int32)
        self._live = np.zeros(0, bool)
        self._dead = 0

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return int(self.vectors.d)

    @property
    def places(self) -> int:
        """How many places there are, dead ones included."""
        return int(self.vectors.ntotal)

    @property
    def count(self) -> int:
        """How many live records it holds."""
        return self.places - self._dead

    @property
    def dead(self) -> int:
        """How many places are dead."""
        return self._dead

    @property
    def last(self) -> int:
        """The largest number of any record it ever held, 0 before the first."""
        return int(self._records[self.places - 1]) if self.places else 0

    @property
    def names(self) -> list[str]:
        """The namespaces met so far; `spaces` counts them from 0."""
        return list(self._names)

    @property
    def records(self) -> NDArray[np.int64]:
        """The record at each place."""
        return self._records[: self.places]

    @property
    def sources(self) -> NDArray[np.int64]:
        """What tells the source at each place from others, as `source_numbers` gives it."""
        return self._sources[: self.places]

    @property
    def spaces(self) -> NDArray[np.int32]:
        """The namespace at each place, as its position in `names`."""
        return self._spaces[: self.places]

    @property
    def live(self) -> NDArray[np.bool_]:
        """Whether the record at each place is still stored."""
        return self._live[: self.places]

    def view(self) -> Floats:
        """The vectors, (N,D), not copied: valid until the next `append`."""
        import faiss

        size = self.places * self.dim
        return (
            faiss.rev_swig_ptr(self.vectors.get_xb(), size).reshape(-1, self.dim)
            if size
            else np.zeros((0, self.dim), np.float32)
        )

    def append(
        self, records_N: NDArray[np.int64], vectors_ND: Floats, names: Sequence[str], sources: Sequence[str]
    ) -> None:
        """Take in records, numbered in order and above all before, with their namespaces and sources."""
        start, more = self.places, len(records_N)
        self._records, self._sources, self._spaces, self._live = (
            _grown(column, start, start + more) for column in (self._records, self._sources, self._spaces, self._live)
        )
        self._records[start : start + more] = records_N
        self._sources[start : start + more] = source_numbers(sources)
        self._spaces[start : start + more] = [self._space(name) for name in names]
        self._live[start : start + more] = True
        self.vectors.add(np.ascontiguousarray(vectors_ND, np.float32))

    def restore(
        self,
        records: NDArray[np.int64],
        sources: NDArray[np.int64],
        spaces: NDArray[np.int32],
        live: NDArray[np.bool_],
        names: Sequence[str],
    ) -> None:
        """Say what the vectors are, where `vectors` was filled at once."""
        self._records, self._sources, self._spaces, self._live = records, sources, spaces, live
        self._names = {name: place for place, name in enumerate(names)}
        self._dead = int(len(live) - live.sum())

    def find(self, records: Collection[int]) -> Places:
        """The place of each record, live or dead, -1 for one that is not here."""
        wanted = np.fromiter(records, np.int64, len(records))
        places = np.searchsorted(self.records, wanted)
        there = places < self.places
        there[there] = self.records[places[there]] == wanted[there]
        return np.where(there, places, -1)

    def put(self, places: Places, vectors_ND: Floats, names: Sequence[str], sources: Sequence[str]) -> None:
        """Replace what is at places, which live from then on."""
        self._move(places, vectors_ND)
        self._sources[places] = source_numbers(sources)
        self._spaces[places] = [self._space(name) for name in names]
        self._dead -= int((~self._live[places]).sum())
        self._live[places] = True

    def drop(self, places: Places) -> None:
        """Let the places die."""
        if len(places):
            self._move(places, 0.0)
            self._dead += int(self._live[places].sum())
            self._live[places] = False

    def among(self, names: Collection[str] | None) -> NDArray[np.bool_]:
        """Which places are live, and in one of the namespaces where any are given."""
        if names is None:
            return self.live
        known = [self._names[name] for name in names if name in self._names]
        return self.live & np.isin(self.spaces, known)

    def _move(self, places: Places, vectors_ND: Floats | float) -> None:
        self.view()[places] = vectors_ND
        if self.moved is not None:
            self.moved.append(places)

    def _space(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))


def source_numbers(sources: Sequence[str]) -> NDArray[np.int64]:
    """A number for each source, equal for equal ones; there may be as many sources as records, so no list is kept."""
    numbers = {
        source: int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "big", signed=True)
        for source in set(sources)
    }
    return np.fromiter((numbers[source] for source in sources), np.int64, len(sources))


def _grown(column: NDArray[Any], used: int, needed: int) -> NDArray[Any]:
    """The column, with room for as many values again where `needed` do not fit."""
    if needed <= len(column):
        return column
    wider = np.zeros(max(needed, 2 * used), column.dtype)
    wider[:used] = column[:used]
    return wider
