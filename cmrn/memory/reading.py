"""Records from files of people's own making: JSON Lines, JSON, CSV, text, each also gzipped. Every line is suspect.

What can be read is yielded as `Good`, what cannot as `Rejected` with its place and reason; nothing else is raised for a
line. Memory is bounded whatever the input.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from cmrn.errors import DataError, UsageError
from cmrn.memory.entry import NewRecord
from cmrn.memory.fields import Fields, RefusedError, parse_json, to_record
from cmrn.memory.lines import LONGEST_LINE, Line, Source, open_source, read_lines

__all__ = ["Fields", "Good", "Item", "Rejected", "check_input", "read_records"]

LARGEST_DOCUMENT = 64 << 20
BLANK = " \t\r\n"
MARK = "\ufeff"
TOO_LONG = "is longer than 8 MiB"


@dataclass(frozen=True, slots=True)
class Good:
    """A record without its vector; its line from 1, and the bytes of the input it came from."""

    line: int
    offset: int
    end: int
    record: NewRecord


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that gave no record, and why."""

    line: int
    offset: int
    end: int
    reason: str


Item: TypeAlias = Good | Rejected


def check_input(path: Path | None) -> None:
    """Refuse an input that cannot be read, before any work is done.

    Raises:
        UsageError: no such file, no regular file, or of an unknown kind.
    """
    if path is not None:
        _reader_of(path)
        with open_source(path):
            pass


def read_records(path: Path | None, fields: Fields, stdin: BinaryIO | None = None) -> Iterator[Item]:
    """Every record and every refused line of an input, in order; `stdin` is read as JSON Lines where path is None.

    Raises:
        UsageError: as `check_input`.
        DataError: the whole input is unreadable: damaged, an endless line, a table without the text's column.
    """
    read = _read_json_lines if path is None else _reader_of(path)
    with open_source(path, stdin) as source:
        yield from read(source, fields)


def _reader_of(path: Path) -> Callable[[Source, Fields], Iterator[Item]]:
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind not in _READERS:
        known = ", ".join(_READERS)
        raise UsageError(
            f"cannot tell what kind of file it is: {kind or 'no ending'}",
            where=str(path),
            hint=f"name it {known}, any of them with .gz, or give JSON Lines on stdin: cmrn memory populate - < FILE",
        )
    return _READERS[kind]


def _source_name(source: Source) -> str:
    return Path(source.name).name


def _text_of(line: Line, *, mark: bool = False) -> str:
    """The line as text; a byte order mark at its beginning is refused, or dropped where `mark` allows it."""
    if line.data is None:
        raise RefusedError(TOO_LONG)
    try:
        text = line.data.decode()
    except UnicodeDecodeError as error:
        raise RefusedError(f"is not UTF-8: byte {line.offset + error.start}") from error
    if mark:
        return text.removeprefix(MARK)
    if text.startswith(MARK):
        raise RefusedError("begins with a byte order mark")
    return text


def _each_line(source: Source, record_of: Callable[[str], NewRecord]) -> Iterator[Item]:
    for line in read_lines(source):
        try:
            text = _text_of(line)
            if text.strip(BLANK):
                yield Good(line.number, line.offset, line.end, record_of(text))
        except RefusedError as refused:
            yield Rejected(line.number, line.offset, line.end, str(refused))


def _read_json_lines(source: Source, fields: Fields) -> Iterator[Item]:
    name = _source_name(source)
    yield from _each_line(source, lambda text: to_record(parse_json(text), fields, name))


def _read_text(source: Source, fields: Fields) -> Iterator[Item]:
    """A record a line; no line has fields, so the options' names for them mean nothing."""
    name = _source_name(source)
    plain = Fields(namespace=fields.namespace, source=fields.source)

    def record_of(text: str) -> NewRecord:
        return to_record({"text": text.removesuffix("\n").removesuffix("\r")}, plain, name)

    yield from _each_line(source, record_of)


