"""A store's file replaced by a better one: compacted, of a newer schema, or with another encoder's vectors.

The new file is made beside the old, verified, made durable, and renamed over it. Killed anywhere, the store is the
old one or the new one.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from cmrn.errors import CheckpointError, LockedError
from cmrn.files import storage_errors
from cmrn.memory.folder import INDEX, check_space, describe, private_file, size_of, swap_database, workspace
from cmrn.memory.handle import Handle
from cmrn.memory.schema import DATABASE, SCHEMA, check_identity, connect, connected, store_errors, transaction
from cmrn.memory.verify import find_problems

__all__ = ["MIGRATIONS", "check_current", "compact", "copy_database", "migrate", "rewrite"]

Change: TypeAlias = Callable[[sqlite3.Connection], None]

SPACE = 1.2


def _add_values(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE val (record INTEGER PRIMARY KEY, vec BLOB NOT NULL, crc INTEGER NOT NULL)")


MIGRATIONS: Mapping[int, Change] = {1: _add_values}
"""What leads from each schema to the next."""


def compact(handle: Handle) -> int:
    """Rewrite a store without what was deleted, replaced or evicted: no byte of it is left in the folder.

    The index is derived from what is left, so its snapshots go too.

    Returns: bytes freed.

    Raises:
        ResourceError: less free space than 1.2 times the store.
        CheckpointError: the store is damaged; it is left as it was.
        LockedError: a reader is in the middle of a long read.
    """
    return rewrite(handle, lambda connection: None)


def rewrite(handle: Handle, change: Change) -> int:
    """Replace a store's file by a compacted copy to which `change` was applied; bytes freed."""
    before = size_of(handle.folder)
    check_space(handle.folder, int(SPACE * before))
    with handle.alone() as writer, workspace(handle.folder) as temporary:
        new = temporary / DATABASE
        copy_database(writer, new, change)
        _empty_log(writer, handle.folder)
        shutil.rmtree(handle.folder / INDEX, ignore_errors=True)
        handle.replace(new)
        describe(handle.folder, handle.info)
    return before - size_of(handle.folder)


def copy_database(connection: sqlite3.Connection, new: Path, change: Change) -> None:
    """Write a compacted copy of a store, apply a change to it, and verify it.

    Raises:
        CheckpointError: the copy has problems, as when the store is damaged.
    """
    with storage_errors(new), private_file(new):
        pass
    with store_errors(new):
        connection.execute("VACUUM INTO ?", (str(new),))
        with connected(connect(new, write=True)) as copy:
            change(copy)
            problems = find_problems(copy)
    if problems:
        first = problems[0]
        raise CheckpointError(
            f"is damaged, in {len(problems)} places: {first.where} {first.what}; it is left as it was",
            where=str(new.parent.parent),
            hint="see what is lost with: cmrn memory verify; save the rest with: cmrn memory export FILE",
        )


def check_current(folder: Path, write: bool) -> None:
    """Refuse what is no store, or one that this call cannot bring up to date; the folder is left as it was.

    Raises:
        CheckpointError: no store, a newer schema, or an older one opened for reading.
    """
    version = check_identity(folder / DATABASE)
    if version < SCHEMA and not write:
        message = f"has the older schema {version}; this version of cmrn reads {SCHEMA}"
        raise CheckpointError(message, where=str(folder), hint="bring it up to date with: cmrn memory compact")


def migrate(folder: Path, steps: Mapping[int, Change] = MIGRATIONS, target: int = SCHEMA) -> None:
    """Bring a store of which the lock is held to the target schema; a step leads from its number to the next.

    Raises:
        CheckpointError: a step is missing; the store is left as it was.
    """
    path = folder / DATABASE
    version = check_identity(path)
    if version == target:
        return
    if any(each not in steps for each in range(version, target)):
        message = f"has schema {version}, and this version of cmrn reads {target}; it is left as it was"
        raise CheckpointError(message, where=str(path))

    def change(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            for each in range(version, target):
                steps[each](connection)
            connection.execute(f"PRAGMA user_version = {target}")

    check_space(folder, int(SPACE * size_of(folder)))
    with workspace(folder) as temporary:
        with store_errors(path), connected(connect(path, write=True)) as connection:
            copy_database(connection, temporary / DATABASE, change)
            _empty_log(connection, folder)
        swap_database(temporary / DATABASE, path)


def _empty_log(connection: sqlite3.Connection, folder: Path) -> None:
    """Take the whole write-ahead log into the database file: what replaces that must not meet the log."""
    with store_errors(folder):
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise LockedError("is being read", where=str(folder), hint="wait for the readers to end")
