from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cmrn.bench.text import DOMAINS, TokenisedText, prepare, read
from cmrn.errors import UsageError
from tests.bench.tiny_text import VOCABULARY, write_corpora


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tokens(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(root, tmp_path_factory.mktemp("cache"), VOCABULARY, lambda _: None)


@pytest.fixture(scope="module")
def text(tokens: Path) -> TokenisedText:
    return read(tokens)


def held_out_bytes(root: Path, domain: str) -> tuple[int, int]:
    lines = gzip.decompress((root / "corpora" / domain / "valid.jsonl.gz").read_bytes()).decode().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return len(texts), sum(len(text.encode()) for text in texts)


def test_the_file_is_made_once_and_named_after_the_texts(root: Path, tokens: Path) -> None:
    said: list[str] = []
    assert prepare(root, tokens.parent, VOCABULARY, said.append) == tokens
    assert said == []
    assert read(tokens).fingerprint in tokens.name


def test_without_texts_the_only_file_will_do(tokens: Path, tmp_path: Path) -> None:
    assert prepare(tmp_path, tokens.parent, VOCABULARY, lambda _: None) == tokens
    with pytest.raises(UsageError, match="nor its tokens"):
        prepare(tmp_path, tokens.parent, 512, lambda _: None)
    with pytest.raises(UsageError, match="no such file of tokens"):
        read(tmp_path / "tokens-1-2.npz")


def test_another_text_has_another_file(tokens: Path, tmp_path: Path) -> None:
    other = write_corpora(tmp_path)
    (other / "corpora" / "code" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x = 1"}\n'))
    assert prepare(other, tmp_path, VOCABULARY, lambda _: None).name != tokens.name


@pytest.mark.parametrize("repeated", [0, 3])
@pytest.mark.parametrize("length", [4, 7, 32])
def test_windows_hold_every_token_but_the_first_once(
    text: TokenisedText, root: Path, length: int, repeated: int
) -> None:
    for index, domain in enumerate(DOMAINS):
        windows = text.windows(index, length, repeated)
        tokens, bounds = text.held_out[index]
        wanted = np.concatenate([tokens[a + 1 : b] for a, b in pairwise(bounds)])
        assert (windows.targets[windows.targets >= 0] == wanted).all()
        assert windows.inputs.shape == windows.targets.shape
        count, size = held_out_bytes(root, domain)
        first = sum(int(text.byte_lengths[tokens[start]]) for start in bounds[:-1])
        assert (len(bounds) - 1, windows.bytes) == (count, size - first)
        both = (windows.targets[:, :-1] >= 0) & (windows.targets[:, 1:] >= 0)
        assert (windows.inputs[:, 1:][both] == windows.targets[:, :-1][both]).all()
        assert windows.inputs.shape[1] == length


def test_training_text_is_balanced_and_labelled(text: TokenisedText) -> None:
    dataset = text.dataset(16, seed=3, owned=("code", "math"))
    batch, _ = dataset.batch(dataset.start(), 12)
    labels = [row[0] for row in batch.domain_ids_BT.tolist()]
    assert sorted(labels) == [-1] * 8 + [0] * 2 + [1] * 2
    assert 258 < text.vocab_size <= VOCABULARY
