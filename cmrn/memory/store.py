"""The durable memory: one SQLite file that is the truth, written by one process at a time and read by any number.

    folder/  memory.db (-wal, -shm)   LOCK   RESERVE   format.json   index/

What `add`, `edit` and `delete` return is on disk. A reader sees every whole batch and no half one.
"""

from __future__ import annotations

import sqlite3
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import ResourceError, UsageError
from cmrn.memory.entry import JSON, AddResult, Fingerprint, NewRecord, Progress, Record
from cmrn.memory.folder import check_place, check_vacant, create_database
from cmrn.memory.handle import Handle, Warn
from cmrn.memory.info import Info, read_info, update_info
from cmrn.memory.maintenance import check_current, compact, migrate
from cmrn.memory.oplog import forget_changes, last_seq
from cmrn.memory.reads import Reads
from cmrn.memory.rows import changed, is_storable, prepare, storable_numbers
from cmrn.memory.schema import DATABASE, Durability
from cmrn.memory.uses import Uses
from cmrn.memory.values import checked_values, put_values
from cmrn.memory.writing import (
    delete_records,
    evict_records,
    fetch_rows,
    put_progress,
    put_records,
    replace_record,
)

__all__ = ["MemoryStore"]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


@contextmanager
def _closing_on_error(store: MemoryStore) -> Iterator[None]:
    """Let others write again if the store is not handed out."""
    try:
        yield
    except BaseException:
        store.handle.close()
        raise


