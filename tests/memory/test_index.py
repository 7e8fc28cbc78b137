"""The index against a comparison with every record the store holds: through edits, damage, threads and rebuilding."""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("faiss", reason="the index needs FAISS")
from cmrn.errors import CheckpointError, UsageError
from cmrn.memory import index as index_module
from cmrn.memory import mirror, snapshot
from cmrn.memory.entry import Fingerprint, Hit, NewRecord, Record
from cmrn.memory.exchange import reembed
from cmrn.memory.index import VectorIndex
from cmrn.memory.store import MemoryStore

DIM = 16
Floats = NDArray[np.float32]
Where = Callable[[Record], bool]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def unit(count: int, seed: int = 0) -> Floats:
    """Vectors about forty centres, as texts are about subjects."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    vectors = centres[draw.integers(0, 40, count)] + 0.5 * draw.standard_normal((count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def entries(vectors: Floats, first: int = 0) -> list[NewRecord]:
    return [
        NewRecord(f"text {first + place}", vector, namespace="ab"[place % 2], source=f"s{place % 3}")
        for place, vector in enumerate(vectors)
    ]


def definition(store: MemoryStore, query: Floats, k: int, namespace: str | None = None) -> list[tuple[int, float]]:
    """Records and scores by comparing all, the older first at equal scores."""
    found = [
        (record, float(np.float32(vector.astype(np.float64) @ query.astype(np.float64))))
        for records, vectors, names in store.scan()
        for record, vector, name in zip(records.tolist(), vectors, names, strict=True)
        if namespace in (None, name)
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:k]


def plain(hits: list[Hit]) -> list[tuple[int, float]]:
    return [(hit.record.record, hit.score) for hit in hits]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[MemoryStore]:
    with MemoryStore.create(folder, Fingerprint("none", dim=DIM)) as store:
        yield store


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells for a few hundred records, all of them looked into, so that what they find is exact."""
    monkeypatch.setattr(mirror, "FLAT", 300)
    monkeypatch.setattr(index_module, "FLAT", 300)
    monkeypatch.setattr("cmrn.memory.cells.MOST_PROBED", 1.0)
    monkeypatch.setattr("cmrn.memory.cells.SCORED", 2000)


def test_an_empty_store_finds_nothing(store: MemoryStore) -> None:
    with VectorIndex.open(store) as index:
        assert index.search(unit(2), 3) == [[], []]
        assert index.records == 0


def test_it_finds_what_comparing_all_finds(store: MemoryStore) -> None:
    store.add(entries(unit(200)))
    with VectorIndex.open(store) as index:
        for query in unit(5, seed=1):
            assert plain(index.search(query, 7)[0]) == definition(store, query, 7)
            assert plain(index.search(query, 7, namespaces=["a"])[0]) == definition(store, query, 7, "a")
        assert len(index.search(unit(1), 1000)[0]) == 200
        assert index.search(unit(1), 5, namespaces=[]) == [[]]


@pytest.mark.parametrize(
    ("queries", "k"),
    [(np.ones((1, DIM)), 0), (np.ones((1, 3)), 1), (np.ones((1, 1, DIM)), 1), (np.full(DIM, np.nan), 1)],
)
def test_a_query_that_cannot_be_is_refused(store: MemoryStore, queries: Floats, k: int) -> None:
    with VectorIndex.open(store) as index, pytest.raises(UsageError):
        index.search(queries, k)


def test_changes_are_seen_at_once(store: MemoryStore) -> None:
    index = VectorIndex.open(store)
    vectors = unit(50)
    store.add(entries(vectors))
    assert index.search(vectors[7], 1)[0][0].record.record == 8
    store.delete([8])
    assert index.search(vectors[7], 50)[0][0].record.record != 8
    moved = store.edit(9, text="moved", vector=-vectors[7])
    assert index.search(-vectors[7], 1)[0] == [Hit(moved, pytest.approx(1.0))]
    store.delete_source("s0")
    assert {hit.record.source for hit in index.search(vectors[0], 50)[0]} == {"s1", "s2"}
    assert index.records == store.stats().records


