"""Bytes of a file or stream, line by line, in bounded memory: a line feed ends one, nothing else does."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from cmrn.errors import DataError, UsageError

__all__ = ["LONGEST_LINE", "Line", "Source", "open_source", "read_lines"]

LONGEST_LINE = 8 << 20
# A line that goes on for longer is no line: reading would never end.
ENDLESS_LINE = 4 << 30
CHUNK = 1 << 20
# gzip cannot pass 1,032 to 1, and text does not come near: beyond this a file only pretends to be one.
BOMB_RATIO = 200
BOMB_FROM = 64 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1, where it begins and ends in the (decompressed) bytes, and those bytes.

    data: None for a line of more than 8 MiB.
    """

    number: int
    offset: int
    end: int
    data: bytes | None


@dataclass(frozen=True)
class Source:
    """An open input: what to call it, its bytes as read, and the file below where those are decompressed."""

    name: str
    stream: BinaryIO
    compressed: BinaryIO | None = None

    def check(self, position: int) -> None:
        """Refuse a compressed file that turns into far more than text can.

        Raises:
            DataError: it has grown beyond 64 MiB and beyond 200 times what was read of it.
        """
        if self.compressed is not None and position > BOMB_FROM and position > BOMB_RATIO * self.compressed.tell():
            raise DataError(
                f"expands to more than {BOMB_RATIO} times its size: it is no compressed text",
                where=f"{self.name} byte {position}",
            )


@contextmanager
def open_source(path: Path | None, stdin: BinaryIO | None = None) -> Iterator[Source]:
    """The input at `path`, decompressed where it ends in .gz; `stdin` where path is None.

    Raises:
        UsageError: no such file, or one that is no regular file.
        DataError: while it is read: damaged, or a disk that fails.
    """
    name = "stdin" if path is None else str(path)
    with ExitStack() as stack:
        if path is None:
            assert stdin is not None
            source = Source(name, stdin)
        else:
            raw = stack.enter_context(_open_regular(path))
            if path.suffix == ".gz":
                source = Source(name, cast(BinaryIO, stack.enter_context(gzip.open(raw))), raw)
            else:
                source = Source(name, raw)
        try:
            yield source
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"is damaged: {error}", where=name, hint="what came before it is kept") from error


def _open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading without waiting: a pipe or device is refused, not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        kind = "a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "a pipe or device"
        os.close(descriptor)
        hint = "name the files in it" if kind == "a folder" else f"cmrn memory populate - < {path}"
        raise UsageError(f"is {kind}, not a file", where=str(path), hint=hint)
    return os.fdopen(descriptor, "rb", buffering=CHUNK)


def read_lines(source: Source) -> Iterator[Line]:
    """Every line of a source in order.

    Raises:
        DataError: a line without an end, or a file that expands without one.
    """
    number = position = 0
    while data := source.stream.readline(LONGEST_LINE + 1):
        number, start = number + 1, position
        position += len(data)
        source.check(position)
        if len(data) > LONGEST_LINE and not data.endswith(b"\n"):
            position = _pass_over(source, position)
            yield Line(number, start, position, None)
        else:
            yield Line(number, start, position, data)


def _pass_over(source: Source, position: int) -> int:
    """The end of the line that began before `position`."""
    start = position
    while rest := source.stream.readline(CHUNK):
        position += len(rest)
        source.check(position)
        if rest.endswith(b"\n"):
            break
        if position - start > ENDLESS_LINE:
            raise DataError("a line goes on for 4 GiB: this is no text", where=f"{source.name} byte {start}")
    return position
