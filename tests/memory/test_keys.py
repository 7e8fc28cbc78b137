from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.errors import ResourceError
from cmrn.memory import keys as module
from cmrn.memory.keys import HeldKeys
from cmrn.memory.store import MemoryStore
from tests.memory.stores import PRINT, filled, new, vector


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the keys after thirty records, and merge them often."""
    monkeypatch.setattr(module, "HOLD_RECORDS", 30)
    monkeypatch.setattr(module, "HOLD_AFTER", 20)
    monkeypatch.setattr(module, "RECENT", 7)


def indices(folder: Path) -> set[str]:
    with MemoryStore.open(folder) as store, store.handle.reading() as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'rec%'")
        return {row[0].decode() for row in rows}


ALL = {"rec_source", "rec_key", "rec_id"}


def test_a_long_load_does_without_the_key_index_and_makes_it_at_the_end(soon: None, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with MemoryStore.create(folder, PRINT) as store:
        for batch in range(12):
            store.add([new(batch * 5 + n, id=f"i{batch * 5 + n}") for n in range(5)])
        assert indices(folder) == {"rec_source"}
        again = store.add([new(n, id=f"i{n}") for n in range(55, 65)])
        assert (again.unchanged, again.added, again.records[:5]) == (5, 5, (56, 57, 58, 59, 60))
        store.delete([1, 64])
        assert store.add([new(0, id="i0"), new(63, id="i63"), new(4, text="x", id="i4")]).records == (66, 67, 5)
        assert [record.record for record in store.find("i0")] == [66]
        assert store.verify() == []
        store.compact()
        assert store.add([new(2, id="i2")]).unchanged == 1
        assert indices(folder) == {"rec_source"}
        store.edit(2, text="edited", vector=vector(1))
        assert indices(folder) == ALL
    assert indices(folder) == ALL
    with MemoryStore.open(folder, write=True) as store:
        assert store.add([new(n, id=f"i{n}") for n in range(65)]).added == 0
        assert store.verify() == []


def test_the_next_writer_makes_the_indices_of_one_that_was_killed(soon: None, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder, 60) as store:
        store.add([new(99)])
        assert indices(folder) == {"rec_source"}
        store.handle.close()
    assert indices(folder) == {"rec_source"}
    with MemoryStore.open(folder, write=True) as store:
        assert indices(folder) == ALL
        assert store.add([new(99), new(1)]).unchanged == 2


def test_on_a_full_disk_the_indices_wait_and_nothing_is_added_twice(
    soon: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "memory", list[str]()

    def refuse(*_: object, **__: object) -> None:
        raise ResourceError("no space left")

    with filled(folder, 60) as store:
        store.handle.close()
    with monkeypatch.context() as patch:
        patch.setattr(module, "update_info", refuse)
        with MemoryStore.open(folder, write=True, warn=told.append) as store:
            assert store.add([new(1), new(99)]).records == (1, 61)
    assert "not indexed yet" in told[0]
    with MemoryStore.open(folder, write=True) as store:
        assert store.add([new(99)]).unchanged == 1
        monkeypatch.setattr(module, "update_info", refuse)
        assert store.add([new(n) for n in range(200, 240)]).added == 40
        assert indices(folder) == ALL


@given(held=st.sets(st.integers(0, 40)), asked=st.lists(st.integers(0, 40)), twins=st.booleans())
def test_held_keys_are_those_of_the_file(held: set[int], asked: list[int], twins: bool) -> None:
    def key(number: int) -> bytes:
        return bytes(8) + number.to_bytes(8, "big") if twins else number.to_bytes(16, "little")

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE rec (record, key)")
        connection.executemany("INSERT INTO rec VALUES (?, ?)", [(n, key(n)) for n in range(41)])
        connection.execute("DELETE FROM rec WHERE record = 7")
        keys = HeldKeys((key(n), n) for n in sorted(held))
        found = keys.find(connection, [key(n) for n in asked])
    assert found == {key(n): n for n in asked if n in held - {7}}
