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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Case:
    """Vectors, questions, the numbers of their ten nearest, where peers keep files, and threads to build with."""

    vectors_ND: Floats
    queries_QD: Floats
    truth_QK: NDArray[np.int64]
    folder: Path
    threads: int


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
    """Search, at recall@10 of 0.95 or more, beside other indexes and stores, in turns; one thread.

    One query at a time, and all queries in one call.

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
            "ours": lambda queries_QD, k: [(one.records - 1).tolist() for one in index.nearest(queries_QD, k)],
            "ours, with texts": lambda queries_QD, k: [
                [hit.record.record - 1 for hit in hits] for hits in index.search(queries_QD, k)
            ],
        }
        case = _Case(vectors_ND, queries_QD, truth_QK, Path(name), threads)
        here: list[type[Peer] | None] = [peer for peer in PEERS if installed(peer)]
        found.notes += [
            f"{peer.name} is not installed (pip install {peer.package})" for peer in PEERS if peer not in here
        ]
        # One peer at a time: a million vectors in every one of them at once do not fit into 24 GiB.
        for peer in here or [None]:
            _beside(found, peer, ours, case, progress)
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
        if _recall(attempt(queries_QD[::4], 10), truth_QK[::4]) >= RECALL:
            break
    return attempt, effort


def _beside(found: Findings, peer: type[Peer] | None, ours: dict[str, Search], case: _Case, progress: Progress) -> None:
    """Build a peer, time its searches and ours in turns on one thread, and let it go."""
    import faiss

    searches, effort, built = dict(ours), None, None
    if peer is not None:
        progress(f"build {peer.name}")
        started = time.perf_counter()
        built = peer(case.vectors_ND, case.folder / peer.package, case.threads)
        found.rows.append(Row(f"{peer.name}: build", time.perf_counter() - started, "s"))
        progress(f"the least effort of {peer.name} that finds enough")
        searches[peer.name], effort = _enough(built, case.queries_QD, case.truth_QK)
    faiss.omp_set_num_threads(1)
    try:
        _compare(found, searches, effort, case, progress)
    finally:
        faiss.omp_set_num_threads(case.threads)
        if built is not None:
            built.close()


def _compare(found: Findings, searches: dict[str, Search], effort: Any, case: _Case, progress: Progress) -> None:
    """Time the searches in turns, one query at a time and all in one call, and judge ours."""
    queries_QD = case.queries_QD
    single: dict[str, list[float]] = {name: [] for name in searches}
    together: dict[str, list[float]] = {name: [] for name in searches}
    recall = {}
    for turn in range(TURNS):
        for name, one in searches.items():
            progress(f"turn {turn + 1} of {TURNS}: {name}")
            single[name].append(_time(lambda one=one: [one(q_D[None], 10) for q_D in queries_QD]))  # type: ignore[misc]
            started = time.perf_counter()
            answers = one(queries_QD, 10)
            together[name].append(time.perf_counter() - started)
            recall[name] = _recall(answers, case.truth_QK)
    # Ours has rows of its own from the first comparison; later ones say what it took beside each peer.
    new = [name for name in searches if not any(row.name == name and row.peer is None for row in found.rows)]
    for name in new:
        if name.startswith("ours"):
            found.fail(name, [f"recall@10 is {recall[name]:.4f}"] if recall[name] < RECALL else [])
        _judge(found, name, _per_query(single, queries_QD), recall[name], effort)
    batches = _per_query(together, queries_QD)
    for name in new:
        found.rows.append(_row(name, batches, recall[name], effort, ", all queries at once"))


def _judge(found: Findings, name: str, times: dict[str, list[float]], recall: float, effort: Any) -> None:
    """The row of a search, and whether ours is as much faster as it is to be."""
    found.rows.append(_row(name, times, recall, effort))
    if name.startswith("ours"):
        return
    needed = (LEAST_AGAINST_STORES if _stores_text(name) else 1.0) * statistics.median(times[_ours_beside(name)])
    value = statistics.median(times[name])
    if recall < RECALL:
        found.notes.append(f"{name} finds {recall:.4f} at its greatest effort here")
    elif value < needed:
        found.fail(name, [f"takes {value:.2f} ms a query, where {needed:.2f} would do"])


def _row(name: str, times: dict[str, list[float]], recall: float, effort: Any, how: str = "") -> Row:
    """Milliseconds a query: ours, or ours beside a peer's."""
    value = statistics.median(times[name])
    detail = {"recall@10": round(recall, 4), "fastest": min(times[name])}
    if name.startswith("ours"):
        return Row(f"{name}{how}", value, "ms a query", detail=detail)
    detail["effort"] = effort
    own = _ours_beside(name)
    return Row(f"{own}{how}", statistics.median(times[own]), "ms a query", peer=name, peer_value=value, detail=detail)


def _per_query(seconds: dict[str, list[float]], queries_QD: Floats) -> dict[str, list[float]]:
    """Milliseconds a query of each turn."""
    return {name: [1e3 * each / len(queries_QD) for each in turns] for name, turns in seconds.items()}


def _stores_text(name: str) -> bool:
    return any(peer.name == name and peer.stores_text for peer in PEERS)


def _ours_beside(name: str) -> str:
    """Which of our searches does what a peer does."""
    return "ours, with texts" if _stores_text(name) else "ours"


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
