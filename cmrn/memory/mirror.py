"""A store's vectors in memory, kept in step with it: read from a snapshot, brought up to date, or read anew."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, RLock, Thread

import numpy as np

from cmrn.errors import CheckpointError, CMRNError, ResourceError
from cmrn.memory.cells import CHUNK, SAMPLE, Cells, build_cells, cells_for
from cmrn.memory.entry import Change, Record
from cmrn.memory.folder import INDEX
from cmrn.memory.handle import Warn
from cmrn.memory.snapshot import Snapshot, load_snapshot, save_snapshot
from cmrn.memory.store import MemoryStore
from cmrn.memory.table import Floats, Places, Table

__all__ = ["FLAT", "Mirror"]

FLAT = 20_000
"""Most records that are compared one by one; above, cells answer sooner."""

UNSAVED = 10_000
"""Changes after which a snapshot is due, or a twentieth of the records where that is more."""

READ = 10_000
"""Edited records read from the store at once."""


class _Stopped(Exception):
    """The mirror was closed while its cells were being built."""


class Mirror:
    """Table and cells of a store as of change `seq`; to be read under `lock`, after `refresh`."""

    def __init__(self, store: MemoryStore, warn: Warn) -> None:
        self.store, self.warn = store, warn
        self.lock = RLock()
        self.table, self.cells, self.seq = Table(store.dim), None, 0
        self.version = 0
        self._unsaved = self._saved = 0
        self._fingerprint = store.fingerprint
        self._stop = Event()
        self._builder: Thread | None = None
        self._edited: list[int] | None = None
        self._restore()
        self.refresh()

    cells: Cells | None

    def refresh(self) -> None:
        """Take in what was committed to the store since, and take a snapshot where one is due.

        Raises:
            CheckpointError: the records have vectors of another encoder since.
        """
        with self.lock:
            seq = self.store.seq
            if self.store.fingerprint != self._fingerprint:
                message = f"its vectors are of another encoder since, {self.store.fingerprint.embedder}"
                raise CheckpointError(message, where=str(self.store.folder), hint="open it again with that encoder")
            if seq == self.seq:
                return
            self.version += 1
            changes = self._changes()
            if changes is None or not self._apply(changes):
                self._reload()
            elif changes:
                self.seq = changes[-1].seq
                self._unsaved += len(changes)
            if self.table.dead > max(FLAT, self.table.count):
                self._reload()
            if self.store.handle.writes and self._unsaved > max(UNSAVED, self.table.count // 20):
                self._try_snapshot()

    def due(self) -> bool:
        """Whether cells should be built: there are none, or they were made for far fewer or other vectors."""
        if self.table.count <= FLAT or self.building:
            return False
        if self.cells is None:
            return True
        return cells_for(self.table.count) > 2 * self.cells.cells or self.cells.count > 1.5 * self.table.count

    @property
    def building(self) -> bool:
        """Whether cells are being built."""
        return self._builder is not None and self._builder.is_alive()

    def build_aside(self) -> None:
        """Build the cells in a thread."""
        self._builder = Thread(target=self._build_quietly, name="cmrn-index", daemon=True)
        self._builder.start()

    def build(self) -> None:
        """Build the cells; reads and refreshes go on meanwhile, from another thread.

        Raises:
            MemoryError: there is too little memory; the index stays as it was.
        """
        with self.lock:
            count, table = self.table.count, self.table
            sample_ND = self._sample(min(count, SAMPLE * cells_for(count)))
            self._edited = []
        done = [0]
        try:
            cells = build_cells(sample_ND, lambda: self._chunks(done), count, pause=self._pause)
            with self.lock:
                if self.table is table:
                    late = np.unique([*self._edited, *range(done[0], table.places)]).astype(np.int64)
                    late = late[table.live[late]]
                    cells.add(table.view()[late], late)
                    self.cells = cells
                    self._unsaved += 1
        finally:
            self._edited = None

    def wait(self) -> None:
        """Until cells that are being built are ready."""
        if self._builder is not None:
            self._builder.join()

    def snapshot(self) -> None:
        """Write what the next mirror of this store starts from.

        Raises:
            ResourceError: the disk is full; the snapshot before it stays.
        """
        with self.lock:
            self.refresh()
            # A change that a power cut undoes may be followed by another of its number.
            self.store.handle.sync()
            snapshot = Snapshot(self.table, self.cells, self.seq)
            save_snapshot(self.store.folder / INDEX, snapshot, self.store.uuid, self.store.fingerprint)
            self._unsaved = 0
            self._forget(self._saved)
            self._saved = self.seq

    def close(self) -> None:
        """Stop building, and where the store is open for writing and something is new, take a snapshot."""
        self._stop.set()
        self.wait()
        if self.store.handle.writes and self._unsaved:
            self._try_snapshot()

    def drop(self, records: list[int]) -> None:
        """Leave out records that the store no longer gives."""
        with self.lock:
            places = self.table.find(records)
            self.table.drop(places[places >= 0])
            self.version += 1

    def _changes(self) -> list[Change] | None:
        """The changes not taken in yet; where the log no longer has them, those since the newest snapshot."""
        changes = self.store.changes(self.seq)
        if changes is None:
            self._restore()
            changes = self.store.changes(self.seq)
        return changes

    def _forget(self, upto: int) -> None:
        """Shorten the store's log of changes; it goes back one snapshot more than any new mirror needs."""
        if upto <= self.store.handle.info.pruned:
            return
        try:
            self.store.prune(upto)
        except ResourceError as error:
            self.warn(f"the log of changes is not shortened: {error.message}")

    def _restore(self) -> None:
        """Start from the snapshot, or without a sound one from the store."""
        folder = self.store.folder / INDEX
        try:
            snapshot = load_snapshot(folder, self.store.uuid, self.store.fingerprint)
        except CheckpointError as error:
            self.warn(f"the index is made anew: {error}")
            snapshot = None
        if snapshot is None:
            self._reload()
        else:
            self.table, self.cells, self.seq = snapshot.table, snapshot.cells, snapshot.seq
            self._saved = snapshot.seq

    def _reload(self) -> None:
        """Read every vector from the store; the cells' places are no longer those."""
        self.seq = self.store.seq
        self.table, self.cells = Table(self.store.dim), None
        self._append()
        self._unsaved += self.table.count

    def _append(self) -> None:
        """Take in the records after the last one known."""
        for block in self.store.blocks(after=self.table.last):
            start = self.table.places
            self.table.append(block.records, block.vectors, block.namespaces, block.sources)
            if self.cells is not None:
                self.cells.add(block.vectors, np.arange(start, self.table.places))

    def _apply(self, changes: list[Change]) -> bool:
        """Take in changes, or False where one is of a record that an earlier reading left out as damaged.

        The store is read as it is now, perhaps later than the changes: taking those in again will change nothing.
        """
        last = self.table.last
        final = {change.record: change.op for change in changes}
        gone = self.table.find([record for record, op in final.items() if op == "delete"])
        self.table.drop(gone[gone >= 0])
        edited = [record for record, op in final.items() if op != "delete" and record <= last]
        if any(op != "delete" and record > last for record, op in final.items()):
            self._append()
        return all(self._reread(edited[start : start + READ]) for start in range(0, len(edited), READ))

    def _reread(self, records: list[int]) -> bool:
        """Bring records that are already here up to date."""
        known = {record.record: record for record in self.store.get(records)}
        vectors_ND = self.store.vectors(records)
        places = self.table.find(records)
        sound = np.array([record in known for record in records]) & ~np.isnan(vectors_ND[:, 0])
        if (sound & (places < 0)).any():
            return False
        self.table.drop(places[~sound & (places >= 0)])
        self._put(places[sound], vectors_ND[sound], [known[r] for r, kept in zip(records, sound, strict=True) if kept])
        return True

    def _put(self, places: Places, vectors_ND: Floats, records: list[Record]) -> None:
        self.table.put(places, vectors_ND, [one.namespace for one in records], [one.source for one in records])
        if self.cells is not None and len(places):
            self.cells.add(vectors_ND, places)
        if self._edited is not None:
            self._edited.extend(places.tolist())

    def _sample(self, size: int) -> Floats:
        live = np.flatnonzero(self.table.live)
        chosen = np.random.default_rng(0).choice(live, size, replace=False)
        sample_ND: Floats = self.table.view()[np.sort(chosen)]
        return np.random.default_rng(1).permutation(sample_ND)

    def _chunks(self, done: list[int]) -> Iterator[tuple[Floats, Places]]:
        """Copies of the live vectors with their places; done[0] is the place that comes next."""
        table = self.table
        while True:
            with self.lock:
                places = np.arange(done[0], min(done[0] + CHUNK, table.places))
                done[0] += len(places)
                live = places[table.live[places]]
                vectors_ND = table.view()[live]
            if not len(places):
                return
            if len(live):
                yield vectors_ND, live

    def _pause(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _build_quietly(self) -> None:
        """For the thread: there is nobody to raise to, and the searches go on."""
        try:
            self.build()
        except _Stopped:
            return
        except Exception as error:
            self.warn(f"the index stays slow, its cells could not be built: {error}")

    def _try_snapshot(self) -> None:
        try:
            self.snapshot()
        except CMRNError as error:
            self.warn(f"no snapshot of the index was taken: {error.message}")
            self._unsaved = 0
