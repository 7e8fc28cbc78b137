"""What a power cut leaves of a folder: a disk rebuilt from the calls that the shim recorded.

A written byte is durable once its file was synced after, a name once its folder was. What was not synced at the moment
of the cut may be there or not, in any mixture of sectors; names come and go in order.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Call", "Disk", "read_journal", "write_image"]

HEADER = struct.Struct("=cQQQ")
SECTOR = 512
BLOCK = 1 << 16


@dataclass(frozen=True)
class Call:
    """One recorded call.

    kind: w write, t truncate, a allocate, s sync, c create, r rename, u unlink, d make a folder, n a note.
    position: the offset of a write, or the length of a file. data: what was written, the new name, the note.
    """

    kind: str
    path: str
    position: int
    data: bytes


def read_journal(path: Path) -> Iterator[Call]:
    """The calls of a journal, in order; one that was cut off is left out."""
    data = path.read_bytes()
    start = 0
    while start + HEADER.size <= len(data):
        kind, path_length, position, length = HEADER.unpack_from(data, start)
        start += HEADER.size
        name = data[start : start + path_length].decode("utf-8", "surrogateescape")
        content = data[start + path_length : start + path_length + length]
        start += path_length + length
        if start <= len(data):
            yield Call(kind.decode(), name, position, content)


@dataclass
class File:
    """A file's bytes as the process sees them, as the disk has them, and the changes between."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, data) of writes, (length, None) of truncations."""

    def change(self, position: int, data: bytes | None) -> None:
        """Write, or truncate where there is no data."""
        _apply(self.seen, position, data)
        self.unsynced.append((position, data))

    def sync(self) -> None:
        """Make what is seen durable."""
        if self.unsynced:
            self.durable, self.unsynced = bytes(self.seen), []

    def cut(self, draw: random.Random | None) -> bytes:
        """What a power cut leaves: without `draw` what is durable only, else any of the later sectors too."""
        left = bytearray(self.durable)
        for position, data in self.unsynced if draw is not None else ():
            if data is None:
                if draw.random() < 0.5:  # type: ignore[union-attr]
                    _apply(left, position, None)
                continue
            for start in range(0, len(data), SECTOR):
                if draw.random() < 0.5:  # type: ignore[union-attr]
                    _apply(left, position + start, data[start : start + SECTOR])
        return bytes(left)


@dataclass
class Disk:
    """The files under `folder` while the calls of a journal are played, and what of them would outlast a cut."""

    folder: str
    seen: dict[str, File | None] = field(default_factory=dict)
    """By path; None is a folder."""
    durable: dict[str, File | None] = field(default_factory=dict)
    unsynced: list[tuple[Call, File | None]] = field(default_factory=list)
    """Changes of names whose folder was not synced since, each with the file that it made."""

    def play(self, call: Call) -> None:
        """Take in one call."""
        if call.kind in "curd":
            made = File() if call.kind == "c" else None
            _rename(self.seen, call, made)
            self.unsynced.append((call, made))
        elif call.kind == "s" and self._is_folder(call.path):
            due = [each for each in self.unsynced if call.path in _folders(each[0])]
            self.unsynced = [each for each in self.unsynced if call.path not in _folders(each[0])]
            for each, made in due:
                _rename(self.durable, each, made)
        elif call.kind in "wtas":
            file = self.seen.get(call.path)
            if file is None:
                return
            if call.kind == "s":
                file.sync()
            elif call.kind == "w":
                file.change(call.position, call.data)
            elif call.kind == "t" or call.position > len(file.seen):
                file.change(call.position, None)

    def cut(self, draw: random.Random | None = None) -> dict[str, bytes | None]:
        """The folder after a power cut, by path: bytes of files, None for folders."""
        names = dict(self.durable)
        for call, made in self.unsynced[: draw.randint(0, len(self.unsynced))] if draw is not None else ():
            _rename(names, call, made)
        return {path: None if file is None else file.cut(draw) for path, file in names.items()}

    def now(self) -> dict[str, bytes | None]:
        """The folder as the process sees it."""
        return {path: None if file is None else bytes(file.seen) for path, file in self.seen.items()}

    def _is_folder(self, path: str) -> bool:
        return path == self.folder or (path in self.seen and self.seen[path] is None)


def write_image(image: dict[str, bytes | None], origin: str, target: Path) -> None:
    """Put the files of an image, whose paths lie under `origin`, under `target` instead; runs of zeros become holes."""
    target.mkdir(parents=True, exist_ok=True)
    for name in sorted(image):
        if not name.startswith(origin + "/"):
            continue
        path = target / name[len(origin) + 1 :]
        data = image[name]
        if data is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        # A file can outlast a cut where the folder it was made in did not: nobody can reach it then.
        if not path.parent.is_dir():
            continue
        with open(path, "wb") as file:
            for start in range(0, len(data), BLOCK):
                block = data[start : start + BLOCK]
                if block.strip(b"\0"):
                    file.seek(start)
                    file.write(block)
            file.truncate(len(data))


def _apply(content: bytearray, position: int, data: bytes | None) -> None:
    end = position + (len(data) if data is not None else 0)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if data is None:
        del content[position:]
    else:
        content[position:end] = data


def _folders(call: Call) -> set[str]:
    """The folders whose entries a call changes."""
    names = [call.path, *([call.data.decode("utf-8", "surrogateescape")] if call.kind == "r" else [])]
    return {name.rpartition("/")[0] for name in names}


def _rename(names: dict[str, File | None], call: Call, made: File | None) -> None:
    """Change names as a call does; `made` is the file that it created, if it did."""
    if call.kind in "cd":
        names[call.path] = made
    elif call.kind == "u":
        names.pop(call.path, None)
    elif call.kind == "r":
        target = call.data.decode("utf-8", "surrogateescape")
        for path in [path for path in names if path == call.path or path.startswith(call.path + "/")]:
            names[target + path[len(call.path) :]] = names.pop(path)
