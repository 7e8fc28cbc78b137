"""A store's folder: who may write in it, what stands ready there, and how its one database is made or replaced."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cmrn.errors import CheckpointError, LockedError, ResourceError, UsageError
from cmrn.files import remove_strays, storage_errors, sync_directory, write_file, writer_lock
from cmrn.memory.info import Info, write_info
from cmrn.memory.schema import (
    DATABASE,
    SCHEMA,
    connect,
    connected,
    create_tables,
    store_errors,
    transaction,
)

__all__ = [
    "INDEX",
    "RESERVE",
    "check_output",
    "check_place",
    "create_database",
    "describe",
    "filesystem_of",
    "free_reserve",
    "held_lock",
    "make_ready",
    "opening",
    "private_file",
    "size_of",
    "swap_database",
    "workspace",
]

INDEX = "index"
RESERVE = "RESERVE"
RESERVE_BYTES = 16 << 20
FORMAT = "format.json"
OURS = re.compile(r"LOCK|RESERVE|index|format\.json|.*\.tmp-[0-9a-f]{12}")
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs", "fuse.sshfs"}
WAIT_SECONDS = 0.05


@contextmanager
def held_lock(folder: Path, wait: float) -> Iterator[None]:
    """Hold the one writer's lock, after waiting for it up to `wait` seconds.

    Raises:
        LockedError: another process held it all the while.
    """
    until = time.monotonic() + wait
    while True:
        lock = writer_lock(folder)
        try:
            lock.__enter__()
            break
        except LockedError:
            if time.monotonic() >= until:
                raise
            time.sleep(WAIT_SECONDS)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def check_place(folder: Path, *, mounts: str | None = None) -> None:
    """Refuse a folder on a network filesystem, where SQLite's write-ahead log cannot be shared.

    mounts: the table of mounted filesystems, instead of the system's.

    Raises:
        CheckpointError: it is on one.
    """
    kind = filesystem_of(folder, mounts)
    if kind in REMOTE:
        raise CheckpointError(
            f"is on a network filesystem ({kind}), where a memory store would not be safe",
            where=str(folder),
            hint="keep the store on a local disk; `cmrn memory copy` makes a copy to share",
        )


def filesystem_of(folder: Path, mounts: str | None = None) -> str:
    """The kind of filesystem a folder is or would be on, "" where the system does not say."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    real = folder.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), words[1]))
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), words[2]
    return kind


def make_ready(folder: Path) -> None:
    """Remove what killed writers left and set the reserve aside; only for the process that holds the lock."""
    with storage_errors(folder):
        remove_strays(folder)
        remove_strays(folder / INDEX)
    reserve = folder / RESERVE
    if reserve.is_file() and reserve.stat().st_size == RESERVE_BYTES:
        return
    try:
        with private_file(reserve) as descriptor:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            else:
                os.write(descriptor, bytes(RESERVE_BYTES))
    except OSError:
        # On a disk this full there is nothing to set aside; what is stored works without.
        reserve.unlink(missing_ok=True)


def free_reserve(folder: Path) -> bool:
    """Give the reserve's space back to a full disk; whether there was any."""
    try:
        (folder / RESERVE).unlink()
    except OSError:
        return False
    return True


def create_database(folder: Path, info: Info) -> None:
    """Make a store in a folder of which the lock is held: the whole of it, or nothing.

    Raises:
        CheckpointError: the folder holds a store, or anything that is not part of one.
    """
    check_vacant(folder)
    with storage_errors(folder):
        sync_directory(folder.parent)
    with workspace(folder) as temporary:
        path = temporary / DATABASE
        with private_file(path):
            pass
        with store_errors(path), connected(connect(path, write=True)) as connection:
            create_tables(connection)
            with transaction(connection):
                write_info(connection, info)
        describe(folder, info)
        swap_database(path, folder / DATABASE)


