"""The tables of a memory store, how its one file is opened, and what its refusals mean.

    rec    a record a row; `crc` is of all the other columns
    use    when each record was last used, in the store's own time: no clock decides an order
    oplog  runs of neighbouring records added, updated or deleted together
    tally  live records of each namespace
    val    the second vector of a record that has one
    ingest how far each file has been taken in, committed with its rows
    info   what the store is: uuid, dim, fingerprint
    probe  texts with the vectors the encoder gave them

Every connection is made here. The file is in WAL mode: one connection writes and checkpoints, the others are opened
for reading only, so the checkpoint race of SQLite before 3.51.3 cannot arise.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cmrn.errors import CheckpointError, CMRNError, LockedError, ResourceError

__all__ = [
    "APPLICATION_ID",
    "DATABASE",
    "KEY_INDICES",
    "SCHEMA",
    "TABLES",
    "check_identity",
    "connect",
    "connect_still",
    "connected",
    "create_tables",
    "is_damage",
    "is_full",
    "marks",
    "store_errors",
    "transaction",
]

Durability: TypeAlias = Literal["full", "relaxed"]

DATABASE = "memory.db"
APPLICATION_ID = 0x434D524E
SCHEMA = 2
PAGE_BYTES = 16_384
CHECKPOINT_PAGES = 4_096
CACHE_KIB = 64 << 10
BUSY_SECONDS = 10.0

TABLES = """
CREATE TABLE rec (
    record INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, namespace TEXT NOT NULL, crc INTEGER NOT NULL,
    vec BLOB NOT NULL, source TEXT NOT NULL, id TEXT, origin TEXT NOT NULL, trust REAL NOT NULL, meta TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE TABLE val (record INTEGER PRIMARY KEY, vec BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE use (record INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE oplog (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL, record INTEGER NOT NULL, count INTEGER NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE tally (namespace TEXT PRIMARY KEY, records INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE ingest (
    file_hash TEXT PRIMARY KEY, offset INTEGER NOT NULL, line INTEGER NOT NULL, rejected INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE info (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE probe (text TEXT NOT NULL, vec BLOB NOT NULL);
CREATE INDEX use_seq ON use (seq);
CREATE INDEX rec_source ON rec (source, namespace);
"""

KEY_INDICES: Final = {
    "rec_key": "CREATE UNIQUE INDEX IF NOT EXISTS rec_key ON rec (key)",
    "rec_id": "CREATE INDEX IF NOT EXISTS rec_id ON rec (id) WHERE id IS NOT NULL",
}

_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_NOMEM", "SQLITE_IOERR_NOMEM"}
_KEPT = "every record acknowledged before is kept"


def connect(path: Path, *, write: bool, durability: Durability = "full") -> sqlite3.Connection:
    """A connection to an existing store's file; the caller closes it, and maps its errors by `store_errors`."""
    connection = _connect(path, "rw" if write else "ro")
    try:
        if write:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_PAGES * PAGE_BYTES}")
            connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
            connection.execute("PRAGMA secure_delete = ON")
        else:
            connection.execute("SELECT count(*) FROM info").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def connect_still(path: Path) -> sqlite3.Connection:
    """A connection to a file that nobody is writing, such as one in a read-only folder; it leaves no trace."""
    return _connect(path, "ro&immutable=1")


@contextmanager
def connected(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Close the connection at the end."""
    try:
        yield connection
    finally:
        connection.close()


def create_tables(connection: sqlite3.Connection) -> None:
    """Make a new store's tables and mark the file as a store of this schema."""
    with transaction(connection):
        for statement in (*TABLES.split(";"), *KEY_INDICES.values()):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


def check_identity(path: Path) -> int:
    """The schema version of the store's file, which is left untouched.

    Raises:
        CheckpointError: there is none, it is a link or no store, or a newer version of the package made it.
    """
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(
            f"holds no memory store: it has no {DATABASE}",
            where=str(path.parent),
            hint=f"make one with: cmrn memory populate FILE --store {path.parent}",
        )
    application, version = _header(path)
    if application != APPLICATION_ID:
        raise CheckpointError("is not a memory store; it is left as it was", where=str(path))
    if version > SCHEMA:
        message = f"has schema {version}, and this version of cmrn reads up to {SCHEMA}; it is left as it was"
        raise CheckpointError(message, where=str(path), hint="pip install --upgrade cmrn")
    return version


def _header(path: Path) -> tuple[int, int]:
    """The application id and the schema version in a file's first page; nothing else of it is read."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with store_errors(path), connected(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        # A file that a killed writer was taking the log into may be shorter than its first page says.
        connection.execute("PRAGMA writable_schema = ON")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        return application, connection.execute("PRAGMA user_version").fetchone()[0]


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the body or nothing; when it ends without an error, the body is as durable as the connection makes it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def store_errors(where: Path) -> Iterator[None]:
    """Turn SQLite's refusals into the package's errors."""
    try:
        yield
    except CMRNError:
        raise
    except MemoryError as error:
        raise ResourceError(f"out of memory; {_KEPT}", where=str(where)) from error
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _translated(error, str(where)) from error


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk, a quota or a limit on file sizes refused the write."""
    return _name(error) in _FULL


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file's pages contradict one another."""
    return _name(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_IOERR_SHORT_READ"))


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")


def _translated(error: sqlite3.Error, where: str) -> CMRNError:
    name = _name(error)
    if is_full(error):
        hint = "free some space and run again"
        return ResourceError(f"no space left to write it; {_KEPT}", where=where, hint=hint)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        return LockedError(f"is in use by another process; {_KEPT}", where=where, hint="wait for it to end")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return CheckpointError(f"cannot be opened or written: {error}", where=where)
    if name.startswith("SQLITE_NOTADB"):
        return CheckpointError("is not a memory store; it is left as it was", where=where)
    if name.startswith("SQLITE_IOERR") and not is_damage(error):
        return CheckpointError(f"the disk failed: {error}; {_KEPT}", where=where)
    hint = "see what is lost with: cmrn memory verify; save the rest with: cmrn memory export FILE"
    return CheckpointError(f"is damaged: {error}", where=where, hint=hint)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = bytes
    for setting in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "temp_store = MEMORY",
        f"cache_size = -{CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {setting}")
    return connection


def marks(values: Sequence[object]) -> str:
    """Placeholders for as many parameters."""
    return ",".join("?" * len(values))
