"""Reading one source: files by path or glob, builtin text, quizzes made from text, or a data set through `datasets`."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from cmrn.config import SourceConfig
from cmrn.data.builtin import PREFIX as BUILTIN
from cmrn.data.builtin import read_builtin
from cmrn.data.documents import Document
from cmrn.data.quizzes import CHARACTERS, QUIZZES, Noise, quizzes
from cmrn.errors import CMRNError, DataError, UsageError

__all__ = ["QUIZ", "data_root", "make_quizzes", "read_source"]

HUB = "hf://"
QUIZ = "quiz://"
QUIZ_FORM = f"{QUIZ}kind?noise=FILES&length=CHARACTERS"
QUIZZES_BY_DEFAULT = 1000
LONGEST_LINE = 64 * 2**20
LONGEST_TEXT_FILE = 2**30
ROOT_HINT = "relative paths start at --data-root or CMRN_DATA, else at the current folder"


def data_root(root: Path | None) -> Path:
    """Where relative data paths start: `root`, else the environment's CMRN_DATA, else the current folder."""
    return root if root is not None else Path(os.environ.get("CMRN_DATA") or ".")


def read_source(source: SourceConfig, index: int, root: Path) -> Iterator[Document]:
    """The documents of one source in order, at most `limit`; empty texts are passed over.

    Raises:
        UsageError: a missing file, an unknown kind of file or an address that cannot be understood.
        DataError: undecodable or malformed content, at file:line or byte.
    """
    if source.path.startswith(BUILTIN):
        name = source.path.removeprefix(BUILTIN)
        domain = source.domain or name
        found: Iterator[Document] = (Document(text, domain, place, index) for text, place in read_builtin(name))
    elif source.path.startswith(QUIZ):
        found = _hide_quizzes(source, index, root)
    elif source.path.startswith(HUB):
        found = _read_hub(source, index, root)
    else:
        found = _read_files(source, index, root)
    return islice((document for document in found if document.text), source.limit)


def _hide_quizzes(source: SourceConfig, index: int, root: Path) -> Iterator[Document]:
    """Quizzes hidden in the text that the source's path names, by default in builtin English text."""
    *_, files = _quiz(source)
    text = SourceConfig(path=files or f"{BUILTIN}english", text_field=source.text_field)
    yield from make_quizzes(source, index, Noise([document.text for document in read_source(text, index, root)]))


def make_quizzes(source: SourceConfig, index: int, noise: Noise) -> Iterator[Document]:
    """`limit` quizzes, by default 1,000, of a source quiz://kind?noise=FILES&length=CHARACTERS, whatever its noise.

    Raises:
        UsageError: the path is not of that form.
    """
    kind, length, _ = _quiz(source)
    made = islice(quizzes(kind, noise, length), source.limit or QUIZZES_BY_DEFAULT)
    for number, quiz in enumerate(made):
        yield Document(quiz.text, source.domain, f"{source.path}#{number}", index, quiz.answers)


def _quiz(source: SourceConfig) -> tuple[str, int, str | None]:
    """(kind, most characters, files of noise) that the source's path names."""
    kind, options = _options(source.path.removeprefix(QUIZ), source.path, QUIZ_FORM)
    length = options.get("length", str(CHARACTERS))
    if kind not in QUIZZES:
        raise UsageError(f"no quiz {kind!r}", where=source.path, hint=f"there are {', '.join(QUIZZES)}")
    if not length.isascii() or not length.isdigit() or int(length) < 1:
        raise UsageError(f"the length is no count of characters: {length!r}", where=source.path)
    return kind, int(length), options.get("noise")


def _options(text: str, where: str, form: str) -> tuple[str, dict[str, str]]:
    """What stands before the question mark, and the options behind it, of those that `form` names."""
    name, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(options.keys() - {known for known, _ in parse_qsl(form.partition("?")[2])})
    if not name or unknown:
        raise UsageError(
            f"unknown option {unknown[0]!r}" if unknown else "nothing is named", where=where, hint=f"write {form}"
        )
    return name, options


def _read_files(source: SourceConfig, index: int, root: Path) -> Iterator[Document]:
    for file in _matching_files(source.path, root):
        name = file.name.removesuffix(".gz")
        if name.endswith(".jsonl"):
            yield from _read_json_lines(file, source, index)
        else:
            yield Document(_read_text(file), source.domain, str(file), index)


