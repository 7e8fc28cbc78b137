"""The index of a store: the records nearest to a query, and nothing that the store does not hold at that moment.

It is derived from the store and never trusted: opened from a snapshot it is brought up to date by the store's log of
changes, and where that cannot be, made anew. Few vectors are compared one by one; for many, `cells` picks candidates,
which are then scored exactly.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmrn.errors import MissingExtraError, UsageError
from cmrn.memory.entry import Hit, Record
from cmrn.memory.handle import Warn
from cmrn.memory.mirror import FLAT, Mirror
from cmrn.memory.store import MemoryStore
from cmrn.memory.table import Floats, Places, source_numbers

if TYPE_CHECKING:
    from cmrn.memory.resident import Resident

__all__ = ["Found", "VectorIndex"]

SPARE = 8
"""Candidates beyond k that are scored anew, all by one formula, so that every path orders them alike."""

MOST = 1_000
"""Most candidates that are asked of the cells; beyond, comparing all is as fast."""

Build: TypeAlias = Literal["aside", "now", "never"]
Where: TypeAlias = Callable[[Record], bool]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class Found(NamedTuple):
    """What one query found, best first: scores (M,) float32 and the numbers of the records, (M,) int64."""

    scores: Floats
    records: NDArray[np.int64]


class VectorIndex:
    """Searches over a store's vectors, by inner product; a context manager.

    Every search sees what was committed before it: additions, edits and deletions. Threads may share it.
    """

    def __init__(self, mirror: Mirror, build: Build) -> None:
        """For `open`."""
        self._mirror, self._build = mirror, build
        self._device: str | None = None
        self._resident: Resident | None = None
        self._masks: dict[frozenset[str], tuple[int, NDArray[np.bool_], int]] = {}

    @classmethod
    def open(cls, store: MemoryStore, *, warn: Warn = _warn, build: Build = "aside", device: str = "cpu") -> Self:
        """The index of a store, from its snapshot where that is sound; it can be searched at once.

        warn: told when a snapshot could not be used. build: where the records are many enough for cells and there are
        none yet, build them in a thread beside the searches, before returning, or not at all. device: as `to`.

        Raises:
            MissingExtraError: FAISS is not installed.
            UsageError: there is no such device.
        """
        try:
            import faiss  # noqa: F401
        except ImportError as error:
            hint = 'pip install "cmrn[cpu]"'
            raise MissingExtraError("searching the memory needs FAISS", hint=hint) from error
        index = cls(Mirror(store, warn), build)
        index.to(device)
        index.refresh()
        return index

    @property
    def store(self) -> MemoryStore:
        """Whose index it is."""
        return self._mirror.store

    @property
    def kind(self) -> str:
        """How it searches now: every record, "flat", or on a GPU "exact"; or "cells"."""
        return "exact" if self._device is not None else "flat" if self._mirror.cells is None else "cells"

    @property
    def records(self) -> int:
        """How many records it holds."""
        return self._mirror.table.count

    @property
    def seq(self) -> int:
        """The store's last change that it has taken in."""
        return self._mirror.seq

    def to(self, device: str) -> None:
        """Search on a CUDA device from now on, where every record is compared; or on "cpu" again.

        Where the device has too little memory for the vectors the searches stay on the CPU, and it is warned of.

        Raises:
            UsageError: there is no such device.
        """
        with self._mirror.lock:
            if device == "cpu":
                self._device = self._resident = self._mirror.table.moved = None
                return
            import torch

            if not device.startswith("cuda") or not torch.cuda.is_available():
                raise UsageError(f"cannot search on {device!r}", hint="a CUDA device, or cpu")
            self._device = device

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        namespaces: Collection[str] | None = None,
        where: Where | None = None,
        per_source: int | None = None,
    ) -> list[list[Hit]]:
        """For each query its best records, at most k, best first; at equal scores the older record first.

        queries: (Q,D), or (D,) for one. namespaces: where given, of these alone. where: of the records it accepts.
        per_source: at most so many of one source, so that no source alone can fill the hits.

        Raises:
            UsageError: k or per_source below 1, or queries of another width or with numbers that are not finite.
        """
        queries_QD = self._checked(queries, k)
        if per_source is not None and per_source < 1:
            raise UsageError(f"per_source must be 1 or more, and is {per_source}")
        with self._mirror.lock:
            self.refresh()
            if per_source is not None:
                return [self._search_capped(q_D[None], k, namespaces, where, per_source) for q_D in queries_QD]
            hits: list[list[Hit]] = [[] for _ in queries_QD]
            pending, count = np.arange(len(queries_QD)), k if where is None else 4 * k
            while len(pending):
                found = self._nearest(queries_QD[pending], count, *self._allowed(namespaces))
                known, lost = self._read(found)
                for query, one in zip(pending.tolist(), found, strict=True):
                    hits[query] = _hits(one, known, where)[:k]
                short = [len(hits[query]) < k and (lost or len(one.records) == count)
                         for query, one in zip(pending.tolist(), found, strict=True)]  # fmt: skip
                pending, count = pending[np.array(short, bool)], 4 * count
        return hits

    def _search_capped(
        self, query_1D: Floats, k: int, namespaces: Collection[str] | None, where: Where | None, per_source: int
    ) -> list[Hit]:
        """One query's best records, at most `per_source` of each source: a source that is full is searched no more."""
        met: dict[int, Hit] = {}
        full: list[str] = []
        count = 4 * k
        while True:
            allowed_N, total = self._allowed(namespaces)
            if full:
                allowed_N = allowed_N & ~np.isin(self._mirror.table.sources, source_numbers(full))
                total = int(allowed_N.sum())
            [one] = self._nearest(query_1D, count, allowed_N, total)
            known, lost = self._read([one])
            met |= {hit.record.record: hit for hit in _hits(one, known, where)}
            best, full = _capped(sorted(met.values(), key=lambda hit: (-hit.score, hit.record.record)), per_source)
            if len(best) >= k or not (lost or len(one.records) == count):
                return best[:k]
            count *= 4

    def nearest(self, queries: ArrayLike, k: int, *, namespaces: Collection[str] | None = None) -> list[Found]:
        """As `search`, but without reading the records: one found damaged since may be among them.

        Raises:
            UsageError: as `search`.
        """
        queries_QD = self._checked(queries, k)
        with self._mirror.lock:
            self.refresh()
            return self._nearest(queries_QD, k, *self._allowed(namespaces))

    def vectors(self, records: NDArray[np.int64]) -> Floats:
        """The vectors of records that `nearest` found, with one dimension more than `records`."""
        with self._mirror.lock:
            table = self._mirror.table
            vectors: Floats = table.view()[table.find(records.reshape(-1).tolist())]
            return vectors.reshape(*records.shape, table.dim)

    def refresh(self) -> None:
        """Take in what was committed to the store since; `search` and `nearest` do so themselves."""
        with self._mirror.lock:
            self._mirror.refresh()
            if self._device is not None:
                return
            if self._mirror.due() and self._build == "now":
                self._mirror.build()
            elif self._mirror.due() and self._build == "aside":
                self._mirror.build_aside()

    def wait(self) -> None:
        """Until cells that are being built are ready."""
        self._mirror.wait()

    def snapshot(self) -> None:
        """Make the index as it is now what the next `open` starts from, durably.

        Raises:
            UsageError: the store is open for reading only.
            ResourceError: the disk is full; the snapshot before it stays.
        """
        if not self._mirror.store.handle.writes:
            raise UsageError("the store is open for reading only", where=str(self._mirror.store.folder))
        self._mirror.snapshot()

    def close(self) -> None:
        """Stop building, and where the store is open for writing and has changed, take a snapshot."""
        self._mirror.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, queries: ArrayLike, k: int) -> Floats:
        queries_QD = np.ascontiguousarray(np.atleast_2d(np.asarray(queries, np.float32)))
        dim = self._mirror.store.dim
        if k < 1:
            raise UsageError(f"k must be 1 or more, and is {k}")
        if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
            raise UsageError(f"queries must have {dim} numbers each, and have shape {queries_QD.shape}")
        if not np.isfinite(queries_QD).all():
            raise UsageError("queries must hold finite numbers")
        return queries_QD

    def _nearest(self, queries_QD: Floats, k: int, allowed_N: NDArray[np.bool_], total: int) -> list[Found]:
        """The k best of the allowed places for each query, or all `total` of them where those are fewer."""
        mirror = self._mirror
        k = min(k, total)
        if k == 0:
            return [Found(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in queries_QD]
        asked = math.ceil((k + SPARE) * mirror.table.places / total)
        placed = self._search_device(queries_QD, asked) if self._device is not None and asked <= MOST else None
        if placed is not None:
            found = [
                Found(scores_C[kept_C][:k], mirror.table.records[places_C[kept_C]][:k])
                for scores_C, places_C, kept_C in zip(*placed, allowed_N[placed[1]], strict=True)
            ]
        elif mirror.cells is None or total <= FLAT or asked > MOST:
            return self._compare_all(queries_QD, k, allowed_N, total)
        else:
            places_QC = mirror.cells.search(queries_QD, asked, mirror.table.vectors)
            found = [self._best(q, places, k, allowed_N) for q, places in zip(queries_QD, places_QC, strict=True)]
        short = [place for place, one in enumerate(found) if len(one.records) < k]
        for place, one in zip(short, self._compare_all(queries_QD[short], k, allowed_N, total), strict=True):
            found[place] = one
        return found

    def _search_device(self, queries_QD: Floats, asked: int) -> tuple[Floats, Places] | None:
        """Scores and places, (Q,asked), by comparing all on the device; None where its memory is too little."""
        import torch

        from cmrn.memory.resident import Resident

        assert self._device is not None
        try:
            if self._resident is None or self._resident.table is not self._mirror.table:
                self._resident = Resident(self._mirror.table, self._device)
            return self._resident.search(queries_QD, asked)
        except torch.OutOfMemoryError:
            self._mirror.warn(f"{self._device} has too little memory for the vectors; searches stay on the CPU")
            self.to("cpu")
            return None

    def _compare_all(self, queries_QD: Floats, k: int, allowed_N: NDArray[np.bool_], total: int) -> list[Found]:
        """Every allowed record compared with each query."""
        import faiss

        if not len(queries_QD):
            return []
        vectors, parameters, bits = self._mirror.table.vectors, None, None
        if total < len(allowed_N):
            bits = np.packbits(allowed_N, bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        places_QC: Places = vectors.search(queries_QD, min(k + SPARE, total), params=parameters)[1]
        return [self._best(q_D, places_C, k, allowed_N) for q_D, places_C in zip(queries_QD, places_QC, strict=True)]

    def _best(self, q_D: Floats, places_C: Places, k: int, allowed_N: NDArray[np.bool_]) -> Found:
        """The k best of some candidates, scored by one formula, an older record first at equal scores."""
        places = np.unique(places_C[places_C >= 0])
        places = places[allowed_N[places]]
        table = self._mirror.table
        scores = (table.view()[places].astype(np.float64) @ q_D.astype(np.float64)).astype(np.float32)
        records = table.records[places]
        order = np.lexsort((records, -scores))[:k]
        return Found(scores[order], records[order])

    def _allowed(self, namespaces: Collection[str] | None) -> tuple[NDArray[np.bool_], int]:
        """Which places may be found, and how many those are."""
        table = self._mirror.table
        if namespaces is None:
            return table.live, table.count
        key = frozenset([namespaces] if isinstance(namespaces, str) else namespaces)
        version, mask, total = self._masks.get(key, (-1, table.live, 0))
        if version != self._mirror.version:
            mask = table.among(key)
            total = int(mask.sum())
            self._masks = {**(self._masks if len(self._masks) < 64 else {}), key: (self._mirror.version, mask, total)}
        return mask, total

    def _read(self, found: list[Found]) -> tuple[dict[int, Record], bool]:
        """The records found, by number; and whether some were not to be had, which are left out from then on."""
        wanted = sorted({record for one in found for record in one.records.tolist()})
        known: dict[int, Any] = {record.record: record for record in self._mirror.store.get(wanted)}
        lost = [record for record in wanted if record not in known]
        if lost:
            self._mirror.drop(lost)
        return known, bool(lost)


def _hits(found: Found, known: dict[int, Record], where: Where | None) -> list[Hit]:
    """What was found as records: those that are to be had, and accepted."""
    pairs = zip(found.scores.tolist(), found.records.tolist(), strict=True)
    hits = [Hit(known[record], score) for score, record in pairs if record in known]
    return hits if where is None else [hit for hit in hits if where(hit.record)]


def _capped(hits: Sequence[Hit], most: int) -> tuple[list[Hit], list[str]]:
    """The hits without those beyond the `most` best of their source, and the sources that have as many."""
    counts: Counter[str] = Counter()
    kept = []
    for hit in hits:
        if counts[hit.record.source] < most:
            counts[hit.record.source] += 1
            kept.append(hit)
    return kept, [source for source, count in counts.items() if count == most]
