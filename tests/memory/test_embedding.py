from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.memory.embedding import Embedder
from cmrn.memory.encoder import LENGTH_STEP, batches_of, is_plain_bert
from cmrn.memory.pretrained_encoders import DEFAULT_MODEL, find_model

TEXTS = [
    "The cat sat on the mat.",
    "",
    "Ünïcödé 太陽 \U0001f600",
    "word " * 400,
    "A longer text about the law of gravitation, which Newton published in 1687. " * 4,
    "a",
    "Stars burn hydrogen.\nPlanets do not.",
]


@pytest.fixture(scope="module")
def narrow() -> Embedder:
    return Embedder(precision="bfloat16", device="cpu")


@pytest.fixture(scope="module")
def wide() -> Embedder:
    return Embedder(precision="float32", device="cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model's folder, to change."""
    return Path(shutil.copytree(find_model(None).folder, tmp_path / "model"))


def cosines(first_ND: np.ndarray, second_ND: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", first_ND, second_ND)


def test_vectors_are_those_of_sentence_transformers(wide: Embedder, narrow: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(find_model(None).folder), device="cpu")
    expected_ND = library.encode(TEXTS)
    np.testing.assert_allclose(wide.embed(TEXTS), expected_ND, atol=2e-6)
    assert cosines(narrow.embed(TEXTS), expected_ND).min() > 0.999


def test_vectors_have_unit_length_and_keep_the_order_of_the_texts(wide: Embedder) -> None:
    together_ND = wide.embed(TEXTS * 20)
    assert together_ND.shape == (140, 384)
    assert together_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together_ND, axis=1), 1, atol=1e-6)
    alone_ND = np.concatenate([wide.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(together_ND, np.tile(alone_ND, (20, 1)), atol=2e-6)
    assert wide.embed([]).shape == (0, 384)


def test_what_is_begun_together_is_what_is_embedded_alone(wide: Embedder) -> None:
    two = Embedder(precision="float32", device="cpu", threads=2)
    before = torch.get_num_threads()
    with two.running() as start:
        pending = [start(TEXTS), start([]), start(TEXTS[::-1])]
        vectors = [each.result() for each in pending]
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(vectors[0], wide.embed(TEXTS), atol=2e-6)
    np.testing.assert_allclose(vectors[2], vectors[0][::-1], atol=2e-6)
    assert vectors[1].shape == (0, 384)


def test_a_special_token_in_a_text_is_text(wide: Embedder) -> None:
    (cosine,) = cosines(wide.embed(["a [SEP] b"]), wide.embed(["a [ SEP ] b"]))
    assert cosine > 0.9999


def test_the_fingerprint_tells_encoders_apart(wide: Embedder, narrow: Embedder, model: Path) -> None:
    assert wide.fingerprint() == narrow.fingerprint()
    assert (wide.fingerprint().embedder, wide.fingerprint().dim) == (DEFAULT_MODEL, 384)
    assert len(wide.fingerprint().probes) == 4
    settings = model / "sentence_bert_config.json"
    settings.write_text(settings.read_text().replace("256", "128"))
    other = Embedder(model, "float32", device="cpu")
    assert other.fingerprint().weights != wide.fingerprint().weights


def test_another_kind_of_model_runs_in_the_library(model: Path, wide: Embedder) -> None:
    pooling = json.loads((model / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert not is_plain_bert(model)
    other = Embedder(model, device="cpu")
    vectors_ND = other.embed(TEXTS)
    assert vectors_ND.shape == (len(TEXTS), other.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-5)
    assert cosines(vectors_ND, wide.embed(TEXTS)).min() < 0.9


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", b"\0" * 100),
        ("tokenizer.json", b"{}"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "bert", "hidden_act": "gelu"}'),
        ("sentence_bert_config.json", b'{"max_seq_length": "many"}'),
    ],
)
def test_a_damaged_model_is_refused(name: str, data: bytes, model: Path) -> None:
    (model / name).write_bytes(data)
    with pytest.raises(CheckpointError) as failure:
        Embedder(model, "float32", device="cpu")
    assert str(model) in str(failure.value.where)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hub"):
        Embedder("no/such-model")
    with pytest.raises(UsageError, match="precision"):
        Embedder(precision="int8")  # type: ignore[arg-type]


def test_a_text_that_is_no_unicode_is_refused(wide: Embedder) -> None:
    with pytest.raises(DataError, match="Unicode"):
        wide.embed(["fine", "\ud800"])


@given(st.lists(st.integers(1, 256), max_size=60), st.integers(16, 2048))
def test_batches_hold_every_text_once_and_few_tokens(lengths: list[int], tokens: int) -> None:
    batches = list(batches_of(lengths, tokens))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or -(-longest // LENGTH_STEP) * LENGTH_STEP * len(batch) <= tokens
