"""Random operations on a store without end, each told before it begins and after it was acknowledged."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.made import DIM, Entry, fingerprint, make_entry, to_record, vector
from cmrn.memory.schema import Durability
from cmrn.memory.store import MemoryStore

if TYPE_CHECKING:
    from cmrn.memory.index import VectorIndex

__all__ = ["as_entry", "contents", "follow_limited_script", "follow_script", "open_index", "open_store", "operate"]

OPERATIONS = {
    "add": 40, "edit": 14, "delete": 10, "delete source": 2, "touch": 8, "search": 10, "snapshot": 5, "compact": 2,
    "reopen": 3,
}  # fmt: skip

FILL = 600
"""Records of the one large batch, which takes several pages of the file."""


def operate(
    events: Events, folder: str, seed: int, operations: int, max_records: int | None, indexed: bool = True
) -> None:
    """Open or create a store in `folder` and do so many random operations, searches among them where `indexed`."""
    Operator(events, Path(folder), seed, max_records, indexed).run(operations)


def follow_script(
    events: Events, folder: str, seed: int, steps: list[str], max_records: int | None = None, indexed: bool = True,
    durability: Durability = "full", cells_at: int | None = None,
) -> None:  # fmt: skip
    """Open or create a store in `folder` and do the named operations in order, the same at every call.

    cells_at: as `begin_cells_at`.
    """
    if cells_at is not None:
        begin_cells_at(cells_at)
    operator = Operator(events, Path(folder), seed, max_records, indexed, durability)
    for step in steps:
        operator.do(step)
    operator.store.close()


def follow_limited_script(events: Events, largest_file: int, **arguments: Any) -> None:
    """`follow_script`, no file of which may grow beyond `largest_file` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    follow_script(events, **arguments)


def open_store(folder: Path, max_records: int | None = None, durability: Durability = "full") -> MemoryStore:
    """The store in `folder` to write to, created where there is none."""
    if (folder / "memory.db").exists():
        return MemoryStore.open(folder, write=True, durability=durability, warn=_ignore)
    made = fingerprint(DIM)
    return MemoryStore.create(folder, made, durability=durability, max_records=max_records, warn=_ignore)


def _ignore(text: str) -> None:
    """What a store warns of is looked at by `inspect`."""


def begin_cells_at(records: int) -> None:
    """Let the index of this process build cells for more than so many records, instead of many thousands."""
    from cmrn.memory import index, mirror

    for module in (index, mirror):
        vars(module)["FLAT"] = records


def open_index(store: MemoryStore, warn: Callable[[str], None] = _ignore) -> VectorIndex:
    """The index of a store."""
    from cmrn.memory.index import VectorIndex

    return VectorIndex.open(store, warn=warn)


