from __future__ import annotations

import threading
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.memory.entry import Change, Fingerprint, NewRecord, Progress, Record
from cmrn.memory.store import MemoryStore
from tests.memory.stores import DIM, PRINT, filled, new, run_sql, vector


def test_what_was_added_comes_back_after_reopening(tmp_path: Path) -> None:
    given = NewRecord(
        "Ü \x00 \u2028 \x1b[2J",
        vector(1),
        id="a",
        namespace="n",
        source="s",
        meta={"k": [1, "é"], "a": None},
        origin="model",
        trust=0.5,
    )
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        assert store.add([given, new(2)]).records == (1, 2)
    with MemoryStore.open(tmp_path / "memory") as store:
        assert store.get([1]) == [Record(1, "a", "n", "s", given.text, given.meta, "model", 0.5)]
        np.testing.assert_array_equal(store.vectors([2, 9, 1])[[0, 2]], [vector(2), vector(1)])
        assert np.isnan(store.vectors([2, 9, 1])[1]).all()
        assert store.stats().namespaces == {"default": 1, "n": 1}
        assert store.uuid
        assert (store.dim, store.fingerprint.embedder, store.seq) == (DIM, "test", 1)


def test_get_keeps_the_order_asked_for_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        assert [record.record for record in store.get([4, 99, 2, 4])] == [4, 2, 4]
        assert store.get([]) == []
        assert len(store.get(range(1, 6))) == 5


