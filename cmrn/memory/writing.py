"""What one transaction of a store does: add, replace, delete and evict records, with their log, tally and use."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from cmrn.errors import UsageError
from cmrn.memory.entry import AddResult, Operation, Progress
from cmrn.memory.oplog import append_changes
from cmrn.memory.rows import COLUMNS, Prepared, Row, is_sound, row_of
from cmrn.memory.schema import is_damage, marks
from cmrn.memory.values import drop_values

__all__ = [
    "delete_records",
    "evict_records",
    "fetch_rows",
    "find_keys",
    "put_progress",
    "put_records",
    "read_window",
    "replace_record",
    "select",
    "use_records",
]

Item = TypeVar("Item")
CHUNK = 500


def put_records(
    connection: sqlite3.Connection, batch: Sequence[Prepared], known: dict[bytes, int], most: int | None
) -> tuple[AddResult, dict[bytes, int]]:
    """Add new records, update those whose text or metadata changed, and evict what is then beyond `most`.

    known: the records of those of the batch's keys that are stored.

    Returns: what became of them, and the records of the new keys.
    """
    known = dict(known)
    stored = {row[0]: row for row in fetch_rows(connection, known.values())[0]}
    new: dict[int, Prepared] = {}
    changed: dict[int, Prepared] = {}
    counts: Counter[Operation] = Counter()
    records = []
    number = _last_record(connection)
    for entry in batch:
        record = known.get(entry.key)
        if record is None:
            number += 1
            record = known[entry.key] = number
            new[record] = entry
            counts["add"] += 1
        elif not _same(entry, new.get(record) or changed.get(record) or stored.get(record)):
            (new if record in new else changed)[record] = entry
            counts["update"] += 1
        records.append(record)
    _insert(connection, new)
    _replace(connection, changed)
    evicted = evict_records(connection, most)
    unchanged = len(batch) - counts["add"] - counts["update"]
    result = AddResult(counts["add"], counts["update"], unchanged, tuple(records), evicted)
    return result, {entry.key: record for record, entry in new.items()}


def replace_record(connection: sqlite3.Connection, record: int, entry: Prepared) -> None:
    """Give an existing record new contents under its number.

    Raises:
        UsageError: its new text is that of another record.
    """
    other = find_keys(connection, [entry.key]).get(entry.key, record)
    if other != record:
        raise UsageError(f"the same text is already record {other}", where=f"record {record}")
    _replace(connection, {record: entry})


def delete_records(connection: sqlite3.Connection, records: Collection[int]) -> int:
    """Delete those of the records that exist; how many did."""
    existing = sorted({row[0] for row in select(connection, "SELECT record FROM rec WHERE record IN", records)})
    gone = _tally(connection, existing)
    for part in _chunks(existing):
        connection.execute(f"DELETE FROM rec WHERE record IN ({marks(part)})", part)
        connection.execute(f"DELETE FROM use WHERE record IN ({marks(part)})", part)
        drop_values(connection, part)
    _add_to_tally(connection, {namespace: -count for namespace, count in gone.items()})
    append_changes(connection, "delete", existing)
    return len(existing)


def evict_records(connection: sqlite3.Connection, most: int | None) -> int:
    """Delete the least recently used records beyond `most`; how many that were."""
    if most is None:
        return 0
    excess = connection.execute("SELECT coalesce(sum(records), 0) FROM tally").fetchone()[0] - most
    if excess <= 0:
        return 0
    oldest = connection.execute("SELECT record FROM use ORDER BY seq LIMIT ?", (excess,)).fetchall()
    return delete_records(connection, [row[0] for row in oldest])


def put_progress(connection: sqlite3.Connection, progress: Progress) -> None:
    """Note how far a file has been taken in."""
    values = (progress.file_hash, progress.offset, progress.line, progress.rejected)
    connection.execute("INSERT OR REPLACE INTO ingest (file_hash, offset, line, rejected) VALUES (?, ?, ?, ?)", values)


def use_records(connection: sqlite3.Connection, records: Iterable[int]) -> None:
    """Make these the most recently used, the last of them most; those not stored are passed over."""
    start = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM use").fetchone()[0]
    connection.executemany("UPDATE use SET seq = ? WHERE record = ?", enumerate(records, start))


def fetch_rows(connection: sqlite3.Connection, records: Collection[int]) -> tuple[list[Row], list[int]]:
    """The rows of those records that exist, sound or not, in the order of COLUMNS; and the unreadable records."""
    rows: list[Row] = []
    unreadable: list[int] = []
    for part in _chunks(records):
        query = f"SELECT {COLUMNS} FROM rec WHERE record IN ({marks(part)})"
        found, lost = _readable(connection, query, part, part)
        rows, unreadable = rows + found, unreadable + lost
    return rows, unreadable


def read_window(connection: sqlite3.Connection, after: int, last: int) -> tuple[list[Row], list[int]]:
    """As `fetch_rows`, of all records numbered above `after` up to `last`, in order."""
    query = f"SELECT {COLUMNS} FROM rec WHERE record > ? AND record <= ? ORDER BY record"
    return _readable(connection, query, [after, last], range(after + 1, last + 1))


def find_keys(connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
    """The record of each key that is stored."""
    return {row[0]: row[1] for row in select(connection, "SELECT key, record FROM rec WHERE key IN", keys)}


def select(connection: sqlite3.Connection, query: str, values: Collection[Any]) -> Iterator[Row]:
    """The rows of a query that ends in IN, over any number of values."""
    for part in _chunks(values):
        yield from connection.execute(f"{query} ({marks(part)})", part)


def _readable(
    connection: sqlite3.Connection, query: str, values: Sequence[int], records: Iterable[int]
) -> tuple[list[Row], list[int]]:
    """The rows of a query; where the file is damaged, those of `records` that can be read alone, and the others."""
    try:
        return connection.execute(query, values).fetchall(), []
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    rows: list[Row] = []
    unreadable = []
    for record in records:
        try:
            rows += connection.execute(f"SELECT {COLUMNS} FROM rec WHERE record = ?", (record,)).fetchall()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            unreadable.append(record)
    return rows, unreadable


def _chunks(items: Collection[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """The items in lists no longer than `size`."""
    whole = list(items)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]


def _same(entry: Prepared, old: Prepared | Row | None) -> bool:
    """Whether an entry says nothing new; without an id, equal keys mean equal texts."""
    if old is None:
        return False
    if isinstance(old, Prepared):
        return entry.meta == old.meta and (entry.id is None or entry.text == old.text)
    if not is_sound(old):
        return False
    meta, text = old[9], old[10]
    return entry.meta.encode() == meta and (entry.id is None or entry.text.encode() == text)


def _insert(connection: sqlite3.Connection, new: Mapping[int, Prepared]) -> None:
    if not new:
        return
    connection.executemany(
        f"INSERT INTO rec ({COLUMNS}) VALUES ({marks(COLUMNS.split(','))})",
        (row_of(record, entry) for record, entry in new.items()),
    )
    start = connection.execute("SELECT coalesce(max(seq), 0) + 1 FROM use").fetchone()[0]
    connection.executemany("INSERT INTO use (seq, record) VALUES (?, ?)", enumerate(new, start))
    _add_to_tally(connection, Counter(entry.namespace for entry in new.values()))
    append_changes(connection, "add", list(new))


def _replace(connection: sqlite3.Connection, changed: Mapping[int, Prepared]) -> None:
    if not changed:
        return
    before = _tally(connection, list(changed))
    names = [name.strip() for name in COLUMNS.split(",")][1:]
    connection.executemany(
        f"UPDATE rec SET {', '.join(f'{name} = ?' for name in names)} WHERE record = ?",
        ((*row[1:], row[0]) for row in (row_of(record, entry) for record, entry in changed.items())),
    )
    before.subtract(entry.namespace for entry in changed.values())
    _add_to_tally(connection, {namespace: -count for namespace, count in before.items()})
    use_records(connection, changed)
    append_changes(connection, "update", list(changed))


def _last_record(connection: sqlite3.Connection) -> int:
    """The highest number ever given."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rec'").fetchone()
    return int(found[0]) if found else 0


def _tally(connection: sqlite3.Connection, records: Collection[int]) -> Counter[str]:
    """How many of the records each namespace holds."""
    rows = select(connection, "SELECT namespace FROM rec WHERE record IN", records)
    return Counter(row[0].decode("utf-8", "replace") for row in rows)


def _add_to_tally(connection: sqlite3.Connection, counts: Mapping[str, int]) -> None:
    connection.executemany(
        "INSERT INTO tally (namespace, records) VALUES (?1, ?2)"
        " ON CONFLICT (namespace) DO UPDATE SET records = records + ?2",
        [(namespace, count) for namespace, count in counts.items() if count],
    )
    connection.execute("DELETE FROM tally WHERE records = 0")
