"""Records as rows of the store: checked before they are written, and again, by checksum, when they are read."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, SupportsInt, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import DataError
from cmrn.memory.entry import JSON, NewRecord, Record, Vector, encoded_key

__all__ = [
    "COLUMNS",
    "Prepared",
    "Row",
    "changed",
    "is_sound",
    "matrix_of",
    "prepare",
    "record_of",
    "row_of",
    "spelled",
]

Row: TypeAlias = tuple[Any, ...]

COLUMNS = "record, key, namespace, crc, vec, source, id, origin, trust, meta, text"
TEXT_BYTES = 1 << 20
NAME_BYTES = 4_096
# Record, trust, whether there is an id, and the length of each other column.
HEAD = struct.Struct("<qd?8q")


class Prepared(NamedTuple):
    """A checked record, spelled as it will be stored; `parts` are its columns' bytes in the checksum's order."""

    key: bytes
    namespace: str
    vec: bytes
    source: str
    id: str | None
    origin: str
    trust: float
    meta: str
    text: str
    parts: tuple[bytes, ...]


def prepare(records: Sequence[NewRecord], dim: int) -> list[Prepared]:
    """The records as they will be stored, if every one of them can be.

    Raises:
        DataError: the first that cannot, by its place in the sequence and its field.
    """
    width = 4 * dim
    vectors = matrix_of([record.vector for record in records], dim).tobytes()
    names: dict[str, bytes] = {}
    prepared = []
    for place, record in enumerate(records):
        vector = vectors[place * width : (place + 1) * width]
        try:
            prepared.append(_prepare_one(record, vector, names))
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(_reason(record, error), where=f"record {place}", hint="nothing was written") from error
    return prepared


def matrix_of(vectors: Sequence[Any], dim: int) -> NDArray[np.float32]:
    """Vectors as a (N, D) float32 array of rows that can be searched: finite, and none of them zero.

    Raises:
        DataError: one of another width or type, with a number that is not finite, or all zeros.
    """
    rows = [np.frombuffer(v, np.float32) if type(v) is bytes and len(v) == 4 * dim else v for v in vectors]
    if not rows:
        return np.empty((0, dim), np.float32)
    try:
        matrix: NDArray[np.float32] = np.stack(rows, dtype=np.float32, casting="no")
    except (TypeError, ValueError, RuntimeError):
        matrix = np.empty((0, 0), np.float32)
    if matrix.shape != (len(rows), dim):
        for place, row in enumerate(rows):
            if not isinstance(row, np.ndarray) or row.dtype != np.float32 or row.shape != (dim,):
                found = f"{row.dtype} {row.shape}" if isinstance(row, np.ndarray) else type(row).__name__
                _refuse(place, f"is {found}, and the store holds float32 ({dim},)")
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", matrix, matrix)
    wrong = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
    if wrong.size:
        place = int(wrong[0])
        finite = np.isfinite(matrix[place]).all()
        length = f"has a length of {np.linalg.norm(matrix[place].astype(np.float64)):.3g}"
        _refuse(place, length if finite else "holds a number that is not finite")
    return matrix


def spelled(meta: object) -> str:
    """Metadata as the one JSON text it is stored as."""
    if not isinstance(meta, Mapping):
        raise TypeError("meta: is not a dictionary")
    if not meta:
        return "{}"
    return json.dumps(dict(meta), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def row_of(record: int, entry: Prepared) -> Row:
    """The row of a record, its checksum included, in the order of COLUMNS."""
    key, namespace, vec, source, id, origin, trust, meta, text, parts = entry
    crc = _checksum(record, trust, id is not None, parts)
    return (record, key, namespace, crc, vec, source, id, origin, trust, meta, text)


def is_sound(row: Row) -> bool:
    """Whether a row read from the store is as it was written."""
    record, key, namespace, crc, vec, source, id, origin, trust, meta, text = row
    try:
        parts = (key, namespace, vec, source, id or b"", origin, meta, text)
        return bool(crc == _checksum(record, trust, id is not None, parts))
    except (TypeError, struct.error):
        return False


def record_of(row: Row) -> Record:
    """The record in a sound row."""
    record, _, namespace, _, _, source, id, origin, trust, meta, text = row
    return Record(
        record=record,
        id=None if id is None else id.decode(),
        namespace=namespace.decode(),
        source=source.decode(),
        text=text.decode(),
        meta=json.loads(meta) if meta != b"{}" else {},
        origin=origin.decode(),
        trust=trust,
    )


def is_storable(name: str) -> bool:
    """Whether a name can be in a store at all: without lone surrogates, such as of arguments that are not UTF-8."""
    try:
        return bool(name.encode()) or not name
    except UnicodeEncodeError:
        return False


def storable_numbers(records: Iterable[SupportsInt]) -> list[int]:
    """Those of the numbers that a record can have, in order."""
    return [number for number in map(int, records) if 0 < number < 1 << 63]


def changed(row: Row, dim: int, text: str | None, meta: Mapping[str, JSON] | None, vector: Vector | None) -> Prepared:
    """A stored record with another text, metadata or vector; None leaves each as it is.

    Raises:
        DataError: it cannot be stored so.
    """
    old = record_of(row)
    new = NewRecord(
        text=old.text if text is None else text,
        vector=row[4] if vector is None else vector,
        id=old.id,
        namespace=old.namespace,
        source=old.source,
        meta=old.meta if meta is None else meta,
        origin=old.origin,
        trust=old.trust,
    )
    return prepare([new], dim)[0]


def _checksum(record: int, trust: float, named: bool, parts: tuple[bytes, ...]) -> int:
    """CRC-32 of a row; lengths are part of it, so that nothing can pass from one column into its neighbour."""
    return zlib.crc32(b"".join((HEAD.pack(record, trust, named, *map(len, parts)), *parts)))


def _prepare_one(record: NewRecord, vector: bytes, names: dict[str, bytes]) -> Prepared:
    """names: encoded names met so far, of which there are few."""
    text, meta = record.text.encode(), spelled(record.meta)
    if len(text) > TEXT_BYTES or len(meta) > TEXT_BYTES:
        raise ValueError("text and meta may have 1 MiB each")
    for name in (record.namespace, record.source, record.origin):
        if name not in names:
            names[name] = _name(name)
    namespace, source = names[record.namespace], names[record.source]
    id = b"" if record.id is None else _name(record.id)
    if not 0.0 <= record.trust <= 1.0:
        raise ValueError("trust: is no number from 0 to 1")
    key = encoded_key(namespace, source, None if record.id is None else id, record.text, text)
    parts = (key, namespace, vector, source, id, names[record.origin], meta.encode(), text)
    return Prepared(
        key,
        record.namespace,
        vector,
        record.source,
        record.id,
        record.origin,
        float(record.trust),
        meta,
        record.text,
        parts,
    )


def _name(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > NAME_BYTES:
        raise ValueError("namespace, source, origin and id may have 4,096 bytes each")
    return encoded


def _reason(record: NewRecord, error: Exception) -> str:
    for name in ("text", "namespace", "source", "origin", "id"):
        value: object = getattr(record, name)
        if not (isinstance(value, str) or (name == "id" and value is None)):
            return f"{name}: is not a text"
    if isinstance(error, UnicodeEncodeError):
        return f"holds a lone surrogate, which is no character: {error.object[error.start : error.end]!r}"
    if isinstance(error, RecursionError):
        return "meta: is nested too deeply"
    return str(error)


def _refuse(place: int, message: str) -> None:
    raise DataError(f"vector: {message}", where=f"record {place}", hint="nothing was written")
