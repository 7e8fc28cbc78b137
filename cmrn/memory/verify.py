"""Whether a store's file is what was written: its pages, its rows, and what its tables say of one another."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator

import numpy as np

from cmrn.memory.entry import NewRecord, Problem, key_of
from cmrn.memory.info import read_info
from cmrn.memory.oplog import last_seq, read_changes
from cmrn.memory.rows import Row, is_sound, record_of
from cmrn.memory.schema import is_damage
from cmrn.memory.values import find_value_problems
from cmrn.memory.writing import read_window

__all__ = ["find_problems"]

WINDOW = 10_000
MOST = 100


def find_problems(connection: sqlite3.Connection) -> list[Problem]:
    """Everything wrong with a store, as of one moment; a damaged record is named once, and by its number."""
    problems: list[Problem] = []
    connection.execute("BEGIN")
    try:
        for check in (_pages, _rows, _tables):
            try:
                problems.extend(check(connection))
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                problems.append(Problem(f"is damaged: {error}", check.__name__.strip("_")))
    finally:
        connection.execute("ROLLBACK")
    return problems


def _pages(connection: sqlite3.Connection) -> Iterator[Problem]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({MOST})"):
        if line != b"ok":
            yield Problem(line.decode("utf-8", "replace"), "pages")


def _rows(connection: sqlite3.Connection) -> Iterator[Problem]:
    dim = read_info(connection).fingerprint.dim
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rec'").fetchone()
    live: Counter[str] = Counter()
    for start in range(0, found[0] if found else 0, WINDOW):
        rows, unreadable = read_window(connection, start, start + WINDOW)
        for row in rows:
            reason = _wrong(row, dim)
            if reason:
                yield Problem(reason, f"record {row[0]}")
            live[row[2].decode("utf-8", "replace") if isinstance(row[2], bytes) else ""] += 1
        yield from (Problem("cannot be read, if it was stored", f"record {record}") for record in unreadable)
    tally = {name.decode("utf-8", "replace"): count for name, count in connection.execute("SELECT * FROM tally")}
    for name in sorted(live.keys() | tally.keys()):
        if live[name] != tally.get(name, 0):
            yield Problem(f"counts {tally.get(name, 0)} records where there are {live[name]}", f"namespace {name!r}")


def _wrong(row: Row, dim: int) -> str:
    """What is wrong with a row, "" for nothing."""
    if not is_sound(row):
        return "is damaged: its contents differ from its checksum"
    record = record_of(row)
    new = NewRecord(record.text, id=record.id, namespace=record.namespace, source=record.source)
    if key_of(new) != row[1]:
        return "has the key of another record"
    if len(row[4]) != 4 * dim or not np.isfinite(np.frombuffer(row[4], np.float32)).all():
        return f"has no vector of {dim} numbers"
    return ""


def _tables(connection: sqlite3.Connection) -> Iterator[Problem]:
    info = read_info(connection)
    unused = connection.execute("SELECT count(*) FROM rec WHERE record NOT IN (SELECT record FROM use)").fetchone()[0]
    orphans = connection.execute("SELECT count(*) FROM use WHERE record NOT IN (SELECT record FROM rec)").fetchone()[0]
    if unused or orphans:
        yield Problem(f"lacks {unused} records and has {orphans} too many", "table use")
    yield from find_value_problems(connection, info.fingerprint.dim)
    if info.pruned > last_seq(connection) or read_changes(connection, info.pruned) is None:
        yield Problem("is not as it was written", "table oplog")