def test_a_condition_is_met_by_every_hit(store: MemoryStore) -> None:
    store.add(entries(unit(300)))
    with VectorIndex.open(store) as index:
        [hits] = index.search(unit(1, seed=2), 4, where=lambda record: record.record % 50 == 0)
        expected = [pair for pair in definition(store, unit(1, seed=2)[0], 300) if pair[0] % 50 == 0][:4]
        assert plain(hits) == expected


def capped(store: MemoryStore, query: Floats, k: int, most: int, where: Where = lambda record: True) -> list[int]:
    """Records best first, passing over those whose source has had its share."""
    counts: Counter[str] = Counter()
    kept = []
    for record in store.get([number for number, _ in definition(store, query, 10_000)]):
        counts[record.source] += where(record)
        if where(record) and counts[record.source] <= most:
            kept.append(record.record)
    return kept[:k]


@pytest.mark.usefixtures("small_cells")
@pytest.mark.parametrize("count", [0, 5, 200, 900])
def test_no_source_has_more_than_its_share(store: MemoryStore, count: int) -> None:
    """Half of the records are of one source, and some of each of many others."""
    draw = np.random.default_rng(3)
    vectors = unit(count)
    sources = ["loud" if draw.random() < 0.5 else f"s{draw.integers(60)}" for _ in range(count)]
    store.add([NewRecord(f"text {n}", vectors[n], namespace="ab"[n % 2], source=sources[n]) for n in range(count)])
    store.delete([3, 4])
    with VectorIndex.open(store, build="now") as index:
        for query in unit(4, seed=1):
            for k, most in ((6, 1), (12, 2), (100, 3), (3, 50)):
                [hits] = index.search(query, k, per_source=most)
                assert [hit.record.record for hit in hits] == capped(store, query, k, most)
            odd = index.search(query, 8, per_source=2, where=lambda record: record.record % 5 == 0)[0]
            assert [h.record.record for h in odd] == capped(store, query, 8, 2, lambda record: record.record % 5 == 0)
            other = index.search(query, 5, per_source=1, namespaces=["b"])[0]
            assert all(hit.record.namespace == "b" for hit in other)
    with VectorIndex.open(store) as index, pytest.raises(UsageError, match="per_source"):
        index.search(unit(1), 3, per_source=0)


