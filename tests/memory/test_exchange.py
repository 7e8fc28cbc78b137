from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.memory.entry import Fingerprint
from cmrn.memory.exchange import copy_store, export_lines, export_store, reembed
from cmrn.memory.store import MemoryStore
from tests.memory.stores import filled, new, run_sql


def lengths(texts: Sequence[str]) -> NDArray[np.float32]:
    """Another encoder: three numbers a text."""
    return np.array([[len(text), 1, 0] for text in texts], np.float32)


OTHER = Fingerprint("lengths", dim=3)


def test_an_export_is_one_json_line_a_record(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 2) as store:
        store.add([new(7, "Ü\x1b\n", id="i", namespace="n", source="s", meta={"k": [1]}, origin="model", trust=0.5)])
        store.delete([1])
        lines = list(export_lines(store))
        assert b"".join(lines).isascii()
        assert json.loads(lines[1]) == {
            "id": "i",
            "record": 3,
            "text": "Ü\x1b\n",
            "namespace": "n",
            "source": "s",
            "meta": {"k": [1]},
            "origin": "model",
            "trust": 0.5,
        }
        assert len(list(export_lines(store, namespace="n"))) == 1
        assert export_store(store, tmp_path / "out.jsonl") == 2
        assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines)


def test_an_export_destroys_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the store itself, which a rename over its database would, nor a folder, a device or a pipe."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "memory" / "memory.db")
    with filled(tmp_path / "memory", 2) as store:
        for name in (".", "", "/", "memory", "memory/memory.db", "memory/new.jsonl", "pipe", "/dev/null", "link"):
            with pytest.raises(UsageError):
                export_store(store, Path(name))
    with MemoryStore.open(tmp_path / "memory") as store:
        assert store.verify() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "memory", "pipe"]


@pytest.mark.parametrize("inner", ["inner", "index", "index/deep"])
def test_no_store_is_made_within_another(tmp_path: Path, inner: str) -> None:
    """What lies in a store's index is removed without a question."""
    with filled(tmp_path / "memory", 2) as store, pytest.raises(CheckpointError, match="within another store"):
        copy_store(store, tmp_path / "memory" / inner)
    with pytest.raises(CheckpointError, match="within another store"):
        MemoryStore.ensure(tmp_path / "memory" / inner, OTHER)
    with MemoryStore.open(tmp_path / "memory") as store:
        assert store.verify() == []


def test_an_export_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("old")
    (tmp_path / "taken").mkdir()
    with filled(tmp_path / "memory", 2) as store:
        with pytest.raises(UsageError, match="is a folder"):
            export_store(store, tmp_path / "taken")
        with pytest.raises(CheckpointError, match="cannot be written"):
            export_store(store, tmp_path / "nowhere" / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory", "out.jsonl", "taken"]


def test_a_copy_holds_the_same_records_and_is_another_store(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 5) as store:
        store.delete([2])
        with MemoryStore.open(tmp_path / "memory") as reader:
            copy_store(reader, tmp_path / "copy")
        with MemoryStore.open(tmp_path / "copy", write=True) as copy:
            assert copy.get(range(1, 6)) == store.get(range(1, 6))
            assert copy.uuid != store.uuid
            assert copy.uuid in (tmp_path / "copy" / "format.json").read_text()
            assert copy.verify() == []
            assert copy.add([new(9)]).records == (6,)
        assert store.stats().records == 4
        with pytest.raises(CheckpointError, match="already holds"):
            copy_store(store, tmp_path / "copy")


def test_a_damaged_store_is_not_copied(tmp_path: Path) -> None:
    filled(tmp_path / "memory", 5).close()
    run_sql(tmp_path / "memory", "UPDATE rec SET text = 'x' WHERE record = 4")
    with MemoryStore.open(tmp_path / "memory") as store, pytest.raises(CheckpointError, match="record 4 is damaged"):
        copy_store(store, tmp_path / "copy")
    assert not (tmp_path / "copy" / "memory.db").exists()


def test_reembed_changes_every_vector_and_nothing_else(tmp_path: Path) -> None:
    told: list[int] = []
    with filled(tmp_path / "memory", 5) as store:
        before, seq = store.get(range(1, 6)), store.seq
        assert reembed(store, lengths, OTHER, told.append) == 5
        assert (store.dim, store.fingerprint) == (3, OTHER)
        assert '"lengths"' in (tmp_path / "memory" / "format.json").read_text()
        np.testing.assert_array_equal(store.vectors([2]), [[6, 1, 0]])
        assert store.get(range(1, 6)) == before
        assert [change.op for change in store.changes(seq) or []] == ["update"] * 5
        assert store.verify() == []
        assert told == [5]


def test_a_reembedding_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 5) as store:
        before = store.vectors(range(1, 6))
        with pytest.raises(DataError, match="length of 0"):
            reembed(store, lambda texts: 0 * lengths(texts), OTHER)
        np.testing.assert_array_equal(store.vectors(range(1, 6)), before)
        assert store.fingerprint.embedder == "test"
        assert not list((tmp_path / "memory").glob("*.tmp-*"))