class MemoryStore(Reads):
    """Records with their vectors, durable from the moment a call returns; a context manager.

    One thread may write while others search. A record whose row is damaged is left out of everything and named once.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "memory"
    >>> with MemoryStore.create(folder, Fingerprint("none", dim=2)) as store:
    ...     store.add([NewRecord("Bees dance.", np.ones(2, np.float32))]).records
    (1,)
    >>> with MemoryStore.open(folder) as store:
    ...     store.get([1])[0].text
    'Bees dance.'
    """

    def __init__(self, handle: Handle) -> None:
        """For `create`, `open` and `ensure`."""
        super().__init__(handle)
        self._uses = Uses()
        with _closing_on_error(self):
            if handle.writes:
                self._keys.release(handle)

    @classmethod
    def create(
        cls,
        folder: Path,
        fingerprint: Fingerprint,
        *,
        durability: Durability = "full",
        max_records: int | None = None,
        wait: float = 0.0,
        warn: Warn = _warn,
    ) -> Self:
        """A new, empty store, open for writing; killed half-way, it leaves none.

        durability: with "relaxed" the last commits may be lost when the machine, not the process, stops.
        max_records: beyond it the least recently used records make room.

        Raises:
            CheckpointError: the folder holds a store, or other things, or is on a network filesystem.
        """
        check_place(folder)
        check_vacant(folder)
        info = Info(uuid.uuid4().hex, fingerprint, max_records)
        return cls(
            Handle(
                folder,
                write=True,
                wait=wait,
                durability=durability,
                warn=warn,
                prepare=lambda: create_database(folder, info),
            )
        )

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        write: bool = False,
        wait: float = 0.0,
        durability: Durability = "full",
        max_records: int | None = None,
        warn: Warn = _warn,
    ) -> Self:
        """An existing store, for reading, or for writing as the one process that does.

        wait: seconds to wait for another writer to end.
        max_records: where given, replaces the store's own limit.
        warn: told of each damaged record, once.

        Raises:
            CheckpointError: no store, a damaged one, or one of a newer version of the package.
            LockedError: another process is writing to it.
        """
        check_place(folder)
        check_current(folder, write)

        def prepare_folder() -> None:
            migrate(folder)

        store = cls(Handle(folder, write=write, wait=wait, durability=durability, warn=warn, prepare=prepare_folder))
        with _closing_on_error(store):
            if max_records is not None:
                store.limit(max_records)
        return store

    @classmethod
    def ensure(
        cls,
        folder: Path,
        fingerprint: Fingerprint,
        *,
        durability: Durability = "full",
        max_records: int | None = None,
        wait: float = 0.0,
        warn: Warn = _warn,
    ) -> Self:
        """The folder's store, open for writing, created if there is none; its vectors must be of this fingerprint.

        Raises:
            CheckpointError: as `create`, `open` and `check_fingerprint`.
            LockedError: another process is writing to it.
        """
        path = folder / DATABASE
        check_place(folder)
        if path.exists():
            check_current(folder, write=True)
        else:
            check_vacant(folder)

        def prepare_folder() -> None:
            if path.exists():
                migrate(folder)
            else:
                create_database(folder, Info(uuid.uuid4().hex, fingerprint, max_records))

        handle = Handle(folder, write=True, wait=wait, durability=durability, warn=warn, prepare=prepare_folder)
        store = cls(handle)
        with _closing_on_error(store):
            store.check_fingerprint(fingerprint)
            if max_records is not None:
                store.limit(max_records)
        return store

    def add(
        self,
        records: Sequence[NewRecord],
        *,
        ingest: Progress | None = None,
        values: NDArray[np.float32] | None = None,
    ) -> AddResult:
        """Store records, all of them or none, and with them how far their file has been taken in.

        values: (N, D) float32, what a model is to read where it finds each record's vector.

        Raises:
            DataError: one of them cannot be stored; nothing is written.
            ResourceError: the disk is full; nothing of this call is written, everything before is kept.
        """
        batch = prepare(records, self.dim)
        given = [] if values is None else checked_values(values, len(batch), self.dim)
        with self.handle.writing() as connection:
            self._uses.write(connection)
            known = self._keys.find(connection, [entry.key for entry in batch])
            result, added = put_records(connection, batch, known, self.max_records)
            if given:
                put_values(connection, dict(zip(result.records, given, strict=True)))
            if ingest is not None:
                put_progress(connection, ingest)
        self.handle.quarantined.difference_update(result.records)
        self._keys.note(added, self.handle)
        return result

    def edit(
        self,
        record: int,
        *,
        text: str | None = None,
        meta: Mapping[str, JSON] | None = None,
        vector: NDArray[np.float32] | bytes | None = None,
        value: NDArray[np.float32] | None = None,
    ) -> Record:
        """Change a record under its number; what is not given stays. A new text needs its vector.

        value: as in `add`, (D,).

        Raises:
            UsageError: no such record, a text without its vector, or the text of another record.
            DataError: it cannot be stored so; nothing is written.
        """
        if text is not None and vector is None:
            raise UsageError("a new text needs its vector", where=f"record {record}")
        given = None if value is None else checked_values(value[None], 1, self.dim)[0]
        self._keys.release(self.handle)

        def act(connection: sqlite3.Connection) -> None:
            rows = self.handle.checked(*fetch_rows(connection, storable_numbers([record])))
            if not rows:
                raise UsageError("is not stored, or is damaged", where=f"record {record}")
            replace_record(connection, record, changed(rows[0], self.dim, text, meta, vector))
            if given is not None:
                put_values(connection, {record: given})

        self.handle.write_even_when_full(act)
        return self.get([record])[0]

    def delete(self, records: Collection[int]) -> int:
        """Delete records, all at once; how many of them were stored."""
        numbers = storable_numbers(records)
        return self.handle.write_even_when_full(lambda connection: delete_records(connection, numbers))

    def delete_source(self, source: str, namespace: str | None = None) -> int:
        """Delete everything that came from a source; how many records that was."""
        if not (is_storable(source) and is_storable(namespace or "")):
            return 0
        query, values = "SELECT record FROM rec WHERE source = ?", [source]
        if namespace is not None:
            query, values = f"{query} AND namespace = ?", [source, namespace]

        def act(connection: sqlite3.Connection) -> int:
            return delete_records(connection, [row[0] for row in connection.execute(query, values)])

        return self.handle.write_even_when_full(act)

    def limit(self, max_records: int | None) -> int:
        """Set how many records the store may hold; how many of the least recently used left it."""
        if max_records == self.max_records:
            return 0

        def act(connection: sqlite3.Connection) -> tuple[Info, int]:
            self._uses.write(connection)
            return update_info(connection, max_records=max_records), evict_records(connection, max_records)

        self.handle.info, evicted = self.handle.write_even_when_full(act)
        return evicted

    def touch(self, records: Collection[int]) -> None:
        """Note that records were used, the last of them most recently; written within about a second, or at close."""
        if not self.handle.writes:
            return
        self._uses.note(storable_numbers(records))
        if self._uses.due() and self.handle.write_lock.acquire(blocking=False):
            try:
                self.flush()
            finally:
                self.handle.write_lock.release()

    def flush(self) -> None:
        """Write the uses noted so far; on a full disk they are given up, and only they."""
        if not self._uses:
            return
        try:
            with self.handle.writing() as connection:
                self._uses.write(connection)
        except ResourceError as error:
            self.handle.warn(f"which records were last used is not noted: {error.message}")

    def prune(self, upto: int) -> None:
        """Forget changes up to a seq, which no index or checkpoint needs any more."""
        with self.handle.writing() as connection:
            pruned = min(max(upto, read_info(connection).pruned), last_seq(connection))
            forget_changes(connection, pruned)
            info = update_info(connection, pruned=pruned)
        self.handle.info = info

    def compact(self) -> int:
        """Rewrite the file without what was deleted, replaced or evicted, of which no byte stays; bytes freed.

        Raises:
            ResourceError: less free space than 1.2 times the store.
            CheckpointError: the store is damaged; it is left as it was.
            LockedError: a reader is in the middle of a long read.
        """
        self.flush()
        return compact(self.handle)

    def close(self) -> None:
        """Write what was noted, take the log into the file, and let others write; closing twice does nothing."""
        try:
            self.flush()
            if self.handle.writes and not self.handle.closed:
                self._keys.release(self.handle)
        finally:
            self.handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
