"""The store's log of changes, by which an index that fell behind catches up."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import cast

from cmrn.memory.entry import Change, Operation

__all__ = ["append_changes", "forget_changes", "last_seq", "read_changes"]


def append_changes(connection: sqlite3.Connection, op: Operation, records: Sequence[int]) -> None:
    """Log what was done to some records, within the transaction that does it: a row for each run of neighbours."""
    seq = last_seq(connection)
    rows = [(op, first, count) for first, count in _runs(sorted(records))]
    connection.executemany(
        "INSERT INTO oplog (seq, op, record, count, crc) VALUES (?, ?, ?, ?, ?)",
        [(number, *row, _checksum(number, *row)) for number, row in enumerate(rows, seq + 1)],
    )


def last_seq(connection: sqlite3.Connection) -> int:
    """The number of the last change, 0 before the first; pruning leaves it."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'oplog'").fetchone()
    return cast(int, found[0]) if found else 0


def read_changes(connection: sqlite3.Connection, after: int) -> list[Change] | None:
    """Every change after a seq, in order; None where they are not all there, or not as they were written."""
    last = last_seq(connection)
    changes: list[Change] = []
    rows = connection.execute("SELECT seq, op, record, count, crc FROM oplog WHERE seq > ? ORDER BY seq", (after,))
    expected = after
    for seq, op, record, count, crc in rows:
        expected += 1
        name = op.decode() if isinstance(op, bytes) and op in (b"add", b"update", b"delete") else ""
        if seq != expected or not name or crc != _checksum(seq, name, record, count):
            return None
        changes.extend(Change(seq, cast(Operation, name), each) for each in range(record, record + count))
    return changes if expected == last else None


def forget_changes(connection: sqlite3.Connection, upto: int) -> None:
    """Drop the log up to a seq."""
    connection.execute("DELETE FROM oplog WHERE seq <= ?", (upto,))


def _runs(records: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First record and length of each run of consecutive numbers."""
    start = 0
    for place in range(1, len(records) + 1):
        if place == len(records) or records[place] != records[place - 1] + 1:
            yield records[start], place - start
            start = place


def _checksum(seq: int, op: str, record: object, count: object) -> int:
    return zlib.crc32(f"{seq} {op} {record} {count}".encode())
