"""Phrases are pieces of the text, alone in their rows, and as many as were asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.data.documents import Document
from cmrn.data.packing import PackedDataset
from cmrn.data.phrases import CHARACTERS, LONGEST, cut_phrases
from cmrn.tokenizer import CMRNTokenizer

DOCUMENTS = [
    Document("the sum of the squares of the sides\n is  the square", "math", "a"),
    Document("def f(x):\n    return x\n" * 20, "code", "b", 1),
]
LONG = [Document("the sum of the squares " * 60, "math"), Document("def f(x): return x\n" * 60, "code", "", 1)]


@pytest.fixture(scope="module")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train([document.text for document in DOCUMENTS], 280)


@given(st.lists(st.text(), max_size=5), st.integers(0, 99))
def test_phrases_are_the_words_of_the_text_in_order(texts: list[str], seed: int) -> None:
    documents = [Document(text, "math", str(place)) for place, text in enumerate(texts)]
    pieces = cut_phrases(documents, seed, 0)
    for document in documents:
        own = [piece.text for piece in pieces if piece.source == document.source]
        assert [word for text in own for word in text.split()] == document.text.split()
        assert all(text in document.text and text == text.strip() for text in own)
    assert all(1 <= len(piece.text.split()) <= LONGEST and piece.domain == "math" for piece in pieces)


def test_lengths_vary_and_repeat_with_the_seed() -> None:
    text = "word " * 4000
    pieces = cut_phrases([Document(text)], 1, 0)
    counts = [len(piece.text.split()) for piece in pieces]
    assert {1, 2, 3, 4, 8, LONGEST} <= set(counts)
    assert counts.count(1) > counts.count(8) > 0
    assert pieces == cut_phrases([Document(text)], 1, 0)
    assert pieces != cut_phrases([Document(text)], 2, 0)


def test_a_large_source_is_cut_in_part() -> None:
    pieces = cut_phrases([Document("word " * (CHARACTERS // 4))] * 3, 1, 0)
    assert 0.9 * CHARACTERS < sum(len(piece.text) + 1 for piece in pieces) <= CHARACTERS + 1


def test_rows_of_phrases_come_in_the_share_that_was_asked_for(tokenizer: CMRNTokenizer) -> None:
    # Longer than any phrase, a row of phrases holds several documents; one of whole documents has an end between two.
    data = PackedDataset.build(LONG, tokenizer, ("math", "code"), 128, phrase_share=0.25)
    batch, _ = data.batch(data.start(), 40)
    ended = (batch.input_ids_BT == tokenizer.eos_token_id).any(1)
    assert int(((batch.document_ids_BT[:, -1] > 0) & ~ended).sum()) == 10
    assert int((batch.domain_ids_BT[:, 0] == 0).sum()) == 20


def test_the_share_is_part_of_the_fingerprint(tokenizer: CMRNTokenizer) -> None:
    shares = (0.0, 0.25, 0.5)
    assert len({PackedDataset.build(LONG, tokenizer, (), 32, phrase_share=s).fingerprint for s in shares}) == 3


def test_a_source_without_words_has_no_phrases(tokenizer: CMRNTokenizer) -> None:
    data = PackedDataset.build([Document(" \n ")], tokenizer, (), 4, phrase_share=0.5)
    assert data.batch(data.start(), 3)[0].input_ids_BT.shape == (3, 4)


def test_every_phrase_is_a_document_without_an_end(tokenizer: CMRNTokenizer) -> None:
    phrases = {
        tuple(tokenizer.encode(piece.text)) for index in (0, 1) for piece in cut_phrases([DOCUMENTS[index]], 1, index)
    }
    data = PackedDataset.build(DOCUMENTS, tokenizer, ("math", "code"), 64, phrase_share=0.5)
    batch, _ = data.batch(data.start(), 8)
    found = 0
    for ids, documents in zip(batch.input_ids_BT, batch.document_ids_BT, strict=True):
        inner = [tuple(ids[documents == number].tolist()) for number in range(1, int(documents.max()))]
        if inner and all(piece in phrases for piece in inner):
            found += 1
            assert tokenizer.eos_token_id not in ids
    assert found == 4
