"""`cmrn bench store --case ingest | search | gpu-search`: a million vectors taken in, searched, and beside peers.

The vectors are mixtures of pairs of real ones with noise; the queries are real questions. `--rounds` says how many
vectors, a million by default.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrn.bench.report import Progress, Row
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.bench.store_peers import PEERS, Peer, Search, installed
from cmrn.errors import UsageError
from cmrn.memory.entry import Fingerprint, NewRecord
from cmrn.memory.index import VectorIndex
from cmrn.memory.store import MemoryStore

__all__ = ["ingest", "mixtures", "search"]

COUNT = 1_000_000
NOISE, NOISE_A_TENTH = 1.8, 0.8
"""Length of the noise beside a mixture of length 1, and how much less it is among a tenth as many: a question's tenth
neighbour is then about as near as among the real vectors."""

BATCH = 10_000
QUERIES = 500
TEXT_BYTES = 200
RECALL = 0.95
TURNS = 5

LEAST_RATE = 25_000
MOST_OPEN_SECONDS = 5.0
LEAST_AGAINST_STORES = 5.0

Floats = NDArray[np.float32]


def ingest(options: StoreOptions, progress: Progress) -> Findings:
    """Fill a store, build its index beside searches, and open it again, with and without the index's snapshot.

    Raises:
        UsageError: the real vectors are not under the data root.
    """
    found = Findings()
    real_ND, queries_QD = _real(options.data_root)
    vectors_ND = mixtures(real_ND, options.rounds or COUNT, options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        progress(f"{len(vectors_ND)} records into a store")
        seconds = _fill(folder, vectors_ND)
        rate = len(vectors_ND) / seconds
        found.rows.append(Row("records a second into the store", rate, "1/s", detail={"seconds": seconds}))
        if rate < LEAST_RATE:
            found.fail("store", [f"{rate:.0f} records a second, where {LEAST_RATE} are the least"])
        with MemoryStore.open(folder, write=True) as store:
            _build(found, store, vectors_ND, queries_QD, progress)
        progress("open again")
        with MemoryStore.open(folder) as store:
            seconds = _time(lambda: VectorIndex.open(store, build="never").nearest(queries_QD[0], 10))
            found.count("open and answer, from the snapshot", seconds, "s", limit=MOST_OPEN_SECONDS)
    return found


def search(options: StoreOptions, progress: Progress) -> Findings:
    """Search one query at a time, at recall@10 of 0.95 or more, beside other indexes and stores, in turns; one thread.

    Raises:
        UsageError: the real vectors are not under the data root.
    """
    import faiss

    found = Findings()
    real_ND, queries_QD = _real(options.data_root)
    vectors_ND = mixtures(real_ND, options.rounds or COUNT, options.seed)
    queries_QD = queries_QD[:: max(1, len(queries_QD) // QUERIES)]
    truth_QK = _nearest(vectors_ND, queries_QD)
    _note_distances(found, real_ND, vectors_ND, queries_QD, truth_QK)
    threads = faiss.omp_get_max_threads()
    with tempfile.TemporaryDirectory() as name, _opened(Path(name) / "ours", vectors_ND, progress) as index:
        ours: dict[str, Search] = {
            "ours": lambda q_D, k: [record - 1 for record in index.nearest(q_D, k)[0].records.tolist()],
            "ours, with texts": lambda q_D, k: [hit.record.record - 1 for hit in index.search(q_D, k)[0]],
        }
        efforts: dict[str, Any] = {}
        searches = dict(ours)
        for peer in PEERS:
            if not installed(peer):
                found.notes.append(f"{peer.name} is not installed (pip install {peer.package})")
                continue
            progress(f"build {peer.name}")
            started = time.perf_counter()
            built = peer(vectors_ND, Path(name) / peer.package, threads)
            found.rows.append(Row(f"{peer.name}: build", time.perf_counter() - started, "s"))
            searches[peer.name], efforts[peer.name] = _enough(built, queries_QD, truth_QK)
        faiss.omp_set_num_threads(1)
        try:
            _compare(found, searches, efforts, queries_QD, truth_QK, progress)
            seconds = _time(lambda: index.nearest(queries_QD, 10)) / len(queries_QD)
            found.rows.append(Row("ours, all queries at once", seconds * 1e3, "ms a query"))
        finally:
            faiss.omp_set_num_threads(threads)
        _check_changes(found, index, queries_QD)
    return found


def mixtures(real_ND: Floats, count: int, seed: int) -> Floats:
    """Mixtures of two of the real vectors each, with noise, of norm 1."""
    draw = np.random.default_rng(seed)
    width = real_ND.shape[1]
    length = max(0.3, NOISE + NOISE_A_TENTH * np.log10(count / COUNT))
    vectors_ND = np.empty((count, width), np.float32)
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        pair, share = draw.integers(0, len(real_ND), (2, size)), draw.random((size, 1), np.float32)
        mixed = _unit(share * real_ND[pair[0]] + (1 - share) * real_ND[pair[1]])
        noise = draw.standard_normal((size, width), np.float32) * np.float32(length / width**0.5)
        vectors_ND[start : start + size] = _unit(mixed + noise)
    return vectors_ND


def _build(found: Findings, store: MemoryStore, vectors_ND: Floats, queries_QD: Floats, progress: Progress) -> None:
    """Build the index beside searches, then take its snapshot."""
    progress("open without a snapshot, and search while the index is built")
    started = time.perf_counter()
    index = VectorIndex.open(store)
    first = [one.records.tolist() for one in index.nearest(queries_QD[:3], 10)]
    found.rows.append(Row("open and answer, without a snapshot", time.perf_counter() - started, "s"))
    exact = (_nearest(vectors_ND, queries_QD[:3]) + 1).tolist()
    found.fail("search", ["while the index is built something else is found"] if first != exact else [])
    index.wait()
    found.rows.append(Row("index built", time.perf_counter() - started, "s", detail={"kind": index.kind}))
    found.rows.append(Row("snapshot taken", _time(index.snapshot), "s"))
    index.close()
    stats = store.stats()
    found.rows.append(Row("on disk", stats.bytes / 2**20, "MiB"))


def _enough(built: Peer, queries_QD: Floats, truth_QK: NDArray[np.int64]) -> tuple[Search, Any]:
    """The search at the least effort that finds enough, and that effort."""
    for effort in built.efforts:
        attempt: Search = built.searcher(effort)
        if _recall([attempt(q_D, 10) for q_D in queries_QD[::4]], truth_QK[::4]) >= RECALL:
            break
    return attempt, effort


def _compare(
    found: Findings,
    searches: dict[str, Search],
    efforts: dict[str, Any],
    queries_QD: Floats,
    truth_QK: NDArray[np.int64],
    progress: Progress,
) -> None:
    """Time the searches in turns, and judge ours."""
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    recall = {}
    for turn in range(TURNS):
        for name, one in searches.items():
            progress(f"turn {turn + 1} of {TURNS}: {name}")
            started = time.perf_counter()
            answers = [one(q_D, 10) for q_D in queries_QD]
            seconds[name].append((time.perf_counter() - started) / len(queries_QD) * 1e3)
            recall[name] = _recall(answers, truth_QK)
    for name, times in seconds.items():
        detail = {"recall@10": round(recall[name], 4), "effort": efforts.get(name), "fastest": min(times)}
        stores_text = any(peer.name == name and peer.stores_text for peer in PEERS)
        own = "ours, with texts" if stores_text else "ours"
        value = statistics.median(times)
        if name.startswith("ours"):
            found.rows.append(Row(name, value, "ms a query", detail=detail))
            found.fail(name, [f"recall@10 is {recall[name]:.4f}"] if recall[name] < RECALL else [])
            continue
        ours = statistics.median(seconds[own])
        found.rows.append(Row(own, ours, "ms a query", peer=name, peer_value=value, detail=detail))
        needed = LEAST_AGAINST_STORES if stores_text else 1.0
        if recall[name] < RECALL:
            found.notes.append(f"{name} finds {recall[name]:.4f} at its greatest effort here")
        elif value < needed * ours:
            found.fail(name, [f"takes {value:.2f} ms a query, where {needed * ours:.2f} would do"])


def _check_changes(found: Findings, index: VectorIndex, queries_QD: Floats) -> None:
    """Deletes and edits are seen by the next search."""
    wrong = 0
    store = index.store
    for q_D in queries_QD[:20]:
        best, *_, last = index.nearest(q_D, 10)[0].records.tolist()
        store.delete([best])
        store.edit(last, vector=q_D)
        after = index.nearest(q_D, 10)[0].records.tolist()
        wrong += best in after or after[0] != last
    found.count("deletes and edits that the next search missed", wrong, limit=0)


@contextmanager
def _opened(folder: Path, vectors_ND: Floats, progress: Progress) -> Iterator[VectorIndex]:
    progress(f"{len(vectors_ND)} records into a store, and its index built")
    _fill(folder, vectors_ND)
    with MemoryStore.open(folder, write=True) as store:
        index = VectorIndex.open(store, build="now")
        yield index
        index.wait()


def _fill(folder: Path, vectors_ND: Floats) -> float:
    """Seconds that a new store takes for the records, in commits of 10,000."""
    texts = [f"{place} ".ljust(TEXT_BYTES, "x") for place in range(BATCH)]
    with MemoryStore.create(folder, Fingerprint("mixtures", dim=vectors_ND.shape[1])) as store:
        started = time.perf_counter()
        for start in range(0, len(vectors_ND), BATCH):
            part = vectors_ND[start : start + BATCH]
            store.add([NewRecord(f"{start} {text}", vector) for text, vector in zip(texts, part, strict=False)])
        return time.perf_counter() - started


def _real(root: Path | None) -> tuple[Floats, Floats]:
    """The real vectors and the questions', of norm 1."""
    folder = (root or Path(".")) / "ann"
    if not (folder / "nq_questions.f16.npy").is_file():
        raise UsageError("no vectors there", where=str(folder), hint="--data-root FOLDER")
    names = ("nq_passages", "wikisplit_sentences", "nq_questions")
    passages, sentences, questions = (
        _unit(np.load(folder / f"{name}.f16.npy", allow_pickle=False).astype(np.float32)) for name in names
    )
    return np.concatenate([passages, sentences]), questions


def _unit(vectors_ND: Floats) -> Floats:
    unit: Floats = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return unit


def _nearest(vectors_ND: Floats, queries_QD: Floats) -> NDArray[np.int64]:
    """The ten rows of largest inner product with each query, by comparing all."""
    import faiss

    rows: NDArray[np.int64] = faiss.knn(queries_QD, vectors_ND, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return rows


def _note_distances(
    found: Findings, real_ND: Floats, vectors_ND: Floats, queries_QD: Floats, truth_QK: NDArray[np.int64]
) -> None:
    real = np.partition(queries_QD @ real_ND.T, -10, axis=1)[:, -10]
    made = np.einsum("qd,qd->q", queries_QD, vectors_ND[truth_QK[:, 9]])
    found.notes.append(
        f"cosine of a question's tenth neighbour: median {np.median(made):.3f} here, {np.median(real):.3f} among the "
        f"{len(real_ND)} real vectors"
    )


def _recall(answers: Sequence[Sequence[int]], truth_QK: NDArray[np.int64]) -> float:
    hits = [len(set(answer) & set(truth)) / 10 for answer, truth in zip(answers, truth_QK.tolist(), strict=True)]
    return sum(hits) / len(hits)


def _time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
