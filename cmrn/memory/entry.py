"""What goes into a memory store and what comes out of it: frozen records, with neither torch nor SQLite."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "AddResult",
    "Block",
    "Change",
    "Fingerprint",
    "Hit",
    "NewRecord",
    "Problem",
    "Progress",
    "Record",
    "StoreStats",
    "encoded_key",
    "key_of",
    "text_to_embed",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Vector: TypeAlias = "NDArray[np.float32] | bytes"
LONGEST_TITLE = 300
Operation: TypeAlias = Literal["add", "update", "delete"]


@dataclass(frozen=True, slots=True)
class NewRecord:
    """A text on its way into the store.

    vector: its embedding, (D,) float32, or the bytes of one; it may be missing only until the record is added.
    id: the caller's name for it; without one, the text itself identifies it.
    source: where it came from, so that all of it can be deleted at once.
    origin: who wrote it ("user", "model").
    trust: how far it is believed, in [0, 1].
    """

    text: str
    vector: Vector | None = field(default=None, compare=False)
    id: str | None = None
    namespace: str = "default"
    source: str = ""
    meta: Mapping[str, JSON] = field(default_factory=dict)
    origin: str = "user"
    trust: float = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """A stored text, without its vector; `record` is the store's own number for it, never given twice."""

    record: int
    id: str | None
    namespace: str
    source: str
    text: str
    meta: Mapping[str, JSON]
    origin: str
    trust: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A record found by a search, and its exact inner product with the query."""

    record: Record
    score: float


@dataclass(frozen=True, slots=True)
class Block:
    """Records read together: their numbers (N,), vectors (N, D) float32, namespaces and sources."""

    records: NDArray[np.int64]
    vectors: NDArray[np.float32]
    namespaces: list[str]
    sources: list[str]


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of the records of one `add`; all of it is durable.

    records: the store's number for every input, in order.
    evicted: how many of the least recently used made room.
    """

    added: int
    updated: int
    unchanged: int
    records: tuple[int, ...]
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file has been taken in: everything before byte `offset`, of which `line` lines, `rejected` refused.

    file_hash: what identifies the file, whatever it is called.
    """

    file_hash: str
    offset: int
    line: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What made a store's vectors; another encoder's vectors cannot be compared with them.

    weights: hash of the encoder's weights.
    dim: numbers a vector.
    probes: texts with the vectors the encoder gave them, (D,) float32, which betray a changed encoder of one name.
    """

    embedder: str
    revision: str = ""
    weights: str = ""
    pooling: str = "mean"
    normalised: bool = True
    dim: int = 384
    probes: tuple[tuple[str, Vector], ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds; `bytes` counts every file in its folder, `seq` numbers its last change."""

    records: int
    namespaces: dict[str, int]
    dim: int
    embedder: str
    bytes: int
    seq: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a store, and where: a record, a table, a file."""

    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Change:
    """One record added, updated or deleted; records changed together share a `seq`."""

    seq: int
    op: Operation
    record: int


def text_to_embed(record: NewRecord | Record) -> str:
    """What an encoder reads of a record: its text, after its title where its metadata has one that is short."""
    title = record.meta.get("title")
    fits = isinstance(title, str) and 0 < len(title) <= LONGEST_TITLE
    return f"{title}. {record.text}" if fits else record.text


def key_of(record: NewRecord) -> bytes:
    """The 16 bytes that tell whether a record is already stored: of its id within its source, else of its text.

    Texts are compared in Unicode's normal form C. Lone surrogates raise UnicodeEncodeError.
    """
    id = None if record.id is None else record.id.encode()
    return encoded_key(record.namespace.encode(), record.source.encode(), id, record.text, record.text.encode())


def encoded_key(namespace: bytes, source: bytes, id: bytes | None, text: str, encoded: bytes) -> bytes:
    """As `key_of`, of names already in UTF-8; `encoded` is `text` so."""
    if id is not None:
        return _digest(b"id", b"%d %d\n%b%b%b" % (len(namespace), len(source), namespace, source, id))
    normal = encoded if text.isascii() else unicodedata.normalize("NFC", text).encode()
    return _digest(b"text", b"%d\n%b%b" % (len(namespace), namespace, normal))


def _digest(kind: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, person=kind).digest()