def test_a_key_is_added_once_then_unchanged_or_updated_in_place(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        again = store.add([new(2), new(2, meta={"a": 1}), new(7, "first", id="i"), new(8, "second", id="i")])
        assert (again.added, again.updated, again.unchanged) == (1, 2, 1)
        assert again.records == (2, 2, 6, 6)
        assert store.get([2])[0].meta == {"a": 1}
        assert store.find("i")[0].text == "second"
        np.testing.assert_array_equal(store.vectors([6])[0], vector(8))
        assert store.stats().records == 6


def test_texts_that_differ_only_in_normal_form_are_one_and_stay_as_first_written(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        result = store.add([new(1, apart), new(1, composed)])
        assert (result.added, result.unchanged, store.get([1])[0].text) == (1, 1, apart)
        assert store.add([new(1, composed), new(1, apart)]).unchanged == 2


def test_find_is_by_id_and_namespace(tmp_path: Path) -> None:
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        store.add([new(1, id="i", namespace="a"), new(2, id="i", namespace="b"), new(3, id="j"), new(4)])
        assert [r.record for r in store.find("i")] == [1, 2]
        assert [r.record for r in store.find("i", namespace="b")] == [2]
        assert store.find("none") == []


def test_deleted_records_are_gone_and_their_numbers_never_return(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder) as store:
        assert store.delete([4, 5, 5, 99]) == 2
        assert store.get([4, 5]) == []
        assert store.delete([4]) == 0
    with MemoryStore.open(folder, write=True) as store:
        assert store.add([new(4)]).records == (6,)
        assert store.stats().records == 4


def test_a_source_is_deleted_whole_in_one_namespace_or_all(tmp_path: Path) -> None:
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        store.add([new(n, source="st"[n % 2], namespace="ab"[n % 3 == 0]) for n in range(12)])
        assert store.delete_source("s", namespace="b") == 2
        assert store.delete_source("s") == 4
        assert {record.source for record in store.get(range(1, 13))} == {"t"}
        assert store.delete_source("unheard of") == 0
        assert store.stats().namespaces == {"a": 4, "b": 2}


def test_edit_changes_what_is_given_and_nothing_else(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        store.add([new(9, id="i", meta={"a": 1}, source="s")])
        assert store.edit(6, text="new", vector=vector(3)) == Record(6, "i", "default", "s", "new", {"a": 1}, "user", 1)
        assert store.edit(6, meta={}).meta == {}
        np.testing.assert_array_equal(store.vectors([6])[0], vector(3))
        store.edit(1, text="moved", vector=vector(1))
        assert store.add([new(1, "moved")]).unchanged == 1
        assert store.add([new(1)]).added == 1
        with pytest.raises(UsageError, match="needs its vector"):
            store.edit(1, text="x")
        with pytest.raises(UsageError, match="already record 2"):
            store.edit(1, text="text 2", vector=vector(1))
        with pytest.raises(UsageError, match="not stored"):
            store.edit(99, meta={})
        with pytest.raises(DataError, match="value"):
            store.edit(1, value=np.ones(2, np.float32))


def test_a_value_stays_with_its_record_and_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    values = np.arange(3 * DIM, dtype=np.float32).reshape(3, DIM)
    with filled(folder, 2, max_records=4) as store:
        store.add([new(3), new(4), new(3)], values=values)
        np.testing.assert_array_equal(store.values([4, 3]), values[[1, 2]])
        assert np.isnan(store.values([1, 99])).all()
        store.edit(4, value=values[0])
        store.edit(4, meta={"a": 1})
        store.touch([1, 2])
        assert store.add([new(7)], values=values[:1]).evicted == 1
        assert store.add([new(8), new(9), new(10), new(11), new(12)], values=np.ones((5, DIM), np.float32)).evicted == 5
        assert store.verify() == []
        assert np.isnan(store.values([3, 4, 5])).all()
        store.delete([10])
        store.compact()
    run_sql(folder, "UPDATE val SET vec = zeroblob(32) WHERE record = 9")
    run_sql(folder, "INSERT INTO val VALUES (500, zeroblob(32), 0)")
    with MemoryStore.open(folder) as store:
        assert np.isnan(store.values([9])).all()
        np.testing.assert_array_equal(store.values([8])[0], np.ones(DIM))
        assert {problem.where for problem in store.verify()} == {"record 9", "record 500", "table val"}


def test_values_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        for values in (np.ones((1, DIM)), np.ones((2, DIM), np.float32), np.full((1, DIM), np.inf, np.float32), [1.0]):
            with pytest.raises(DataError, match="value"):
                store.add([new(50)], values=values)  # type: ignore[arg-type]
        assert store.stats().records == 5


def test_the_log_tells_every_change_in_order(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 3) as store:
        store.delete([1, 3])
        store.add([new(2, meta={"a": 1}), new(8)])
        kinds = [(change.op, change.record) for change in store.changes(0) or []]
        adds = [("add", 1), ("add", 2), ("add", 3)]
        assert kinds == [*adds, ("delete", 1), ("delete", 3), ("add", 4), ("update", 2)]
        assert store.changes(store.seq) == []
        assert store.changes(store.seq - 1) == [Change(store.seq, "update", 2)]
        assert store.changes(store.seq + 1) is None


def test_a_pruned_log_says_so_and_numbers_go_on(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        store.delete([1])
        store.prune(1)
        assert store.changes(0) is None
        assert store.changes(1) == [Change(2, "delete", 1)]
        store.prune(99)
        assert store.changes(1) is None
        assert store.changes(2) == []
        store.add([new(9)])
        assert store.changes(2) == [Change(3, "add", 6)]
        store.prune(0)
        assert store.changes(2) == [Change(3, "add", 6)]


def test_a_damaged_log_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "UPDATE oplog SET count = 4")
    with MemoryStore.open(folder) as store:
        assert store.changes(0) is None
        assert [problem.where for problem in store.verify()] == ["table oplog"]


def test_scan_yields_every_record_in_order(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 25) as store:
        store.delete([3, *range(11, 20)])
        left = [n for n in range(1, 26) if n not in {3, *range(11, 20)}]
        batches = list(store.scan(batch=4))
        assert [int(n) for numbers, _, _ in batches for n in numbers] == left
        np.testing.assert_array_equal(np.concatenate([v for _, v, _ in batches]), [vector(n) for n in left])
        assert {each for _, _, spaces in batches for each in spaces} == {"default"}
        assert [int(n) for numbers, _, _ in store.scan(after=20) for n in numbers] == [21, 22, 23, 24, 25]


def test_names_and_numbers_that_no_store_can_hold_are_not_found(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store:
        assert store.find("\udcff") == []
        assert store.delete_source("\udcff") == 0
        assert store.delete_source("s", "\udcff") == 0
        assert store.get([0, -1, 10**30, 1])[0].record == 1
        assert np.isnan(store.vectors([10**30])).all()
        assert store.delete([-1, 10**30]) == 0
        store.touch([10**30])
        with pytest.raises(UsageError, match="not stored"):
            store.edit(10**30, meta={})
        assert [record.record for record in store.get(np.array([2, 1]))] == [2, 1]


def test_an_empty_store_answers_everything(tmp_path: Path) -> None:
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        assert (list(store.scan()), store.get([1]), store.seq, store.changes(0)) == ([], [], 0, [])
        assert store.vectors([]).shape == (0, DIM)
        assert store.verify() == []
        assert store.add([]).records == ()
        assert (store.compact() >= 0, store.stats().records) == (True, 0)


def test_ingest_progress_is_kept_with_the_rows(tmp_path: Path) -> None:
    with MemoryStore.create(tmp_path / "memory", PRINT) as store:
        assert store.ingest_progress("h") is None
        store.add([new(1)], ingest=Progress("h", 10, 1, 2))
        store.add([], ingest=Progress("h", 20, 2, 2))
        assert store.ingest_progress("h") == Progress("h", 20, 2, 2)
        with pytest.raises(DataError):
            store.add([new(1, 7)], ingest=Progress("h", 30))  # type: ignore[arg-type]
        assert store.ingest_progress("h") == Progress("h", 20, 2, 2)


BAD = {
    "no vector": (NewRecord("t"), "vector: is NoneType"),
    "not a number": (NewRecord("t", np.array([np.nan] * DIM, np.float32)), "vector: .*not finite"),
    "infinite": (NewRecord("t", np.array([np.inf] * DIM, np.float32)), "vector: .*not finite"),
    "too large": (NewRecord("t", np.full(DIM, 3e38, np.float32)), "vector: has a length of"),
    "all zeros": (NewRecord("t", np.zeros(DIM, np.float32)), "vector: has a length of 0"),
    "wide": (NewRecord("t", np.ones(DIM + 1, np.float32)), r"vector: is float32 \(9,\)"),
    "double": (NewRecord("t", np.ones(DIM)), r"vector: is float64 \(8,\)"),  # type: ignore[arg-type]
    "whole numbers": (NewRecord("t", np.ones(DIM, np.int8)), "vector: is int8"),
    "a list": (NewRecord("t", [1.0] * DIM), "vector: is list"),  # type: ignore[arg-type]
    "short bytes": (NewRecord("t", b"abcd"), "vector: is bytes"),
    "text is a number": (NewRecord(7, vector(1)), "text: is not a text"),  # type: ignore[arg-type]
    "surrogate": (NewRecord("a\ud800", vector(1)), "surrogate"),
    "surrogate in meta": (NewRecord("a", vector(1), meta={"a": "\udfff"}), "surrogate"),
    "long text": (NewRecord("a" * (1 << 20) + "b", vector(1)), "1 MiB"),
    "long id": (NewRecord("a", vector(1), id="i" * 5000), "4,096 bytes"),
    "id is a number": (NewRecord("a", vector(1), id=3), "id: is not a text"),  # type: ignore[arg-type]
    "meta is a list": (NewRecord("a", vector(1), meta=[1]), "meta: is not a dictionary"),  # type: ignore[arg-type]
    "meta holds NaN": (NewRecord("a", vector(1), meta={"a": float("nan")}), "(?i)JSON"),
    "meta holds bytes": (NewRecord("a", vector(1), meta={"a": b"x"}), "JSON"),
    "trust beyond 1": (NewRecord("a", vector(1), trust=1.5), "trust"),
    "trust is no number": (NewRecord("a", vector(1), trust=float("nan")), "trust"),
    "trust is a text": (NewRecord("a", vector(1), trust="1"), "trust|'<='"),  # type: ignore[arg-type]
    "origin is missing": (NewRecord("a", vector(1), origin=None), "origin: is not a text"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_cannot_be_stored_is_named_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    record, message = BAD[name]
    with filled(tmp_path / "memory", 2) as store:
        with pytest.raises(DataError, match=message) as caught:
            store.add([new(8), new(9), record])
        assert caught.value.where == "record 2"
        assert store.stats().records == 2


def test_deep_metadata_is_refused(tmp_path: Path) -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    with filled(tmp_path / "memory", 1) as store, pytest.raises(DataError, match="nested too deeply"):
        store.add([new(8, meta={"a": deep})])


def test_beyond_its_limit_the_least_recently_used_leave(tmp_path: Path) -> None:
    with filled(tmp_path / "memory", 4, max_records=4) as store:
        store.touch([1])
        store.touch([2])
        result = store.add([new(9), new(10)])
        assert result.evicted == 2
        assert [r.record for r in store.get(range(1, 9))] == [1, 2, 5, 6]
        store.add([new(2, meta={"used": 1})])
        assert store.limit(2) == 2
        assert [r.record for r in store.get(range(1, 9))] == [2, 6]
        assert ("delete", 3) in [(change.op, change.record) for change in store.changes(0) or []]
        assert store.max_records == 2
        assert store.verify() == []


def test_a_batch_larger_than_the_limit_leaves_its_end(tmp_path: Path) -> None:
    with MemoryStore.create(tmp_path / "memory", PRINT, max_records=3) as store:
        result = store.add([new(n) for n in range(10)])
        assert (result.added, result.evicted) == (10, 7)
        assert [r.record for r in store.get(result.records)] == [8, 9, 10]


def test_uses_outlive_the_process_and_no_clock_orders_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"
    clock = iter(range(10_000, 0, -100))
    monkeypatch.setattr("time.time", lambda: next(clock))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with filled(folder, 4, max_records=4) as store:
        store.touch([3])
        store.touch([1])
    with MemoryStore.open(folder, write=True) as store:
        store.touch([2])
        store.add([new(9)])
        assert [r.record for r in store.get(range(1, 9))] == [1, 2, 3, 5]
        store.add([new(10), new(11)])
        assert [r.record for r in store.get(range(1, 9))] == [2, 5, 6, 7]


def test_a_reader_notes_no_use_and_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    with MemoryStore.open(folder) as store:
        store.touch([1])
        for act in (lambda: store.add([new(9)]), lambda: store.delete([1]), lambda: store.limit(1), store.compact):
            with pytest.raises(UsageError, match="reading only"):
                act()
    with pytest.raises(UsageError, match="closed"):
        store.get([1])
    store.close()


def test_a_reader_sees_whole_batches_while_another_thread_writes(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    stop, sizes, failures = threading.Event(), set(), []

    def read() -> None:
        try:
            with MemoryStore.open(folder) as reader:
                while not stop.is_set():
                    sizes.add(reader.stats().records)
                    sizes.add(sum(len(numbers) for numbers, _, _ in reader.scan()))
        except Exception as error:
            failures.append(error)

    with MemoryStore.create(folder, PRINT) as store:
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for batch in range(20):
            store.add([new(batch * 10 + n) for n in range(10)])
            assert len(store.get(range(1, 1000))) == 10 * batch + 10
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert all(size % 10 == 0 for size in sizes)


def test_another_encoder_is_refused_by_name_and_by_what_it_does(tmp_path: Path) -> None:
    probed = Fingerprint("e", dim=DIM, probes=(("probe", vector(1)),))
    with MemoryStore.create(tmp_path / "memory", probed) as store:
        store.check_fingerprint(probed)
        close = vector(1) + np.float32(1e-3) * vector(2)
        store.check_fingerprint(Fingerprint("e", dim=DIM, probes=(("probe", close),)))
        for other in (Fingerprint("f", dim=DIM), Fingerprint("e", dim=DIM, weights="x"), Fingerprint("e", dim=4)):
            with pytest.raises(CheckpointError, match=f"of e revision.*of {other.embedder} revision") as caught:
                store.check_fingerprint(other)
            assert "memory reembed" in str(caught.value)
        with pytest.raises(CheckpointError, match="no longer gives"):
            store.check_fingerprint(Fingerprint("e", dim=DIM, probes=(("probe", vector(2)),)))
    with pytest.raises(CheckpointError, match="its vectors are of"):
        MemoryStore.ensure(tmp_path / "memory", Fingerprint("f", dim=DIM))
    with MemoryStore.ensure(tmp_path / "memory", probed) as store:
        np.testing.assert_array_equal(np.frombuffer(store.fingerprint.probes[0][1], np.float32), vector(1))


def test_damaged_rows_are_left_out_told_once_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "UPDATE rec SET text = 'text 7' WHERE record = 2")
    run_sql(folder, "UPDATE rec SET vec = x'00' WHERE record = 4")
    told: list[str] = []
    with MemoryStore.open(folder, write=True, warn=told.append) as store:
        assert [r.record for r in store.get(range(1, 6))] == [1, 3, 5]
        assert [int(n) for numbers, _, _ in store.scan() for n in numbers] == [1, 3, 5]
        assert np.isnan(store.vectors([2, 4])).all()
        assert len(told) == 2
        assert "record 2 is damaged" in told[0]
        assert store.quarantined == {2, 4}
        assert [problem.where for problem in store.verify()] == ["record 2", "record 4"]
        with pytest.raises(UsageError, match="damaged"):
            store.edit(2, meta={})
        with pytest.raises(CheckpointError, match="record 2 is damaged"):
            store.compact()
        assert store.add([new(4)]).updated == 1
        assert store.get([4])[0].text == "text 4"
        assert store.delete([2]) == 1
        assert store.verify() == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_sql(folder, "UPDATE rec SET text = 'x' WHERE record = 5")
        with MemoryStore.open(folder) as store:
            store.get([5])
    assert len(caught) == 1
    assert caught[0].category is RuntimeWarning
