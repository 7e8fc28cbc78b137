"""The second vector of a record, which a model reads where its first, the key, is found."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import DataError
from cmrn.memory.entry import Problem
from cmrn.memory.schema import marks

__all__ = ["checked_values", "drop_values", "find_value_problems", "put_values", "read_values"]

CHUNK = 500


def checked_values(values: NDArray[np.float32], count: int, dim: int) -> list[bytes]:
    """Values, (count, dim) float32, as they are stored.

    Raises:
        DataError: they have another shape or type, or a number that is not finite.
    """
    if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (count, dim):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(f"values are {found}, and must be float32 ({count}, {dim})", hint="nothing was written")
    wrong = np.flatnonzero(~np.isfinite(values).all(1))
    if wrong.size:
        hint = "nothing was written"
        raise DataError("value: holds a number that is not finite", where=f"record {wrong[0]}", hint=hint)
    return [row.tobytes() for row in values]


def put_values(connection: sqlite3.Connection, values: Mapping[int, bytes]) -> None:
    """Give records their values; those that are not stored, such as evicted ones, get none."""
    connection.executemany(
        "INSERT OR REPLACE INTO val (record, vec, crc) SELECT ?1, ?2, ?3 WHERE EXISTS"
        " (SELECT 1 FROM rec WHERE record = ?1)",
        [(record, value, _checksum(record, value)) for record, value in values.items()],
    )


def read_values(connection: sqlite3.Connection, records: Sequence[int]) -> dict[int, bytes]:
    """The sound values of those of the records that have one."""
    if connection.execute("SELECT 1 FROM val LIMIT 1").fetchone() is None:
        return {}
    found: dict[int, bytes] = {}
    for start in range(0, len(records), CHUNK):
        part = records[start : start + CHUNK]
        rows = connection.execute(f"SELECT record, vec, crc FROM val WHERE record IN ({marks(part)})", part)
        found.update((record, vec) for record, vec, crc in rows if _is_sound(record, vec, crc))
    return found


def drop_values(connection: sqlite3.Connection, records: Collection[int]) -> None:
    """Forget the values of a few records, `marks` of which fit into one statement."""
    connection.execute(f"DELETE FROM val WHERE record IN ({marks(list(records))})", list(records))


def find_value_problems(connection: sqlite3.Connection, dim: int) -> Iterator[Problem]:
    """Every damaged value, and every one of a record that is not stored or of another width."""
    for record, vec, crc in connection.execute("SELECT record, vec, crc FROM val ORDER BY record"):
        if not _is_sound(record, vec, crc) or len(vec) != 4 * dim:
            yield Problem("has a damaged value", f"record {record}")
    orphans = connection.execute("SELECT count(*) FROM val WHERE record NOT IN (SELECT record FROM rec)").fetchone()[0]
    if orphans:
        yield Problem(f"has {orphans} values too many", "table val")


def _checksum(record: int, value: bytes) -> int:
    return zlib.crc32(struct.pack("<q", record) + value)


def _is_sound(record: int, value: Any, crc: object) -> bool:
    return isinstance(value, bytes) and crc == _checksum(record, value)
