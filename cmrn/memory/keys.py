"""Which record has a key: asked of the file's index or, while very much is being loaded, of memory.

Keys are hashes, so that inserting ten thousand of them into the index of ten million rewrites nearly all of its
pages. Beyond HOLD_RECORDS a long load therefore drops the indices of random order, holds the keys in memory (16 bytes
a record) and makes the indices again at its end; killed before, the next writer makes them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import ResourceError
from cmrn.memory.handle import Handle
from cmrn.memory.info import update_info
from cmrn.memory.schema import KEY_INDICES
from cmrn.memory.writing import find_keys, select

__all__ = ["HeldKeys", "Keys"]

HOLD_RECORDS: Final = 500_000
HOLD_AFTER: Final = 250_000
RECENT: Final = 200_000


class Keys:
    """Finds records by key, and decides where the keys are kept."""

    def __init__(self) -> None:
        self._added = 0
        self._held: HeldKeys | None = None

    def find(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The record of each key that is stored."""
        return find_keys(connection, keys) if self._held is None else self._held.find(connection, keys)

    def note(self, added: Mapping[bytes, int], handle: Handle) -> None:
        """These records were added, and are committed; if many were, and to many, the keys are held from now on."""
        self._added += len(added)
        if self._held is not None:
            self._held.note(added)
            return
        records = max(added.values(), default=0)
        if records >= HOLD_RECORDS and self._added >= max(HOLD_AFTER, records // 10):
            with suppress(ResourceError):
                self.hold(handle)

    def hold(self, handle: Handle) -> None:
        """Take the keys into memory and drop their indices."""
        with handle.writing() as connection:
            held = HeldKeys(connection.execute("SELECT key, record FROM rec"))
            for name in KEY_INDICES:
                connection.execute(f"DROP INDEX IF EXISTS {name}")
            info = update_info(connection, keys_ready=False)
        handle.info, self._held = info, held

    def release(self, handle: Handle) -> None:
        """Make the indices if they are missing; on a full disk they stay for the next writer to make."""
        if handle.info.keys_ready:
            return
        try:
            with handle.writing() as connection:
                for statement in KEY_INDICES.values():
                    connection.execute(statement)
                info = update_info(connection, keys_ready=True)
            handle.info, self._held, self._added = info, None, 0
        except ResourceError as error:
            handle.warn(f"its keys are not indexed yet: {error.message}")
            if self._held is None:
                with handle.reading() as connection:
                    self._held = HeldKeys(connection.execute("SELECT key, record FROM rec"))


class HeldKeys:
    """Keys in memory: the first 8 bytes of each, sorted, with its record; and the latest, whole, in a dictionary.

    A key of a record deleted since may still be there: what is found is looked up in the file.
    """

    def __init__(self, rows: Iterable[tuple[bytes, int]] = ()) -> None:
        self._hashes, self._records = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}
        for key, record in rows:
            self._recent[key] = record
            if len(self._recent) >= 5 * RECENT:
                self._merge()
        self._merge()

    def note(self, added: Mapping[bytes, int]) -> None:
        """These records were added."""
        self._recent.update(added)
        if len(self._recent) >= RECENT:
            self._merge()

    def find(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The record of each key that is stored."""
        hashes = _hashes(keys)
        first, last = np.searchsorted(self._hashes, hashes), np.searchsorted(self._hashes, hashes, side="right")
        candidates = {self._recent[key] for key in keys if key in self._recent}
        for place in np.flatnonzero(last > first):
            candidates.update(self._records[first[place] : last[place]].tolist())
        wanted = set(keys)
        rows = select(connection, "SELECT key, record FROM rec WHERE record IN", candidates)
        return {key: record for key, record in rows if key in wanted}

    def _merge(self) -> None:
        hashes = np.concatenate([self._hashes, _hashes(list(self._recent))])
        records = np.concatenate([self._records, np.fromiter(self._recent.values(), np.int64, len(self._recent))])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._records, self._recent = hashes[order], records[order], {}


def _hashes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(keys), np.uint64)[::2]
