"""The open connections of one store: one that writes, if this process may, one that reads, and their locks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TypeAlias, TypeVar

from cmrn.errors import ResourceError, UsageError
from cmrn.files import storage_errors, sync_directory
from cmrn.memory.folder import free_reserve, held_lock, make_ready, opening, swap_database
from cmrn.memory.info import Info, read_info
from cmrn.memory.rows import Row, is_sound
from cmrn.memory.schema import (
    DATABASE,
    Durability,
    connect,
    connect_still,
    connected,
    is_full,
    store_errors,
    transaction,
)

__all__ = ["Handle", "Warn"]

Result = TypeVar("Result")
Warn: TypeAlias = Callable[[str], None]


class Handle:
    """Reads and writes of one store, each under its lock, so that one thread may write while others read.

    write: whether to take the writer's lock, waiting for it up to `wait` seconds, and make the folder ready.
    prepare: called with the lock held before the database is opened: it may create or replace it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        write: bool,
        wait: float,
        durability: Durability,
        warn: Warn,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.durability = durability
        self.quarantined: set[int] = set()
        self.write_lock, self.read_lock = RLock(), RLock()
        self._path = folder / DATABASE
        self._warn = warn
        self._write = write
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        with ExitStack() as stack:
            if write:
                stack.enter_context(_whole_folder(folder))
                stack.enter_context(held_lock(folder, wait))
                make_ready(folder)
                prepare()
            self.connect()
            self._lock = stack.pop_all()

    @property
    def closed(self) -> bool:
        """Whether its connections are closed."""
        return self._reader is None

    @property
    def writes(self) -> bool:
        """Whether this process is the store's writer."""
        return self._write

    def connect(self) -> None:
        """Open the connections and read what the store says of itself."""
        with store_errors(self._path):
            try:
                self._seen = _identity(self._path)
                if self._write:
                    self._writer = connect(self._path, write=True, durability=self.durability)
                self._reader = self._open_reader()
                self.info: Info = read_info(self._reader)
            except BaseException:
                self.disconnect()
                raise

    def disconnect(self) -> None:
        """Close the connections, the writing one last: so the log is taken into the file."""
        reader, writer, self._reader, self._writer = self._reader, self._writer, None, None
        with store_errors(self._path):
            for connection in (reader, writer):
                if connection is not None:
                    connection.close()

    def close(self) -> None:
        """Close the connections and let others write; closing twice does nothing."""
        with self.write_lock, self.read_lock:
            try:
                self.disconnect()
            finally:
                self._lock.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The reading connection, to the store as it was last committed."""
        with self.read_lock, store_errors(self._path):
            if self._reader is None:
                raise UsageError("the store is closed", where=str(self.folder))
            if not self._write and _identity(self._path) != self._seen:
                self.disconnect()
                self.connect()
            assert self._reader is not None
            yield self._reader

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The writing connection within a transaction, which is durable once the body has ended.

        Raises:
            UsageError: the store was opened for reading.
        """
        with self.write_lock, store_errors(self._path):
            writer = self._own_writer()
            with transaction(writer):
                yield writer

    def write_even_when_full(self, act: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do what frees space in a transaction, on a full disk with the reserve's help."""
        try:
            with self.writing() as connection:
                return act(connection)
        except ResourceError:
            if not free_reserve(self.folder):
                raise
        with self.writing() as connection:
            return act(connection)

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The writing connection, outside a transaction, with no other thread writing or reading."""
        with self.write_lock, self.read_lock, store_errors(self._path):
            yield self._own_writer()

    def sync(self) -> None:
        """Make all that was committed durable, also where commits are relaxed."""
        log = self._path.with_name(f"{self._path.name}-wal")
        with storage_errors(log), suppress(FileNotFoundError):
            descriptor = os.open(log, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_directory(self.folder)

    @contextmanager
    def another_reader(self) -> Iterator[sqlite3.Connection]:
        """A reading connection for a long read, which keeps no other thread waiting."""
        with store_errors(self._path), connected(self._open_reader()) as connection:
            yield connection

    def replace(self, new: Path) -> None:
        """Put a finished database in the place of the store's; only within `alone`, and with the log empty."""
        self.disconnect()
        try:
            swap_database(new, self._path)
        finally:
            self.connect()

    def checked(self, rows: Iterable[Row], unreadable: Iterable[int] = ()) -> list[Row]:
        """The sound ones of rows; records that are damaged are told of, each once, and set aside."""
        sound = []
        for row in rows:
            if is_sound(row):
                sound.append(row)
            else:
                self._quarantine(row[0])
        for record in unreadable:
            self._quarantine(record)
        return sound

    def warn(self, message: str) -> None:
        """Tell the store's owner something that is no failure."""
        self._warn(f"{self.folder}: {message}")

    def _own_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            state = "is open for reading only" if self._reader else "is closed"
            raise UsageError(f"the store {state}", where=str(self.folder), hint="open it with write=True")
        return self._writer

    def _quarantine(self, record: int) -> None:
        if record not in self.quarantined:
            self.quarantined.add(record)
            self.warn(f"record {record} is damaged and left out; see: cmrn memory verify")

    def _open_reader(self) -> sqlite3.Connection:
        with storage_errors(self._path), opening(self.folder):
            try:
                return connect(self._path, write=False)
            except sqlite3.Error as error:
                if is_full(error) and free_reserve(self.folder):
                    return connect(self._path, write=False)
                if not _is_still(self._path):
                    raise
            return connect_still(self._path)


def _identity(path: Path) -> tuple[int, int]:
    with storage_errors(path):
        status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_still(path: Path) -> bool:
    """Whether nobody can be writing: the folder takes no files, and no log waits beside the database."""
    log = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and (not log.exists() or log.stat().st_size == 0)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[None]:
    """The folder, made private if this makes it."""
    with storage_errors(folder):
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in missing:
            sync_directory(each.parent)
    yield