class Operator:
    """One writer: what it believes the store holds, and one method an operation."""

    def __init__(
        self,
        events: Events,
        folder: Path,
        seed: int,
        max_records: int | None,
        indexed: bool,
        durability: Durability = "full",
    ) -> None:
        self.events, self.folder, self.max_records, self.indexed = events, folder, max_records, indexed
        self.durability = durability
        self.draw = random.Random(seed)
        self.number = seed * 1_000_000
        self._begin(op="open")
        self.store = open_store(folder, max_records, durability)
        self._done()
        self.index = open_index(self.store) if indexed else None
        self.live = contents(self.store)
        self.moment = 0
        # When each record was last used; what a process before this one used is not known.
        self.used: dict[int, int] | None = {} if not self.live else None

    def run(self, operations: int) -> None:
        """Do random operations, then close."""
        names, weights = list(OPERATIONS), list(OPERATIONS.values())
        for _ in range(operations):
            self.do(self.draw.choices(names, weights)[0])
        self.store.close()

    def do(self, operation: str) -> None:
        """One operation of this name."""
        getattr(self, "_" + operation.replace(" ", "_"))()

    def _use(self, records: Iterable[int]) -> None:
        if self.used is not None:
            self.moment += 1
            self.used.update(dict.fromkeys(records, self.moment))

    def _begin(self, **operation: Any) -> None:
        self.events.write({"begin": operation})

    def _done(self, **told: Any) -> None:
        self.events.write({"done": told})

    def _fill(self) -> None:
        self._add(FILL)

    def _add(self, number: int | None = None) -> None:
        entries = [self._fresh() for _ in range(number or self.draw.choice((1, 1, 3, 20)))]
        named = [entry for entry in self.live.values() if entry[0] is not None]
        if named and self.draw.random() < 0.4:
            entries.append(self._changed(self.draw.choice(named)))
        self._begin(op="add", entries=entries)
        before = self.store.seq
        result = self.store.add([to_record(entry) for entry in entries])
        evicted = [change.record for change in self.store.changes(before) or () if change.op == "delete"]
        self._done(records=list(result.records), evicted=evicted)
        self.live.update(zip(result.records, entries, strict=True))
        self._use(result.records)
        self._expect_oldest(evicted)
        for record in evicted:
            self.live.pop(record)
        if self.max_records is not None and len(self.live) > self.max_records:
            self.events.write({"violation": f"{len(self.live)} records where {self.max_records} is the most"})
        self._expect(result.records[0])

    def _edit(self) -> None:
        if not self.live:
            return
        record = self.draw.choice(list(self.live))
        entry = self._changed(self.live[record])
        self._begin(op="edit", record=record, entry=entry)
        self.store.edit(record, text=str(entry[3]), meta=entry[4], vector=vector(str(entry[3])))  # type: ignore[arg-type]
        self._done()
        self.live[record] = entry
        self._use([record])
        self._expect(record)

    def _delete(self) -> None:
        records = self.draw.sample(list(self.live), min(len(self.live), self.draw.randint(1, 4)))
        self._begin(op="delete", records=records)
        self.store.delete(records)
        self._done()
        for record in records:
            self._expect_none(self.live.pop(record))

    def _delete_source(self) -> None:
        source = self.draw.choice([entry[2] for entry in self.live.values()] or ["letters"])
        self._begin(op="delete source", source=source)
        self.store.delete_source(str(source))
        self._done()
        self.live = {record: entry for record, entry in self.live.items() if entry[2] != source}

    def _touch(self) -> None:
        records = self.draw.sample(list(self.live), min(len(self.live), 5))
        self.store.touch(records)
        self._use(records)

    def _search(self) -> None:
        if self.live:
            self._expect(self.draw.choice(list(self.live)))

    def _snapshot(self) -> None:
        if self.index is not None:
            self.index.wait()
            self.index.snapshot()

    def _compact(self) -> None:
        self._begin(op="compact")
        self.store.compact()
        self._done()

    def _wait(self) -> None:
        """Stay as it is, the log not yet moved into the file, until somebody ends the process."""
        self.events.write({"waiting": True})
        while True:
            signal.pause()

    def _reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.folder, durability=self.durability)
        self.index = open_index(self.store) if self.indexed else None

    def _expect(self, record: int) -> None:
        """A record that is there is found by its vector, as it is now, and by its number."""
        entry = self.live[record]
        hits = self._search_for(entry)
        if self.indexed and hits != {record: entry}:
            self.events.write({"violation": f"a search for record {record} finds {hits}"})
        if [as_entry(one) for one in self.store.get([record])] != [entry]:
            self.events.write({"violation": f"record {record} is not what was written"})

    def _expect_oldest(self, evicted: Collection[int]) -> None:
        """No record that stays was used before one that was evicted; those of one operation are equally old."""
        if not evicted or self.used is None:
            return
        newest = max(self.used[record] for record in evicted)
        older = [record for record in self.live if record not in evicted and self.used[record] < newest]
        if older:
            self.events.write({"violation": f"{list(evicted)[:5]} were evicted, used after {older[:5]}"})

    def _expect_none(self, entry: Entry) -> None:
        """A record that was deleted is not found by its vector."""
        if entry in self._search_for(entry).values():
            self.events.write({"violation": f"a search still finds the deleted {entry}"})

    def _search_for(self, entry: Entry) -> dict[int, Entry]:
        """The record nearest to an entry's vector."""
        if self.index is None:
            return {}
        self.index.refresh()
        hits = self.index.search(vector(str(entry[3]))[None], 1)[0]
        return {hit.record.record: as_entry(hit.record) for hit in hits}

    def _fresh(self) -> Entry:
        self.number += 1
        return make_entry(self.draw, self.number)

    def _changed(self, entry: Entry) -> Entry:
        """The same key where it has an id, with another text and meta."""
        fresh = self._fresh()
        return [*entry[:3], fresh[3], fresh[4]]


def contents(store: MemoryStore) -> dict[int, Entry]:
    """Everything the store gives, by record."""
    records = [int(record) for block, _, _ in store.scan() for record in block]
    return {record.record: as_entry(record) for record in store.get(records)}


def as_entry(record: Any) -> Entry:
    """What a record says, in the form that it was made in."""
    return [record.id, record.namespace, record.source, record.text, dict(record.meta)]
