"""Durable writes: what a name points at is always whole, the old or the new, whenever the process dies.

`write_file` and `write_folder` are the only ways the package writes what it later relies on. Both write beside the
target, under `NAME.tmp-…`, make every byte durable, then rename. A folder carries `manifest.json` (size and BLAKE2b
of each file), checked by `verify_folder` before anything in it is parsed.

One process writes a name at a time; a run directory is guarded by `writer_lock`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from cmrn.errors import CheckpointError, CMRNError, LockedError, ResourceError

__all__ = [
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "check_writable",
    "read_json",
    "remove_strays",
    "storage_errors",
    "sync_directory",
    "verify_folder",
    "write_file",
    "write_folder",
    "writer_lock",
]

MANIFEST = "manifest.json"
LOCK = "LOCK"
MANIFEST_FORMAT = 1
JSON_LIMIT_BYTES = 64 << 20
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM}
STRAY = re.compile(r"(?P<name>.+)\.(?P<kind>tmp|old)-[0-9a-f]{12}")


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of one file: its size in bytes and the BLAKE2b-256 of its contents, in hexadecimal."""

    size: int
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, by relative path with forward slashes."""

    files: dict[str, FileEntry]


def write_file(path: Path, *parts: bytes | memoryview, private: bool = False) -> None:
    """Replace the file at `path` with `parts` joined: then it is durable, and at any moment before it is the old one.

    private: whether only its owner may read it, from its first byte on. A device or a pipe is written to, not replaced.

    Raises:
        ResourceError: the disk is full; the old file is whole.
        CheckpointError: the file cannot be written, as in a read-only folder.
    """
    temporary = _temporary(path, "tmp")
    with storage_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(b"".join(parts))
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_strays_of(path, "tmp")
        try:
            with open(temporary, "xb", opener=partial(os.open, mode=0o600 if private else 0o666)) as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; on leaving, its manifest is written, all is made durable, and it becomes `folder`.

    An existing `folder` is replaced if it is empty or holds a manifest. If the body fails nothing remains.

    Raises:
        ResourceError: the disk is full; an existing `folder` is whole.
        CheckpointError: `folder` cannot be written, or holds something that no `write_folder` wrote.
    """
    with storage_errors(folder):
        if folder.exists() and not _replaceable(folder):
            raise CheckpointError(
                "is in the way: it is neither empty nor a folder written by cmrn",
                where=str(folder),
                hint="choose another folder, or remove this one",
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_strays_of(folder, "tmp")
        temporary = _temporary(folder, "tmp")
        temporary.mkdir()
        try:
            yield temporary
            _write_manifest(temporary)
            _sync_tree(temporary)
            _put_in_place(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Say now what `write_folder` would say later, so that nothing is computed in vain.

    Raises:
        CheckpointError: the folder could not be made where it is to be.
    """
    with storage_errors(folder):
        above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        told = "may not be written to" if above.is_dir() else "is no folder"
        raise CheckpointError(f"cannot be written: {above} {told}", where=str(folder), hint="choose another folder")


def verify_folder(folder: Path, links_within: Path | None = None) -> Manifest:
    """The manifest of `folder`, once every file it names has been found and has the size and hash it states.

    Nothing but the manifest is parsed. Files that the manifest does not name are left alone, and must not be read.
    links_within: where given, a file may be a symbolic link to a file inside this folder, as in the hub's cache.

    Raises:
        CheckpointError: no manifest, a path that leaves the folder, a link, or a file missing or changed.
    """
    if not folder.is_dir():
        raise CheckpointError("is not a folder", where=str(folder))
    manifest = _read_manifest(folder, links_within)
    for name, entry in manifest.files.items():
        path = _contained(folder, name, links_within)
        size, digest = _fingerprint(path)
        if size != entry.size:
            raise CheckpointError(f"is corrupt: {size} bytes where {MANIFEST} says {entry.size}", where=str(path))
        if digest != entry.blake2b:
            raise CheckpointError(f"is corrupt: its contents differ from the hash in {MANIFEST}", where=str(path))
    return manifest


def read_json(path: Path) -> Any:
    """The JSON document in `path`.

    Raises:
        CheckpointError: unreadable, larger than 64 MiB, or not JSON.
    """
    try:
        if path.stat().st_size > JSON_LIMIT_BYTES:
            raise CheckpointError("is larger than any file of its kind", where=str(path))
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("is corrupt: not a JSON document", where=str(path)) from error


def remove_strays(folder: Path) -> None:
    """Remove what killed writers left in `folder`; only for the process that holds its lock."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        stray = STRAY.fullmatch(path.name)
        if stray and stray["kind"] == "old" and not (folder / stray["name"]).exists():
            path.rename(folder / stray["name"])
        elif stray:
            _remove(path)


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the one writer's lock of `folder`; the system releases it when the process ends, however it ends.

    Raises:
        LockedError: another process holds it; the message names process and host.
    """
    import fcntl

    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
                raise CheckpointError(f"cannot be locked: {error.strerror}", where=str(folder)) from error
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise LockedError(f"is being written by {holder}", where=str(folder), hint="wait for it to end") from error
        # Whose it is helps a person; on a full disk the lock is held without.
        with suppress(OSError):
            name = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
            os.ftruncate(descriptor, os.pwrite(descriptor, name, 0))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn the system's refusals to write into the package's errors."""
    try:
        yield
    except CMRNError:
        raise
    except Exception as error:
        code = _system_error(error)
        if code in FULL:
            message = "no space left to write it; what was saved before is whole"
            raise ResourceError(message, where=str(where), hint="free some space and run again") from error
        if code is not None:
            raise CheckpointError(f"cannot be written: {os.strerror(code)}", where=str(where)) from error
        raise


def sync_directory(folder: Path) -> None:
    """Make the names in a folder durable: what was created, renamed or removed there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems cannot sync a folder; a rename there is as durable as they make it.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _system_error(error: Exception) -> int | None:
    """The system's error number behind an exception; safetensors gives it in the text of its own only."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":
        code = re.search(r"(?:os error |code: )(\d+)", str(error))
        return int(code[1]) if code else None
    return None


def _temporary(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}-{secrets.token_hex(6)}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_strays_of(path: Path, kind: str) -> None:
    """Remove what killed writers of this name left beside it."""
    for sibling in path.parent.iterdir():
        stray = STRAY.fullmatch(sibling.name)
        if stray and stray["name"] == path.name and stray["kind"] == kind:
            _remove(sibling)


def _replaceable(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / MANIFEST).is_file() or not any(folder.iterdir())


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`; an old `folder` is set aside first and removed last, so one is always whole."""
    aside = _temporary(folder, "old")
    replaces = folder.exists()
    if replaces:
        os.rename(folder, aside)
    try:
        os.rename(temporary, folder)
    except OSError:
        if replaces:
            os.rename(aside, folder)
        raise
    sync_directory(folder.parent)
    _remove_strays_of(folder, "old")


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            size, digest = _fingerprint(path)
            files[path.relative_to(folder).as_posix()] = {"size": size, "blake2b": digest}
    document = {"format_version": MANIFEST_FORMAT, "files": files}
    (folder / MANIFEST).write_text(_spelled(document), encoding="utf-8")


def _spelled(document: dict[str, Any]) -> str:
    """The one way a manifest is written: any other spelling of the same facts is a changed file."""
    return json.dumps(document, indent=1) + "\n"


def _read_manifest(folder: Path, links_within: Path | None) -> Manifest:
    where = str(folder / MANIFEST)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"is incomplete: it has no {MANIFEST}", where=str(folder))
    path = _contained(folder, MANIFEST, links_within)
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise CheckpointError("is corrupt: it lists no files", where=where)
    if document.get("format_version") != MANIFEST_FORMAT:
        found = document.get("format_version")
        raise CheckpointError(f"has format {found!r}; this version reads {MANIFEST_FORMAT}", where=where)
    entries = {}
    for name, entry in document["files"].items():
        size, digest = (entry.get("size"), entry.get("blake2b")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or type(digest) is not str:
            raise CheckpointError(f"is corrupt: no size and hash for {name!r}", where=where)
        entries[name] = FileEntry(size, digest)
    if path.read_bytes() != _spelled(document).encode():
        raise CheckpointError("is corrupt: it is not spelled as it was written", where=where)
    return Manifest(entries)


def _contained(folder: Path, name: str, links_within: Path | None) -> Path:
    """The path of a file named by a manifest, which must lie in `folder` by its name and in fact."""
    pure = PurePosixPath(name)
    plain = pure.parts and pure.as_posix() == name and not set("\\\0") & set(name)
    if not plain or pure.is_absolute() or ".." in pure.parts:
        raise CheckpointError(f"names a path outside its folder: {name!r}", where=str(folder / MANIFEST))
    path = folder / name
    linked = any((folder / part).is_symlink() for part in [pure, *pure.parents][:-1])
    if linked and (links_within is None or not path.resolve().is_relative_to(links_within.resolve())):
        raise CheckpointError("is a symbolic link, which is not followed", where=str(path))
    if not path.is_file():
        raise CheckpointError("is missing", where=str(path))
    return path


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and BLAKE2b-256 of a file."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
            return file.tell(), digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _sync_tree(folder: Path) -> None:
    """Make every file and folder below, and `folder` itself, durable."""
    for base, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(base, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(base))
