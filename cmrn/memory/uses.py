"""Which records were used last: noted in memory at every search, and written now and then."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from threading import Lock

from cmrn.memory.writing import use_records

__all__ = ["Uses"]

SECONDS = 1.0


class Uses:
    """Records used since the last writing, in the order of their last use; any thread may note one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._records: dict[int, None] = {}
        self._written = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._records)

    def note(self, records: Iterable[int]) -> None:
        """These were used just now, the last of them last."""
        with self._lock:
            for record in records:
                self._records.pop(record, None)
                self._records[record] = None

    def due(self) -> bool:
        """Whether they have waited long enough to be written."""
        return time.monotonic() - self._written >= SECONDS

    def write(self, connection: sqlite3.Connection) -> None:
        """Write them, within a transaction."""
        with self._lock:
            records, self._records = self._records, {}
        use_records(connection, records)
        self._written = time.monotonic()