def _read_json(source: Source, fields: Fields) -> Iterator[Item]:
    """The objects of one array, or one object; after an element that is no JSON nothing can be found again."""
    data = source.stream.read(LARGEST_DOCUMENT + 1)
    if len(data) > LARGEST_DOCUMENT:
        raise DataError("is a JSON document of more than 64 MiB", where=source.name, hint="use JSON Lines (.jsonl)")
    name, size = _source_name(source), len(data)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield Rejected(1 + data.count(b"\n", 0, error.start), 0, size, f"is not UTF-8: byte {error.start}")
        return
    del data
    line, offset, seen = 1, 0, 0
    for start, stop, readable in _elements(text):
        line, offset, seen = line + text.count("\n", seen, start), offset + len(text[seen:start].encode()), start
        end = offset + len(text[start:stop].encode())
        try:
            if not readable:
                raise RefusedError("not JSON; nothing after it was read")
            yield Good(line, offset, end, to_record(parse_json(text[start:stop]), fields, name))
        except RefusedError as refused:
            yield Rejected(line, offset, end, str(refused))


def _elements(text: str) -> Iterator[tuple[int, int, bool]]:
    """Where each element of the array in `text` begins and ends, or its one value; False for a rest that is no JSON."""
    at = _past_blank(text, 0)
    array = text.startswith("[", at)
    at = _past_blank(text, at + 1) if array else at
    done = array and text.startswith("]", at)
    while not done and at < len(text):
        stop = _end_of_value(text, at)
        if stop is None:
            break
        yield at, stop, True
        at = _past_blank(text, stop)
        done = not array or text.startswith("]", at)
        if not done:
            if not text.startswith(",", at):
                break
            at = _past_blank(text, at + 1)
    if array and done:
        at = _past_blank(text, at + 1)
    if at < len(text) or (array and not done):
        yield at, len(text), False


def _end_of_value(text: str, at: int) -> int | None:
    """Where the JSON value that begins there ends, read leniently; None where there is none."""
    try:
        return json.JSONDecoder(parse_int=str, parse_float=str).raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _past_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in BLANK:
        at += 1
    return at


def _read_table(source: Source, fields: Fields, delimiter: str) -> Iterator[Item]:
    """A record a row below the row of names; a quoted field may hold line ends."""
    # The library's limit for a field, a setting of the whole process, is below that of a text here.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    lines = read_lines(source)
    rows = _Rows(lines, delimiter)
    name, header = _source_name(source), None
    while (taken := rows.next_row()) is not None:
        first, end, cells = taken
        if header is None:
            header = _names_of(cells, fields, source)
            continue
        try:
            if isinstance(cells, RefusedError):
                raise cells
            if not cells:
                continue
            if len(cells) != len(header):
                raise RefusedError(f"has {len(cells)} fields where the first line names {len(header)}")
            row = {key: cell for key, cell in zip(header, cells, strict=True) if cell or key == fields.text}
            yield Good(first.number, first.offset, end, to_record(row, fields, name))
        except RefusedError as refused:
            yield Rejected(first.number, first.offset, end, str(refused))


class _Rows:
    """Rows of a table, each parsed on its own, so that a broken one does not take the next with it."""

    def __init__(self, lines: Iterator[Line], delimiter: str) -> None:
        self.lines = lines
        self.delimiter = delimiter
        self.taken: list[Line] = []

    def next_row(self) -> tuple[Line, int, list[str] | RefusedError] | None:
        """The row's first line, the byte after it, and its cells or why there are none; None at the end."""
        self.taken = []
        cells: list[str] | RefusedError
        try:
            cells = next(csv.reader(self._feed(), delimiter=self.delimiter, strict=True))
        except StopIteration:
            return None
        except RefusedError as refused:
            cells = refused
        except csv.Error as error:
            cells = RefusedError(f"not a row: {error}")
        return self.taken[0], self.taken[-1].end, cells

    def _feed(self) -> Iterator[str]:
        for line in self.lines:
            self.taken.append(line)
            if line.end - self.taken[0].offset > LONGEST_LINE:
                raise RefusedError(TOO_LONG)
            yield _text_of(line, mark=line.offset == 0)


def _names_of(cells: list[str] | RefusedError, fields: Fields, source: Source) -> list[str]:
    """The columns' names, the text's among them."""
    if isinstance(cells, RefusedError):
        raise DataError(f"its first line {cells}", where=f"{source.name}:1")
    if fields.text not in cells or len(set(cells)) < len(cells):
        wrong = "names a column twice" if fields.text in cells else f"names no column {fields.text!r}"
        hint = f"--text-field NAME, one of: {', '.join(cells)[:200]}"
        raise DataError(f"its first line {wrong}", where=f"{source.name}:1", hint=hint)
    return cells


_READERS: Final[dict[str, Callable[[Source, Fields], Iterator[Item]]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": partial(_read_table, delimiter=","),
    ".tsv": partial(_read_table, delimiter="\t"),
    ".txt": _read_text,
}
