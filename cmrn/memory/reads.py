"""What any process may ask of a store, whether it writes to it or only reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrn.memory.entry import Block, Change, Fingerprint, Problem, Progress, Record, StoreStats
from cmrn.memory.folder import size_of
from cmrn.memory.handle import Handle
from cmrn.memory.info import check_same_encoder, read_info
from cmrn.memory.keys import Keys
from cmrn.memory.oplog import last_seq, read_changes
from cmrn.memory.rows import Row, is_storable, record_of, storable_numbers
from cmrn.memory.values import read_values
from cmrn.memory.verify import find_problems
from cmrn.memory.writing import fetch_rows, read_window

__all__ = ["Reads"]


class Reads:
    """The reading half of `MemoryStore`, over a handle that may be open for reading only."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self._keys = Keys()

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.handle.folder

    @property
    def uuid(self) -> str:
        """What tells this store from every other, a copy of it included."""
        return self.handle.info.uuid

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return self.handle.info.fingerprint.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder behind the vectors."""
        return self.handle.info.fingerprint

    @property
    def max_records(self) -> int | None:
        """Most records it may hold, None for any number."""
        return self.handle.info.max_records

    @property
    def seq(self) -> int:
        """The number of the last change."""
        with self.handle.reading() as connection:
            return last_seq(connection)

    @property
    def quarantined(self) -> frozenset[int]:
        """Records found damaged so far; `verify` finds all."""
        return frozenset(self.handle.quarantined)

    def get(self, records: Collection[int]) -> list[Record]:
        """The records, in the order asked for; those not stored, and those damaged, are left out."""
        numbers = storable_numbers(records)
        sound = self._sound_rows(numbers)
        return [record_of(sound[number]) for number in numbers if number in sound]

    def find(self, id: str, namespace: str | None = None) -> list[Record]:
        """The records that callers gave this id, oldest first."""
        if not is_storable(id):
            return []
        with self.handle.reading() as connection:
            found = connection.execute("SELECT record FROM rec WHERE id = ? ORDER BY record", (id,)).fetchall()
        records = self.get([row[0] for row in found])
        return [each for each in records if namespace is None or each.namespace == namespace]

    def known(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """The numbers of the records that are stored under these keys, as `key_of` makes them."""
        with self.handle.reading() as connection:
            return self._keys.find(connection, keys)

    def vectors(self, records: Collection[int]) -> NDArray[np.float32]:
        """Vectors of the records, (N, D) float32, a row of NaN for each that is not stored or is damaged."""
        vectors_ND = np.full((len(records), self.dim), np.nan, np.float32)
        sound = self._sound_rows(storable_numbers(records))
        for place, record in enumerate(records):
            if record in sound:
                vectors_ND[place] = np.frombuffer(sound[record][4], np.float32)
        return vectors_ND

    def values(self, records: Collection[int]) -> NDArray[np.float32]:
        """Values that `add` or `edit` gave the records, (N, D) float32, a row of NaN for each that has none."""
        values_ND = np.full((len(records), self.dim), np.nan, np.float32)
        with self.handle.reading() as connection:
            found = read_values(connection, storable_numbers(records))
        for place, record in enumerate(records):
            if record in found and len(found[record]) == 4 * self.dim:
                values_ND[place] = np.frombuffer(found[record], np.float32)
        return values_ND

    def scan(
        self, after: int = 0, batch: int = 10_000
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], list[str]]]:
        """As `blocks`, without the sources."""
        for block in self.blocks(after, batch):
            yield block.records, block.vectors, block.namespaces

    def blocks(self, after: int = 0, batch: int = 10_000) -> Iterator[Block]:
        """All sound records numbered above `after`, in order, without their texts.

        What is added, updated or deleted meanwhile shows in `changes`.
        """
        with self.handle.reading() as connection:
            last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rec'").fetchone()
        for start in range(after, last[0] if last else 0, batch):
            with self.handle.reading() as connection:
                rows = self.handle.checked(*read_window(connection, start, start + batch))
            if rows:
                vectors_ND = np.frombuffer(b"".join([row[4] for row in rows]), np.float32).reshape(len(rows), -1)
                numbers = np.array([row[0] for row in rows])
                yield Block(numbers, vectors_ND, [row[2].decode() for row in rows], [row[5].decode() for row in rows])

    def changes(self, after_seq: int) -> list[Change] | None:
        """Changes after a seq, in order; None where the log does not reach back to it, or it is yet to come."""
        with self.handle.reading() as connection:
            if not read_info(connection).pruned <= after_seq <= last_seq(connection):
                return None
            return read_changes(connection, after_seq)

    def ingest_progress(self, file_hash: str) -> Progress | None:
        """How far a file has been taken in, None for one never seen."""
        query = "SELECT offset, line, rejected FROM ingest WHERE file_hash = ?"
        with self.handle.reading() as connection:
            found = connection.execute(query, (file_hash,)).fetchone()
        return Progress(file_hash, *found) if found else None

    def check_fingerprint(self, fingerprint: Fingerprint) -> None:
        """Refuse an encoder other than the one behind the stored vectors.

        Raises:
            CheckpointError: the two differ, in name or in what they make of the probe texts.
        """
        check_same_encoder(self.fingerprint, fingerprint, self.folder)

    def verify(self) -> list[Problem]:
        """Everything wrong with the store, each damaged record by its number; reads all of it."""
        with self.handle.another_reader() as connection:
            return find_problems(connection)

    def stats(self) -> StoreStats:
        """What the store holds."""
        with self.handle.reading() as connection:
            tally = connection.execute("SELECT namespace, records FROM tally ORDER BY namespace").fetchall()
            seq = last_seq(connection)
        spaces = {name.decode("utf-8", "replace"): count for name, count in tally}
        embedder = self.fingerprint.embedder
        return StoreStats(sum(spaces.values()), spaces, self.dim, embedder, size_of(self.folder), seq)

    def _sound_rows(self, records: Collection[int]) -> dict[int, Row]:
        with self.handle.reading() as connection:
            return {row[0]: row for row in self.handle.checked(*fetch_rows(connection, records))}
