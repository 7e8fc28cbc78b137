"""The search and ingest cases on made-up vectors: what they call exact is, and what they promise is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="the index needs FAISS")
from cmrn.bench import store_search
from cmrn.bench.store_case import StoreOptions
from cmrn.bench.store_peers import FaissHnsw
from cmrn.bench.store_search import ingest, mixtures, search
from cmrn.errors import UsageError


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "ann").mkdir()
    for name, count in (("nq_passages", 60), ("wikisplit_sentences", 90), ("nq_questions", 40)):
        np.save(tmp_path / "ann" / f"{name}.f16.npy", draw.standard_normal((count, 24)).astype(np.float16))
    return tmp_path


def quiet(text: str) -> None:
    """Told of progress."""


def test_mixtures_are_of_norm_one_and_the_same_again() -> None:
    real = np.eye(6, dtype=np.float32)
    made = mixtures(real, 500, 3)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(made, mixtures(real, 500, 3))


def test_ingest_measures_and_finds_what_is_exact(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_search, "LEAST_RATE", 1)
    found = ingest(StoreOptions(rounds=400, data_root=data_folder), quiet)
    assert not found.failures
    assert {"records a second into the store", "index built", "snapshot taken"} <= {row.name for row in found.rows}
    monkeypatch.setattr(store_search, "LEAST_RATE", 10**9)
    assert ingest(StoreOptions(rounds=100, data_root=data_folder), quiet).failures


def test_search_compares_at_equal_recall(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_search, "PEERS", (FaissHnsw,))
    monkeypatch.setattr(store_search, "TURNS", 1)
    found = search(StoreOptions(rounds=500, data_root=data_folder), quiet)
    beside = [row for row in found.rows if row.peer == "FAISS HNSW"]
    assert [row.name for row in beside] == ["ours", "ours, all queries at once"]
    assert all(row.detail["recall@10"] >= 0.95 and row.peer_value for row in beside)
    [ours] = [row for row in found.rows if row.name == "ours" and row.peer is None]
    assert ours.detail["recall@10"] == 1.0
    [missed] = [row for row in found.rows if row.name.startswith("deletes and edits")]
    assert missed.value == 0


def test_without_vectors_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no vectors"):
        search(StoreOptions(data_root=tmp_path), quiet)
