"""Rows hold every token once an epoch, never mix documents, and follow from the seed and the cursor alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.data import Cursor, Document, PackedDataset
from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.tokenizer import CMRNTokenizer

WORDS = st.sampled_from(["be", "not", "that is", "🙂", "x1", "question. "])
TEXT = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
DOCUMENT = st.builds(
    Document, TEXT, st.sampled_from([None, "math", "other"]), st.just("s"), source_index=st.integers(0, 2)
)
DOCUMENTS = st.lists(DOCUMENT, min_size=1, max_size=8)
SMALL = st.integers(2, 17)


def build(documents: list[Document], tokenizer: CMRNTokenizer, length: int = 8, **options: object) -> PackedDataset:
    return PackedDataset.build(documents, tokenizer, ("math", "code"), length, **options)  # type: ignore[arg-type]


@given(texts=st.lists(TEXT, min_size=1, max_size=6), length=SMALL, epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_each_epoch_holds_every_document_once(
    tokenizer: CMRNTokenizer, texts: list[str], length: int, epochs: int, seed: int
) -> None:
    data = build([Document(text) for text in texts], tokenizer, length, seed=seed)
    rows = -(-data.tokens * epochs // length)
    batch, _ = data.batch(data.start(), rows)
    stream = batch.input_ids_BT.flatten().tolist()
    wanted = Counter(tuple(tokenizer.encode(text)) for text in texts)
    for epoch in range(epochs):
        part = stream[epoch * data.tokens : (epoch + 1) * data.tokens]
        assert part[-1] == tokenizer.eos_token_id
        found: list[list[int]] = [[]]
        for token_id in part[:-1]:
            if token_id == tokenizer.eos_token_id:
                found.append([])
            else:
                found[-1].append(token_id)
        assert Counter(map(tuple, found)) == wanted


@given(documents=DOCUMENTS, length=SMALL, batch_size=st.integers(1, 9), seed=st.integers(0, 9))
def test_a_document_id_covers_one_document(
    tokenizer: CMRNTokenizer, documents: list[Document], length: int, batch_size: int, seed: int
) -> None:
    data = build(documents, tokenizer, length, seed=seed)
    batch, _ = data.batch(data.start(), batch_size)
    domains = {-1: set[int](), 0: set[int](), 1: set[int]()}
    for ids, numbers, owned in zip(batch.input_ids_BT, batch.document_ids_BT, batch.domain_ids_BT, strict=True):
        ended = (ids[:-1] == tokenizer.eos_token_id).long()
        assert torch.equal(numbers, torch.cat([torch.zeros(1, dtype=torch.long), ended.cumsum(0)]))
        for number, domain in zip(numbers.tolist(), owned.tolist(), strict=True):
            domains[domain].add(number)
            assert len(set(owned[numbers == number].tolist())) == 1
    assert torch.equal(batch.labels_BT, batch.input_ids_BT)
    assert domains[1] == set()
    assert {d.domain for d in documents} == {"math"} or domains[-1] or len(documents) > 1
    assert all(part.dtype == torch.int64 and part.shape == (batch_size, length) for part in vars(batch).values())


@given(documents=DOCUMENTS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_batches_follow_from_seed_and_cursor(
    tokenizer: CMRNTokenizer, documents: list[Document], sizes: list[int], seed: int
) -> None:
    data, again = (build(documents, tokenizer, seed=seed) for _ in range(2))
    whole, _ = data.batch(data.start(), sum(sizes))
    cursor, parts = again.start(), []
    for size in sizes:
        cursor = Cursor.from_json(cursor.to_json())
        fresh = build(documents, tokenizer, seed=seed)
        part, after = again.batch(cursor, size)
        other, other_after = fresh.batch(cursor, size)
        assert after == other_after
        assert all(torch.equal(a, b) for a, b in zip(vars(part).values(), vars(other).values(), strict=True))
        parts.append(part)
        cursor = after
    assert torch.equal(torch.cat([part.input_ids_BT for part in parts]), whole.input_ids_BT)
    assert data.fingerprint == again.fingerprint


@given(weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=4), rows=st.integers(1, 200))
def test_every_batch_follows_the_weights(tokenizer: CMRNTokenizer, weights: list[float], rows: int) -> None:
    documents = [Document("to be or not", None, "s", index) for index in range(len(weights))]
    data = build(documents, tokenizer, 4, weights=weights)
    _, cursor = data.batch(data.start(), rows)
    assert sum(cursor.rows) == rows
    for count, weight in zip(cursor.rows, weights, strict=True):
        assert abs(count - rows * weight / sum(weights)) < len(weights)


def test_epochs_differ_in_order_and_in_row_boundaries(tokenizer: CMRNTokenizer) -> None:
    texts = [f"question {number} to be" for number in range(40)]
    data = build([Document(text) for text in texts], tokenizer, 16)
    batch, _ = data.batch(data.start(), 2 * data.tokens // 16)
    stream = batch.input_ids_BT.flatten().tolist()
    first, second = stream[: data.tokens], stream[data.tokens : 2 * data.tokens - 16]
    assert first[: len(second)] != second
    other = build([Document(text) for text in texts], tokenizer, 16, seed=2)
    assert other.batch(other.start(), 4)[0].input_ids_BT.tolist() != batch.input_ids_BT[:4].tolist()
    assert other.fingerprint != data.fingerprint


def test_the_fingerprint_names_text_domains_weights_and_length(tokenizer: CMRNTokenizer) -> None:
    base = [Document("to be", "math"), Document("not", "code", source_index=1)]
    changed = [
        build([Document("to be!", "math"), base[1]], tokenizer),
        build([Document("to be", None), base[1]], tokenizer),
        build([base[0], Document("not", "code")], tokenizer),
        build(base, tokenizer, 9),
        build(base, tokenizer, weights=[1.0, 2.0]),
    ]
    assert len({build(base, tokenizer).fingerprint, *(data.fingerprint for data in changed)}) == 6


def test_a_source_without_text_takes_no_share(tokenizer: CMRNTokenizer) -> None:
    data = build([Document("to be", source_index=1)], tokenizer, weights=[5.0, 1.0])
    assert data.batch(data.start(), 3)[1] == Cursor((3,))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rows": 1}', '{"rows": [-1]}', '{"rows": [true]}', '{"rows": [0.5]}']
)
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="cursor"):
        Cursor.from_json(text)


def test_impossible_requests_are_refused(tokenizer: CMRNTokenizer) -> None:
    with pytest.raises(DataError, match="no text"):
        build([Document("")], tokenizer)
    with pytest.raises(UsageError, match="weight"):
        build([Document("a", source_index=1)], tokenizer, weights=[1.0])
    with pytest.raises(UsageError, match="weight"):
        build([Document("a")], tokenizer, weights=[0.0])
    data = build([Document("a")], tokenizer)
    with pytest.raises(CheckpointError, match="2 sources"):
        data.batch(Cursor((0, 0)), 1)