def _matching_files(path: str, root: Path) -> list[Path]:
    """The files of a path or glob, sorted."""
    full = root / path
    exact = full.exists()
    found = [full] if exact else sorted(Path(name) for name in glob.glob(str(full), recursive=True))
    files = [file for file in found if not file.is_dir()]
    if not files:
        folder = exact and full.is_dir()
        message = "is a folder, not a file" if folder else "no such file, and no file matches"
        hint = f"name its files, such as {path.rstrip('/')}/*.jsonl" if folder else f"{ROOT_HINT} (now {root})"
        raise UsageError(message, where=str(full), hint=hint)
    unknown = [file for file in files if not file.name.removesuffix(".gz").endswith((".jsonl", ".txt"))]
    if unknown:
        raise UsageError(
            "unknown kind of file", where=str(unknown[0]), hint="data files are .jsonl or .txt, each also .gz"
        )
    return files


def _opened(file: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _lines(file: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of each line of a plain or gzipped file, each read up to `longest` bytes."""
    try:
        with _opened(file) as stream:
            offset = 0
            while line := stream.readline(longest + 1):
                yield offset, line
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", where=str(file)) from error


def _read_text(file: Path) -> str:
    parts: list[bytes] = []
    size = 0
    for _, part in _lines(file, LONGEST_LINE):
        size += len(part)
        if size > LONGEST_TEXT_FILE:
            raise DataError(f"longer than {LONGEST_TEXT_FILE} bytes", where=str(file), hint="split it into several")
        parts.append(part)
    return _decoded(b"".join(parts), str(file), 0)


def _decoded(raw: bytes, where: str, offset: int) -> str:
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        byte = offset + error.start
        raise DataError(
            f"not UTF-8: byte 0x{raw[error.start]:02X} at offset {byte}", where=where, hint="convert it with iconv"
        ) from error


def _read_json_lines(file: Path, source: SourceConfig, index: int) -> Iterator[Document]:
    for number, (offset, line) in enumerate(_lines(file, LONGEST_LINE), start=1):
        where = f"{file}:{number}"
        if len(line) > LONGEST_LINE:
            raise DataError(f"line longer than {LONGEST_LINE} bytes", where=where)
        text = _decoded(line, where, offset)
        if text.strip():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"not JSON: {error}", where=where) from error
            yield _document(record, source, index, where)


def _document(record: Any, source: SourceConfig, index: int, where: str) -> Document:
    """One record as a document; its own `domain` counts where the source names none."""
    if not isinstance(record, dict):
        raise DataError("the record is not an object", where=where)
    text = record.get(source.text_field)
    if not isinstance(text, str):
        kind = "no field" if source.text_field not in record else "no text in the field"
        raise DataError(
            f"the record has {kind} {source.text_field!r}",
            where=where,
            hint=f"set text_field; the record has {', '.join(map(repr, list(record)[:8])) or 'no fields'}",
        )
    domain = source.domain if source.domain is not None else record.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise DataError(f"the record's domain is not text: {domain!r}", where=where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"lone surrogate in the text, at character {error.start}", where=where) from error
    return Document(text, domain or None, where, index)


def _read_hub(source: SourceConfig, index: int, root: Path) -> Iterator[Document]:
    """Stream hf://name[?config=C&split=S]; a name that begins with / or ./ is a local folder."""
    name, options = _options(source.path.removeprefix(HUB), source.path, "hf://name?config=C&split=S")
    if name.startswith("."):
        name = str(root / name)
    if name.startswith(("/", ".")) and not Path(name).is_dir():
        raise UsageError("no such folder", where=name, hint=ROOT_HINT)
    import datasets

    try:
        rows = datasets.load_dataset(name, options.get("config"), split=options.get("split", "train"), streaming=True)
        for number, record in enumerate(rows, start=1):
            yield _document(dict(record), source, index, f"{source.path}:{number}")
    except CMRNError:
        raise
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"no such data set, configuration or split: {error}", where=source.path) from error
    except Exception as error:  # the library raises network, HTTP and parsing errors of several packages
        raise DataError(f"cannot be read: {error}", where=source.path) from error