def check_vacant(folder: Path) -> None:
    """Refuse a folder in which a store would be in the way of something.

    Raises:
        CheckpointError: it holds a store, or anything that is not part of one, or lies within one.
    """
    if (folder / DATABASE).exists() or (folder / DATABASE).is_symlink():
        raise CheckpointError("already holds a memory store", where=str(folder))
    if folder.exists() and not folder.is_dir():
        raise CheckpointError("is not a folder", where=str(folder))
    foreign = [path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)] if folder.exists() else []
    outer = next((each for each in folder.absolute().parents if (each / DATABASE).is_file()), None)
    if outer is not None:
        raise CheckpointError(f"lies within another store, {outer}", where=str(folder), hint="choose another folder")
    if foreign:
        message = f"holds other things, such as {sorted(foreign)[0]!r}; it is left as it was"
        raise CheckpointError(message, where=str(folder), hint="choose an empty folder, or a new one")


def check_output(path: Path, store: Path, inputs: Collection[Path] = ()) -> None:
    """Refuse a name for a file to be written where something else would be destroyed by it.

    inputs: files that are read meanwhile.

    Raises:
        UsageError: it names a folder, a device or a pipe, a file within the store, or one of the inputs.
    """
    hint = "name a new file, or one that may be replaced"
    with storage_errors(path):
        if not path.name or path.is_dir():
            raise UsageError("is a folder, where a file is to be written", where=str(path), hint=hint)
        if path.exists() and not path.is_file():
            raise UsageError("is no file that could be written anew", where=str(path), hint=hint)
        real = path.resolve()
        if real.is_relative_to(store.resolve()):
            raise UsageError("lies within the store", where=str(path), hint=hint)
        if any(real == each.resolve() for each in inputs):
            raise UsageError("is read at the same time", where=str(path), hint=hint)


def describe(folder: Path, info: Info) -> None:
    """Write the page about the store that people read and programs do not."""
    document = {
        "format": "cmrn memory store",
        "schema": SCHEMA,
        "uuid": info.uuid,
        "dim": info.fingerprint.dim,
        "embedder": info.fingerprint.embedder,
        "records": f"{DATABASE} (SQLite) is the truth; {INDEX}/ is derived from it and may be removed",
    }
    write_file(folder / FORMAT, (json.dumps(document, indent=1) + "\n").encode(), private=True)


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A folder for the next database, beside the present one; it is gone at the end, or at the next opening."""
    temporary = folder / f"next.tmp-{secrets.token_hex(6)}"
    with storage_errors(folder):
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def swap_database(new: Path, old: Path) -> None:
    """Put a finished, closed database where a store's is; of that, no connection of this process may be open.

    Readers in other processes keep what they had open, whole, until they look again. None can be half through
    opening: they hold the folder's lock, shared, while they are.
    """
    if new.with_name(f"{new.name}-wal").exists():
        # Closing takes the log into the file, and says nothing where the disk refuses that.
        raise CheckpointError("cannot be replaced: the disk failed; it is left as it was", where=str(old))
    with storage_errors(old):
        descriptor = os.open(new, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with opening(old.parent, alone=True):
            for suffix in ("-wal", "-shm"):
                old.with_name(old.name + suffix).unlink(missing_ok=True)
            os.replace(new, old)
            sync_directory(old.parent)


@contextmanager
def opening(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Keep the database from being replaced while a connection to it is opened; `alone`, keep others from opening."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def private_file(path: Path) -> Iterator[int]:
    """A new, empty file that only its owner may read or write."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def size_of(folder: Path) -> int:
    """Bytes of the store's files, without its reserve."""
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.lstat().st_size if path.is_file() and path.name != RESERVE else 0
        except FileNotFoundError:
            continue
    return sizes


def check_space(folder: Path, bytes_needed: int) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        ResourceError: less space is free.
    """
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        message = f"needs {bytes_needed >> 20} MiB free beside it, and {free >> 20} are; it is left as it was"
        raise ResourceError(message, where=str(folder), hint="free some space and run again")
