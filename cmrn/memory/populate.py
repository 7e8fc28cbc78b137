"""Texts poured into a store: read, embedded and committed at once, and resumed at the record where it stopped.

While the cores embed one batch, the next is read and the last is committed. A commit holds the records and the place
in the file up to which everything is done, so an interrupted run goes on there and ends as an uninterrupted one does.
Texts that are stored already keep their vectors and are not embedded again.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from cmrn.errors import DataError, InterruptedRunError, ResourceError, UsageError
from cmrn.memory.embedding import Embedder, Pending
from cmrn.memory.entry import NewRecord, Progress, Vector, key_of, text_to_embed
from cmrn.memory.fields import RefusedError, to_record
from cmrn.memory.folder import check_output
from cmrn.memory.reading import Fields, Good, Item, Rejected, check_input, read_records
from cmrn.memory.rejects import RejectsFile
from cmrn.memory.store import MemoryStore

__all__ = [
    "KnowledgeBase",
    "PopulateOptions",
    "PopulateProgress",
    "PopulateResult",
    "load_knowledge_base",
    "populate",
    "populate_texts",
]

# A batch is committed and embedded whole; of long texts fewer make one.
BATCH_BYTES = 8 << 20
Text: TypeAlias = "str | NewRecord | Mapping[str, Any]"


@dataclass(frozen=True)
class PopulateOptions:
    """How to read and commit.

    shard: (i, n): only every n-th line or row, beginning with the i-th, from 1.
    limit: at most so many records, counted over all inputs.
    on_error: pass over what cannot be read, or stop at the first.
    rejects: the file of refused lines; None writes none.
    """

    fields: Fields = field(default_factory=Fields)
    batch_size: int = 1000
    shard: tuple[int, int] = (1, 1)
    limit: int | None = None
    on_error: Literal["skip", "stop"] = "skip"
    rejects: Path | None = None

    def __post_init__(self) -> None:
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise UsageError(f"no part {part} of {parts}", where="shard", hint="i/n with i from 1 to n, such as 1/4")
        if self.batch_size < 1 or (self.limit is not None and self.limit < 1):
            raise UsageError("is less than 1", where="batch_size" if self.batch_size < 1 else "limit")


@dataclass(frozen=True)
class PopulateResult:
    """What became of the inputs; read = added + updated + unchanged + rejected + skipped.

    skipped: records that an interrupted run had committed before.
    """

    read: int
    added: int
    updated: int
    unchanged: int
    rejected: int
    skipped: int
    rejects_file: str | None
    seconds: float
    records_per_s: float


@dataclass(frozen=True)
class PopulateProgress:
    """A moment of a run: records committed by it, lines refused, their rate, and the part of the inputs done.

    share: from 0 to 1; None where the size of the inputs is unknown, and with it `eta_seconds`.
    """

    committed: int
    rejected: int
    seconds: float
    records_per_s: float
    share: float | None
    eta_seconds: float | None


@dataclass(frozen=True)
class KnowledgeBase:
    """A file of texts, read anew by each pass over it; a line that cannot be read ends it with DataError."""

    path: Path
    fields: Fields = field(default_factory=Fields)

    def __iter__(self) -> Iterator[NewRecord]:
        for item in read_records(self.path, self.fields):
            if isinstance(item, Rejected):
                raise DataError(item.reason, where=f"{self.path}:{item.line}")
            yield item.record


def load_knowledge_base(path: str | Path, *, text_field: str = "text", id_field: str = "id") -> KnowledgeBase:
    """The texts in a JSON Lines, JSON, CSV or text file, gzipped or not, for `populate_from_text`.

    Raises:
        UsageError: no such file, or one of an unknown kind.
    """
    check_input(Path(path))
    return KnowledgeBase(Path(path), Fields(text=text_field, id=id_field))


def populate(
    store: MemoryStore,
    paths: Sequence[Path | None],
    embedder: Embedder,
    options: PopulateOptions,
    progress: Callable[[PopulateProgress], None] = lambda moment: None,
    stdin: BinaryIO | None = None,
) -> PopulateResult:
    """Store every record of the inputs, each batch durable as it is counted; None among the paths is stdin.

    Raises:
        UsageError: an input that cannot be read, or a file for refused lines that must not be replaced, such as an
            input; nothing has been stored.
        DataError: an input that is damaged, or with `on_error="stop"` the first refused line.
        ResourceError: the disk is full.
        InterruptedRunError: Ctrl-C.
        All but the first keep what was committed; the same call goes on from there.
    """
    for path in paths:
        check_input(path)
    if options.rejects is not None:
        check_output(options.rejects, store.folder, [path for path in paths if path is not None])
    hashes = [None if path is None else _hash_of(path, options) for path in paths]
    places = [store.ingest_progress(digest) if digest else None for digest in hashes]
    resumed = {str(path): place.offset for path, place in zip(paths, places, strict=True) if place is not None}
    run = _Run(store, embedder, options, progress, resumed, _total_bytes(paths))
    with closing(run.rejects):
        for path, digest, place in zip(paths, hashes, places, strict=True):
            name = "stdin" if path is None else str(path)
            run.take(read_records(path, options.fields, stdin or sys.stdin.buffer), name, digest, place)
    return run.result()


def populate_texts(
    store: MemoryStore,
    texts: Iterable[Text],
    embedder: Embedder,
    options: PopulateOptions,
    progress: Callable[[PopulateProgress], None] = lambda moment: None,
) -> PopulateResult:
    """As `populate`, of texts, records, or objects with the fields that `options.fields` names; nothing is resumed."""
    run = _Run(store, embedder, options, progress, {}, None)
    with closing(run.rejects):
        run.take(_items_of(texts, options.fields), "texts", None, None)
    return run.result()


def _items_of(texts: Iterable[Text], fields: Fields) -> Iterator[Item]:
    for place, text in enumerate(texts):
        try:
            value = {fields.text: text} if isinstance(text, str) else text
            record = value if isinstance(value, NewRecord) else to_record(value, fields, "")
            yield Good(place + 1, place, place + 1, record)
        except RefusedError as refused:
            yield Rejected(place + 1, place, place + 1, str(refused))


@dataclass(frozen=True)
class _Batch:
    """Consecutive items of one input: its records, where it ends, and how many lines were refused up to there."""

    records: list[NewRecord]
    end: int
    line: int
    rejected: int


@dataclass(frozen=True)
class _Begun:
    """A batch whose new texts are being embedded; `vectors` holds those that the store had."""

    batch: _Batch
    vectors: list[Vector | None]
    pending: Pending


class _Run:
    """One call of populate: its counts, and the pipeline of reading, embedding and committing."""

    def __init__(
        self,
        store: MemoryStore,
        embedder: Embedder,
        options: PopulateOptions,
        progress: Callable[[PopulateProgress], None],
        resumed: Mapping[str, int],
        total_bytes: int | None,
    ) -> None:
        self.store = store
        self.embedder = embedder
        self.options = options
        self.progress = progress
        self.total_bytes = total_bytes
        self.rejects = RejectsFile(options.rejects, resumed)
        self.started = time.monotonic()
        self.resumed_at = sum(resumed.values())
        self.added = self.updated = self.unchanged = self.rejected = self.skipped = self.bytes_before = 0

    @property
    def committed(self) -> int:
        """Records that this run has made durable."""
        return self.added + self.updated + self.unchanged

    def result(self) -> PopulateResult:
        """The counts so far."""
        seconds = time.monotonic() - self.started
        return PopulateResult(
            read=self.committed + self.rejected + self.skipped,
            added=self.added,
            updated=self.updated,
            unchanged=self.unchanged,
            rejected=self.rejected,
            skipped=self.skipped,
            rejects_file=str(self.rejects.path) if self.rejected and self.rejects.path else None,
            seconds=seconds,
            records_per_s=self.committed / seconds if seconds > 0 else 0.0,
        )

    def take(self, items: Iterator[Item], name: str, digest: str | None, place: Progress | None) -> None:
        """Take in one input to its end, from the place where an earlier run stopped."""
        try:
            with self.embedder.running() as start:
                end = self._pour(self._batches(items, name, place), start, digest)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted; {self.committed:,} records of this run are stored",
                signal_number=signal.SIGINT,
                where=name,
                hint="the same command goes on from there" if digest else None,
            ) from None
        except ResourceError as error:
            message = f"{error.message}; {self.committed:,} records of this run are stored"
            raise ResourceError(message, where=error.where, hint=error.hint) from error
        self.bytes_before += end
        if digest is not None:
            # Done: should the same file come again, it is compared from its first record.
            self.store.add([], ingest=Progress(digest, 0))

    def _pour(self, batches: Iterator[_Batch], start: Callable[[Sequence[str]], Pending], digest: str | None) -> int:
        """Commit each batch while the next is embedded; where the last one ends. What fails, fails after the commit."""
        begun: _Begun | None = None
        failure: DataError | None = None
        end = 0
        while True:
            try:
                batch = next(batches, None)
            except DataError as error:
                batch, failure = None, error
            following = self._begin(batch, start) if batch is not None else None
            if begun is not None:
                self._commit(begun, digest)
                end = begun.batch.end
            begun = following
            if begun is None:
                break
        self.rejects.sync()
        if failure is not None:
            raise failure
        return end

    def _batches(self, items: Iterator[Item], name: str, place: Progress | None) -> Iterator[_Batch]:
        """The items after a place in batches; refused lines are noted as they are met."""
        refused = place.rejected if place else 0
        self.rejected += refused
        batch: list[NewRecord] = []
        size = end = line = sent = 0
        failure: DataError | None = None
        try:
            for item in self._wanted(items, place.offset if place else 0):
                if isinstance(item, Rejected):
                    self.rejected, refused = self.rejected + 1, refused + 1
                    self.rejects.add(name, item)
                    if self.options.on_error == "stop":
                        raise DataError(item.reason, where=f"{name}:{item.line}", hint="--on-error skip passes over it")
                else:
                    batch.append(item.record)
                    size += len(item.record.text)
                end, line = item.end, item.line
                if len(batch) >= self.options.batch_size or size >= BATCH_BYTES:
                    yield _Batch(batch, end, line, refused)
                    batch, size, sent = [], 0, end
        except DataError as error:
            failure = error
        if end > sent:
            yield _Batch(batch, end, line, refused)
        if failure is not None:
            raise failure

    def _wanted(self, items: Iterator[Item], done: int) -> Iterator[Item]:
        """The items of this shard beyond byte `done`, up to the limit."""
        part, parts = self.options.shard
        limit = self.options.limit
        left = -1 if limit is None else limit - self.committed - self.skipped
        for item in islice(items, part - 1, None, parts):
            if left == 0:
                return
            left -= isinstance(item, Good)
            if item.end > done:
                yield item
            else:
                self.skipped += isinstance(item, Good)

    def _begin(self, batch: _Batch, start: Callable[[Sequence[str]], Pending]) -> _Begun:
        vectors = _stored_vectors(self.store, batch.records)
        new = [text_to_embed(r) for r, vector in zip(batch.records, vectors, strict=True) if vector is None]
        return _Begun(batch, vectors, start(new))

    def _commit(self, begun: _Begun, digest: str | None) -> None:
        batch = begun.batch
        new = iter(begun.pending.result())
        vectors = [next(new) if vector is None else vector for vector in begun.vectors]
        records = [replace(record, vector=vector) for record, vector in zip(batch.records, vectors, strict=True)]
        self.rejects.sync()
        mark = Progress(digest, batch.end, batch.line, batch.rejected) if digest else None
        result = self.store.add(records, ingest=mark)
        self.added += result.added
        self.updated += result.updated
        self.unchanged += result.unchanged
        self._tell(batch.end)

    def _tell(self, end: int) -> None:
        seconds = time.monotonic() - self.started
        share = eta = None
        if self.total_bytes:
            done = self.bytes_before + end
            share = min(1.0, done / self.total_bytes)
            eta = seconds * (self.total_bytes - done) / max(1, done - self.resumed_at)
        rate = self.committed / max(seconds, 1e-9)
        self.progress(PopulateProgress(self.committed, self.rejected, seconds, rate, share, eta))


def _stored_vectors(store: MemoryStore, records: Sequence[NewRecord]) -> list[Vector | None]:
    """The vector of each record that is stored under its key with the same text and title, None for the others."""
    keys = [key_of(record) for record in records]
    known = store.known(keys)
    numbers = sorted(set(known.values()))
    texts = {record.record: text_to_embed(record) for record in store.get(numbers)}
    vectors = dict(zip(numbers, store.vectors(numbers), strict=True))
    return [
        vectors[known[key]] if key in known and texts.get(known[key]) == text_to_embed(record) else None
        for record, key in zip(records, keys, strict=True)
    ]


def _hash_of(path: Path, options: PopulateOptions) -> str:
    """What identifies an input: its bytes, and the options that decide which records they give."""
    with open(path, "rb") as file:
        contents = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
    told = f"{contents} {path.suffixes} {options.fields} {options.shard} {options.limit}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _total_bytes(paths: Sequence[Path | None]) -> int | None:
    """The size of the inputs where each is a plain file, None else."""
    plain = [path for path in paths if path is not None and path.suffix != ".gz"]
    return sum(path.stat().st_size for path in plain) if len(plain) == len(paths) else None
