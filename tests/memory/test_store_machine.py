"""Any run of operations on a store leaves what the same run leaves in a dictionary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cmrn.errors import UsageError
from cmrn.memory.entry import NewRecord
from cmrn.memory.exchange import copy_store
from cmrn.memory.store import MemoryStore
from tests.memory.stores import PRINT, vector

NUMBERS = st.integers(0, 11)
SPACES = st.sampled_from(["a", "b"])
ENTRIES = st.tuples(NUMBERS, SPACES, st.sampled_from(["s", "t"]), st.sampled_from([None, "i", "j"]), st.integers(0, 1))


@dataclass(frozen=True)
class Known:
    """What the oracle holds of a record."""

    text: str
    namespace: str
    source: str
    id: str | None
    number: int
    version: int

    @property
    def key(self) -> tuple[str, ...]:
        return (self.namespace, self.text) if self.id is None else (self.namespace, self.source, self.id, "")


class Store(RuleBasedStateMachine):
    """A store beside a dictionary in the order of last use."""

    @initialize(most=st.one_of(st.none(), st.integers(3, 8)))
    def make(self, most: int | None) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = MemoryStore.create(self.folder / "memory", PRINT, max_records=most)
        self.most, self.last, self.known = most, 0, dict[int, Known]()
        self.replayed, self.seq = set[int](), 0

    @rule(entries=st.lists(ENTRIES, max_size=6))
    def add(self, entries: list[tuple[int, str, str, str | None, int]]) -> None:
        batch = [Known(f"text {n}", space, source, id, n, version) for n, space, source, id, version in entries]
        records = []
        fresh, changed = list[int](), list[int]()
        by_key = {known.key: record for record, known in self.known.items()}
        for entry in batch:
            record = by_key.get(entry.key)
            if record is None:
                self.last += 1
                record = by_key[entry.key] = self.last
                self.known[record] = entry
                fresh.append(record)
            else:
                old = self.known[record]
                if old.version != entry.version or (entry.id is not None and old.text != entry.text):
                    self.known[record] = entry
                    if record not in fresh and record not in changed:
                        changed.append(record)
            records.append(record)
        self.use(changed)
        self.evict()
        given = [
            NewRecord(e.text, vector(e.number), e.id, e.namespace, e.source, {"version": e.version}) for e in batch
        ]
        result = self.store.add(given)
        assert list(result.records) == records
        assert result.added == len(fresh)

    @rule(records=st.lists(st.integers(1, 30), max_size=4))
    def touch(self, records: list[int]) -> None:
        self.store.touch(records)
        self.use(records)

    @rule(records=st.lists(st.integers(1, 30), max_size=4))
    def delete(self, records: list[int]) -> None:
        assert self.store.delete(records) == len(set(records) & self.known.keys())
        for record in records:
            self.known.pop(record, None)

    @rule(source=st.sampled_from(["s", "t"]), space=st.one_of(st.none(), SPACES))
    def delete_source(self, source: str, space: str | None) -> None:
        gone = [r for r, k in self.known.items() if k.source == source and space in (None, k.namespace)]
        assert self.store.delete_source(source, space) == len(gone)
        for record in gone:
            del self.known[record]

    @precondition(lambda self: self.known)
    @rule(data=st.data(), number=NUMBERS)
    def edit(self, data: st.DataObject, number: int) -> None:
        record = data.draw(st.sampled_from(sorted(self.known)))
        changed = replace(self.known[record], text=f"text {number}", number=number)
        if any(k.key == changed.key for r, k in self.known.items() if r != record):
            with pytest.raises(UsageError, match="already record"):
                self.store.edit(record, text=changed.text, vector=vector(number))
            return
        self.store.edit(record, text=changed.text, vector=vector(number))
        self.known[record] = changed
        self.use([record])

    @rule(most=st.one_of(st.none(), st.integers(3, 8)))
    def limit(self, most: int | None) -> None:
        self.most = most
        self.evict()
        self.store.limit(most)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = MemoryStore.open(self.folder / "memory", write=True)

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == []

    @rule()
    def move_to_a_copy(self) -> None:
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        copy_store(self.store, self.folder / "copy")
        self.store.close()
        shutil.rmtree(self.folder / "memory")
        (self.folder / "copy").rename(self.folder / "memory")
        self.store = MemoryStore.open(self.folder / "memory", write=True)

    @invariant()
    def holds_what_the_dictionary_holds(self) -> None:
        stored = self.store.get(range(1, self.last + 1))
        assert [r.record for r in stored] == sorted(self.known)
        for r in stored:
            known = self.known[r.record]
            assert (r.text, r.namespace, r.source, r.id) == (known.text, known.namespace, known.source, known.id)
            assert r.meta == {"version": known.version}
        records = sorted(self.known)
        vectors = [vector(self.known[record].number) for record in records]
        np.testing.assert_array_equal(self.store.vectors(records), np.reshape(vectors, (-1, PRINT.dim)))
        spaces = [known.namespace for known in self.known.values()]
        assert self.store.stats().namespaces == {space: spaces.count(space) for space in sorted(set(spaces))}

    @invariant()
    def the_log_leads_to_the_same_records(self) -> None:
        for change in self.store.changes(self.seq) or []:
            (self.replayed.discard if change.op == "delete" else self.replayed.add)(change.record)
        self.seq = self.store.seq
        assert self.replayed == self.known.keys()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def use(self, records: Collection[int]) -> None:
        for record in records:
            if record in self.known:
                self.known[record] = self.known.pop(record)

    def evict(self) -> None:
        while self.most is not None and len(self.known) > self.most:
            del self.known[next(iter(self.known))]


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=20)