def test_a_share_of_one_large_source_is_found_without_reading_all_of_it(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add([NewRecord(f"text {n}", vector, source="one") for n, vector in enumerate(unit(2000))])
    read: list[int] = []
    get = MemoryStore.get
    monkeypatch.setattr(MemoryStore, "get", lambda self, records: read.extend(records) or get(self, records))
    with VectorIndex.open(store) as index:
        assert len(index.search(unit(1), 5, per_source=2)[0]) == 2
    assert len(read) == 20


@pytest.mark.usefixtures("small_cells")
def test_sources_outlive_a_snapshot(store: MemoryStore) -> None:
    store.add(entries(unit(400)))
    with VectorIndex.open(store, build="now") as index:
        index.snapshot()
    store.add([NewRecord(f"late {n}", vector, source="late") for n, vector in enumerate(unit(50, seed=8))])
    again = VectorIndex.open(store, build="never")
    for query in unit(4, seed=1):
        hits = again.search(query, 7, per_source=2)[0]
        assert [hit.record.record for hit in hits] == capped(store, query, 7, 2)


class TestOnADevice:
    """The path of a GPU, on one where there is one."""

    @pytest.fixture(autouse=True)
    def _on_any_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not torch.cuda.is_available():
            monkeypatch.setattr(VectorIndex, "to", lambda index, device: setattr(index, "_device", device))

    @pytest.mark.parametrize("count", [1, 40, 900])
    def test_it_finds_what_comparing_all_finds_through_changes(self, store: MemoryStore, count: int) -> None:
        store.add(entries(unit(count)))
        index = VectorIndex.open(store, device=DEVICE)
        assert index.kind == "exact"
        draw = np.random.default_rng(5)
        for step in range(6):
            more = unit(40, seed=10 + step) * (1 + step)
            store.add(entries(more, 1000 * (step + 1)))
            store.delete(draw.choice(count, count // 20).tolist())
            store.edit(count + 7, text=f"edited {step}", vector=more[0] * 0.5)
            queries = np.concatenate([unit(3, seed=100 + step), more[:1]])
            for namespaces in (None, "b"):
                found = index.search(queries, 10, namespaces=namespaces)
                expected = [definition(store, query, 10, namespaces) for query in queries]
                assert [plain(hits) for hits in found] == expected
            assert len(index.search(queries[0], 5000)[0]) == store.stats().records
        index.close()

    def test_shares_and_a_table_made_anew(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        store.add(entries(unit(300)))
        index = VectorIndex.open(store, device=DEVICE)
        index.search(unit(2), 3)
        monkeypatch.setattr(mirror, "FLAT", 10)
        store.delete(list(range(1, 200)))
        query = unit(1, seed=3)[0]
        assert plain(index.search(query, 5)[0]) == definition(store, query, 5)
        hits = index.search(query, 5, per_source=1)[0]
        assert [hit.record.record for hit in hits] == capped(store, query, 5, 1)

    def test_too_little_memory_there_is_told_once(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*arguments: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        store.add(entries(unit(30)))
        monkeypatch.setattr("cmrn.memory.resident.Resident.search", refuse)
        warned: list[str] = []
        index = VectorIndex.open(store, warn=warned.append, device=DEVICE)
        monkeypatch.undo()
        monkeypatch.setattr("cmrn.memory.resident.Resident.search", refuse)
        for query in unit(3, seed=1):
            assert plain(index.search(query, 5)[0]) == definition(store, query, 5)
        assert len(warned) == 1
        assert index.kind == "flat"


def test_a_device_that_is_not_there_is_refused(store: MemoryStore) -> None:
    for device in ("cuda:99" if not torch.cuda.is_available() else "mps", "tpu", ""):
        with pytest.raises(UsageError, match="cannot search on"):
            VectorIndex.open(store, device=device)


@pytest.mark.usefixtures("small_cells")
def test_cells_find_what_comparing_all_finds_through_changes(store: MemoryStore) -> None:
    store.add(entries(unit(900)))
    index = VectorIndex.open(store, build="now")
    assert index.kind == "cells"
    draw = np.random.default_rng(5)
    for step in range(6):
        more = unit(40, seed=10 + step)
        store.add(entries(more, 1000 * (step + 1)))
        store.delete(draw.choice(900, 30).tolist())
        edited = int(draw.integers(901, 940))
        store.edit(edited, text=f"edited {step}", vector=more[0] * 0.5)
        for query in (*unit(3, seed=100 + step), more[0]):
            assert plain(index.search(query, 10)[0]) == definition(store, query, 10)
            assert plain(index.search(query, 10, namespaces=["b"])[0]) == definition(store, query, 10, "b")
    index.close()


@pytest.mark.usefixtures("small_cells")
def test_it_can_be_searched_while_cells_are_built(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(entries(unit(800)))
    going, may_end = threading.Event(), threading.Event()
    build = mirror.build_cells

    def slow(*arguments: object, **options: object) -> object:
        going.set()
        assert may_end.wait(20)
        return build(*arguments, **options)

    monkeypatch.setattr(mirror, "build_cells", slow)
    with VectorIndex.open(store) as index:
        assert going.wait(20)
        late = unit(5, seed=3)
        store.add(entries(late, 5000))
        store.delete([1])
        store.edit(2, text="late", vector=-late[0])
        assert index.kind == "flat"
        assert plain(index.search(late[0], 5)[0]) == definition(store, late[0], 5)
        may_end.set()
        index.wait()
        assert index.kind == "cells"
        for query in (*late, -late[0], unit(1)[0]):
            assert plain(index.search(query, 5)[0]) == definition(store, query, 5)


@pytest.mark.usefixtures("small_cells")
def test_a_search_builds_the_cells_itself_where_it_is_to(store: MemoryStore, folder: Path) -> None:
    index = VectorIndex.open(store, build="now")
    index.snapshot()
    store.add(entries(unit(500)))
    threading.Thread(target=index.search, args=(unit(1), 3), daemon=True).start()
    end = time.monotonic() + 20
    while index.kind != "cells" and time.monotonic() < end:
        time.sleep(0.01)
    assert index.kind == "cells"
    index.close()
    loaded = snapshot.load_snapshot(folder / "index", store.uuid, store.fingerprint)
    assert loaded is not None
    assert loaded.cells is not None


@pytest.mark.usefixtures("small_cells")
def test_a_snapshot_gives_the_same_hits_and_so_does_none(store: MemoryStore, folder: Path) -> None:
    store.add(entries(unit(700)))
    queries = unit(8, seed=4)
    with VectorIndex.open(store, build="now") as index:
        store.delete([3, 4])
        before = index.search(queries, 6)
        index.snapshot()
    store.add(entries(unit(3, seed=6), 900))
    store.delete([5])
    warned: list[str] = []
    again = VectorIndex.open(store, warn=warned.append, build="never")
    assert again.kind == "cells"
    expected = [definition(store, query, 6) for query in queries]
    assert [plain(hits) for hits in again.search(queries, 6)] == expected
    assert before != expected
    (folder / "index" / "CURRENT").unlink()
    rebuilt = VectorIndex.open(store, warn=warned.append, build="never")
    assert [plain(hits) for hits in rebuilt.search(queries, 6)] == expected
    assert not warned


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("which", ["CURRENT", "*.faiss"])
def test_a_damaged_snapshot_costs_a_warning(
    store: MemoryStore, folder: Path, which: str, damage: Callable[[Path], object]
) -> None:
    store.add(entries(unit(60)))
    with VectorIndex.open(store) as index:
        index.snapshot()
    [path] = (folder / "index").glob(which)
    damage(path)
    warned: list[str] = []
    index = VectorIndex.open(store, warn=warned.append)
    assert len(warned) == (0 if which == "CURRENT" and not path.exists() else 1)
    for query in unit(3, seed=1):
        assert plain(index.search(query, 5)[0]) == definition(store, query, 5)


def test_a_snapshot_is_its_owners_alone(store: MemoryStore, folder: Path) -> None:
    store.add(entries(unit(5)))
    with VectorIndex.open(store) as index:
        index.snapshot()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "index").iterdir()}
    assert len(modes) == 2
    assert set(modes.values()) == {0o600}


def test_every_bit_of_a_snapshot_counts(store: MemoryStore, folder: Path) -> None:
    """No flipped bit goes unnoticed, in either file: a wrong seq would hide changes, a wrong code a record."""
    store.add(entries(unit(5)))
    with VectorIndex.open(store) as index:
        index.snapshot()
    draw = np.random.default_rng(0)
    for path in sorted((folder / "index").iterdir()):
        sound = path.read_bytes()
        for place in draw.choice(len(sound) * 8, 60, replace=False).tolist():
            data = bytearray(sound)
            data[place // 8] ^= 1 << place % 8
            path.write_bytes(data)
            warned: list[str] = []
            VectorIndex.open(store, warn=warned.append)
            assert warned, (path.name, place)
        path.write_bytes(sound)


def test_a_snapshot_of_another_store_is_not_read(tmp_path: Path) -> None:
    stores = [MemoryStore.create(tmp_path / name, Fingerprint("none", dim=DIM)) for name in ("one", "two")]
    for seed, store in enumerate(stores):
        store.add(entries(unit(30, seed=seed)))
        with VectorIndex.open(store) as index:
            index.snapshot()
    for path in (tmp_path / "two" / "index").iterdir():
        path.unlink()
    for path in (tmp_path / "one" / "index").iterdir():
        (tmp_path / "two" / "index" / path.name).write_bytes(path.read_bytes())
    warned: list[str] = []
    index = VectorIndex.open(stores[1], warn=warned.append)
    assert plain(index.search(unit(1)[0], 3)[0]) == definition(stores[1], unit(1)[0], 3)
    assert len(warned) == 1
    for store in stores:
        store.close()


def test_a_snapshot_older_than_the_log_is_not_read(store: MemoryStore) -> None:
    store.add(entries(unit(20)))
    with VectorIndex.open(store) as index:
        index.snapshot()
    store.delete([1, 2])
    store.prune(store.seq)
    index = VectorIndex.open(store)
    assert index.records == 18
    assert plain(index.search(unit(1)[0], 3)[0]) == definition(store, unit(1)[0], 3)


def test_snapshots_let_the_log_of_changes_stay_short(store: MemoryStore, folder: Path) -> None:
    """It goes back to the snapshot before the newest, and a reader that fell behind that starts from the newest."""
    with MemoryStore.open(folder) as reader, VectorIndex.open(reader) as behind:
        index = VectorIndex.open(store)
        for step in range(4):
            store.add(entries(unit(30, seed=step), 100 * step))
            store.delete([30 * step + 1])
            before = store.seq
            index.snapshot()
        assert store.changes(0) is None
        assert store.changes(before) == []
        assert len(store.changes(before - 2) or ()) == 31
        assert store.verify() == []
        for query in unit(3, seed=9):
            assert plain(behind.search(query, 6)[0]) == definition(store, query, 6)


@pytest.mark.parametrize("dim", [DIM, 4])
def test_vectors_of_another_encoder_are_not_searched_with_those_of_the_one_before(
    store: MemoryStore, folder: Path, dim: int
) -> None:
    store.add(entries(unit(30)))
    with MemoryStore.open(folder) as reader, VectorIndex.open(reader) as index:
        assert len(index.search(unit(1), 3)[0]) == 3
        reembed(store, lambda texts: np.eye(dim, dtype=np.float32)[[len(text) % 4 for text in texts]],
                Fingerprint("another", dim=dim))  # fmt: skip
        with pytest.raises(CheckpointError, match="another encoder since"):
            index.search(unit(1), 3)
        assert VectorIndex.open(reader).search(np.eye(dim)[len("text 0") % 4], 1)[0][0].record.text == "text 0"


def test_only_the_newest_snapshot_stays(store: MemoryStore, folder: Path) -> None:
    index = VectorIndex.open(store)
    for step in range(3):
        store.add(entries(unit(5, seed=step), 10 * step))
        index.snapshot()
        (folder / "index" / "stray.tmp-0123456789ab").write_bytes(b"")
    index.snapshot()
    names = sorted(path.name for path in (folder / "index").iterdir())
    assert len(names) == 2
    assert names[1] == "CURRENT"


def test_many_changes_are_followed_by_a_snapshot(
    store: MemoryStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "UNSAVED", 20)
    index = VectorIndex.open(store)
    store.add(entries(unit(10)))
    index.refresh()
    assert not (folder / "index").exists()
    store.add(entries(unit(15, seed=1), 100))
    index.refresh()
    loaded = snapshot.load_snapshot(folder / "index", store.uuid, store.fingerprint)
    assert loaded is not None
    assert (loaded.seq, loaded.table.count) == (store.seq, 25)


def test_a_reader_searches_and_takes_no_snapshot(store: MemoryStore, folder: Path) -> None:
    store.add(entries(unit(30)))
    with MemoryStore.open(folder) as reader, VectorIndex.open(reader) as index:
        store.delete([1])
        assert plain(index.search(unit(1)[0], 4)[0]) == definition(store, unit(1)[0], 4)
        with pytest.raises(UsageError, match="reading only"):
            index.snapshot()
    assert not list((folder / "index").glob("*"))


def test_searching_while_adding_finds_only_what_is_stored(store: MemoryStore, folder: Path) -> None:
    vectors = unit(600)
    store.add(entries(vectors[:100]))
    index = VectorIndex.open(store)
    failures: list[BaseException] = []

    def search() -> None:
        try:
            for query in unit(60, seed=8):
                [hits] = index.search(query, 5)
                assert len(hits) == 5
                assert all(hit.record.text == f"text {hit.record.record - 1}" for hit in hits)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(100, 600, 20):
        store.add(entries(vectors[start : start + 20], start))
    for thread in threads:
        thread.join()
    assert not failures
    assert index.search(vectors[599], 1)[0][0].record.record == 600


def test_a_record_damaged_since_is_left_out(store: MemoryStore, folder: Path) -> None:
    vectors = unit(30)
    store.add(entries(vectors))
    warned: list[str] = []
    with MemoryStore.open(folder, warn=warned.append) as reader, VectorIndex.open(reader) as index:
        assert index.search(vectors[4], 1)[0][0].record.record == 5
        with closing(sqlite3.connect(folder / "memory.db")) as connection, connection:
            connection.execute("UPDATE rec SET text = 'another' WHERE record = 5")
        [hits] = index.search(vectors[4], 30)
        assert len(hits) == 29
        assert 5 not in {hit.record.record for hit in hits}
        assert len(warned) == 1
