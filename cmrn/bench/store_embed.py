"""`cmrn bench store --case embed`: the encoder beside sentence-transformers, populating beside the encoder, and recall.

Real text: the passages of wikipedia_abstracts.jsonl and the questions about them in wikipedia_questions_dev.jsonl.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrn.bench.report import Progress, Row
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.errors import UsageError
from cmrn.memory.embedding import Embedder
from cmrn.memory.entry import NewRecord, text_to_embed
from cmrn.memory.populate import PopulateOptions, populate
from cmrn.memory.reading import Fields, Good, read_records
from cmrn.memory.store import MemoryStore

__all__ = ["embed"]

PASSAGES = "wikipedia_abstracts.jsonl"
QUESTIONS = "wikipedia_questions_dev.jsonl"
ROUNDS = 3
LEAST_SPEEDUP = 1.8
LEAST_COSINE = 0.999
MOST_OVERHEAD = 1.03
RECALL_AT = (1, 5, 10)
RECALL_MARGIN = 0.002


@dataclass(frozen=True)
class _Taken:
    """Seconds of each round, by the clock and of the process's own work."""

    wall: list[float]
    work: list[float]


def embed(options: StoreOptions, progress: Progress) -> Findings:
    """Time our encoder and the library's in turns on the same texts, then the whole of populate, then check recall.

    Raises:
        UsageError: the passages are not under the data root.
    """
    found = Findings()
    passages = _file(options.data_root, PASSAGES)
    records = [item.record for item in read_records(passages, Fields()) if isinstance(item, Good)]
    embedder = Embedder(device=options.device or "cpu")
    _beside_library(found, embedder, [text_to_embed(record) for record in records], options.rounds or ROUNDS, progress)
    with tempfile.TemporaryDirectory() as folder:
        _beside_encoder(found, embedder, passages, records, options.rounds or ROUNDS, Path(folder), progress)
        _recall(found, embedder, _file(options.data_root, QUESTIONS), Path(folder) / "store-0", progress)
    return found


def _file(root: Path | None, name: str) -> Path:
    base = root or Path(".")
    for path in (base / name, base / "data" / name):
        if path.is_file():
            return path
    raise UsageError(f"has no {name}", where=str(base), hint="--data-root or CMRN_DATA names the folder")


def _in_turns(calls: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, _Taken]:
    taken = {name: _Taken([], []) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            wall, work = time.perf_counter(), time.process_time()
            call(turn)
            taken[name].wall.append(time.perf_counter() - wall)
            taken[name].work.append(time.process_time() - work)
    return taken


def _beside_library(found: Findings, embedder: Embedder, texts: Sequence[str], rounds: int, progress: Progress) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(embedder.found.folder), device="cpu")
    sample = texts[:: max(1, len(texts) // 512)]
    progress(f"{rounds} rounds of {len(sample)} passages, ours and sentence-transformers' in turns")
    expected_ND = library.encode(sample[:64])
    embedder.embed(sample[:64])
    taken = _in_turns(
        {"ours": lambda turn: embedder.embed(sample), "library": lambda turn: library.encode(sample)}, rounds
    )
    cosine = float(np.einsum("nd,nd->n", embedder.embed(sample[:64]), expected_ND).min())
    for name, ours, theirs in (
        ("encoder", taken["ours"].wall, taken["library"].wall),
        ("encoder, by processor time", taken["ours"].work, taken["library"].work),
    ):
        speeds = [len(sample) / statistics.median(seconds) for seconds in (ours, theirs)]
        row = Row(name, speeds[0], "texts/s", "sentence-transformers", speeds[1], detail={"rounds": rounds})
        found.rows.append(row)
        if (row.ratio or 0) < LEAST_SPEEDUP:
            found.failures.append(
                f"{name}: {row.ratio:.2f} times the library's speed, where {LEAST_SPEEDUP} is promised"
            )
    found.rows.append(
        Row("least cosine to the library's vectors", cosine, "", detail={"precision": embedder.precision})
    )
    if cosine < LEAST_COSINE:
        found.failures.append(f"cosine {cosine:.5f}, where {LEAST_COSINE} is promised")


def _beside_encoder(
    found: Findings,
    embedder: Embedder,
    passages: Path,
    records: Sequence[NewRecord],
    rounds: int,
    folder: Path,
    progress: Progress,
) -> None:
    progress(f"{rounds} rounds of {len(records)} passages: encoded, and populated into a new store")
    texts = [text_to_embed(record) for record in records]

    def fill(turn: int) -> None:
        with MemoryStore.create(folder / f"store-{turn}", embedder.fingerprint()) as store:
            populate(store, [passages], embedder, PopulateOptions())

    taken = _in_turns({"encoder": lambda turn: embedder.embed(texts), "populate": fill}, rounds)
    for name, whole, alone in (
        ("populate", taken["populate"].wall, taken["encoder"].wall),
        ("populate, by processor time", taken["populate"].work, taken["encoder"].work),
    ):
        row = Row(name, statistics.median(whole), "s", "the encoder alone", statistics.median(alone))
        found.rows.append(row)
        if (row.ratio or 0) > MOST_OVERHEAD:
            found.failures.append(f"{name}: {row.ratio:.3f} times the encoder's, where {MOST_OVERHEAD} is the most")


def _recall(found: Findings, embedder: Embedder, questions: Path, folder: Path, progress: Progress) -> None:
    """How often the passage that answers a question is among the nearest, by the store's vectors and in float32."""
    progress("recall, beside every passage and question embedded in float32")
    asked = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    with MemoryStore.open(folder) as store:
        numbers, vectors, _ = zip(*store.scan(), strict=True)
        records = store.get(np.concatenate(numbers).tolist())
    places = {record.id: place for place, record in enumerate(records)}
    wanted_Q = np.array([places[each["passage_id"]] for each in asked])
    words = [each["question"] for each in asked]
    exact = Embedder(embedder.found.folder, "float32", device="cpu")
    exact_ND = exact.embed([text_to_embed(record) for record in records])
    ours = _ranks(embedder.embed(words) @ np.concatenate(vectors).T, wanted_Q)
    theirs = _ranks(exact.embed(words) @ exact_ND.T, wanted_Q)
    for most in RECALL_AT:
        recall, expected = float((ours < most).mean()), float((theirs < most).mean())
        found.rows.append(Row(f"recall@{most}", recall, "", "exact float32", expected))
        if abs(recall - expected) > RECALL_MARGIN:
            found.failures.append(f"recall@{most}: {recall:.4f}, where it is {expected:.4f} in float32")


def _ranks(scores_QN: NDArray[np.float32], wanted_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows come before the wanted one: those that score higher, and earlier ones that score the same."""
    wanted_Q1 = wanted_Q[:, None]
    own_Q1 = np.take_along_axis(scores_QN, wanted_Q1, axis=1)
    earlier_QN = np.arange(scores_QN.shape[1]) < wanted_Q1
    ranks: NDArray[np.int64] = ((scores_QN > own_Q1) | ((scores_QN == own_Q1) & earlier_QN)).sum(1)
    return ranks
