"""Quizzes: every answer follows from what the text said before, and training learns answers alone."""

from __future__ import annotations

import gzip
import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.config import DataConfig, SourceConfig
from cmrn.data import Document, LaneDataset, PackedDataset, load_corpus, sample_texts
from cmrn.data.encoding import encode_quizzes
from cmrn.data.quizzes import QUIZZES, Noise, Quiz, quizzes
from cmrn.data.sources import read_source
from cmrn.errors import DataError, UsageError
from cmrn.tokenizer import CMRNTokenizer

WORDS = ("the", "river", "under", "a", "stone", "bridge", "carried", "ladders", "windows", "engines", "garden")
PROSE = " ".join(random.Random(0).choices(WORDS, k=3000))
NOISE = Noise([PROSE])
each_kind = pytest.mark.parametrize("kind", QUIZZES)
seeds = st.integers(0, 10**6)


def made(kind: str, seed: int, characters: int = 4000) -> Quiz:
    return next(quizzes(kind, NOISE, characters, seed))


@each_kind
@given(seed=seeds)
def test_answers_are_spans_in_order(kind: str, seed: int) -> None:
    quiz = made(kind, seed)
    edges = [edge for span in quiz.answers for edge in span]
    assert quiz.answers
    assert edges == sorted(set(edges))
    assert edges[-1] <= len(quiz.text)
    assert len(quiz.text) < 16_000


@pytest.mark.parametrize("kind", ["passkey", "pairs", "associations"])
@given(seed=seeds)
def test_what_is_asked_for_was_said_before(kind: str, seed: int) -> None:
    quiz = made(kind, seed)
    for start, end in quiz.answers:
        assert quiz.text[start:end].strip() in quiz.text[:start]


@given(seed=seeds)
def test_people_are_where_they_went_last(seed: int) -> None:
    quiz = made("facts", seed)
    told = re.compile(r"\b([A-Z][a-z]+) (?:[a-z]+ )+?the ([a-z]+)\. ")
    for start, end in quiz.answers:
        name = re.findall(r"\b[Ww]here (?:is )?([A-Z][a-z]+)", quiz.text[:start])[-1]
        last = [place for who, place in told.findall(quiz.text[:start]) if who == name][-1]
        assert quiz.text[start:end] == f" {last}"


@each_kind
def test_the_same_arguments_give_the_same_quizzes(kind: str) -> None:
    first, again = (list(islice(quizzes(kind, NOISE, 2000, seed=7), 3)) for _ in range(2))
    assert first == again
    assert len({quiz.text for quiz in first}) == 3
    assert next(quizzes(kind, NOISE, 2000, seed=8)) != first[0]


def test_noise_is_cut_at_words() -> None:
    generator = random.Random(1)
    for _ in range(200):
        piece = NOISE.take(generator, 40)
        assert len(piece) <= 40
        assert set(piece.split()) <= set(WORDS)
    with pytest.raises(DataError):
        Noise([" \n"])


@given(seed=seeds)
def test_answers_are_encoded_apart(tokenizer: CMRNTokenizer, seed: int) -> None:
    quiz = made("passkey", seed, 1000)
    (ids, learnt), (plain, none) = encode_quizzes([Document(quiz.text, answers=quiz.answers), Document("x")], tokenizer)
    assert tokenizer.decode(ids) == quiz.text
    assert tokenizer.decode(ids[learnt]) == "".join(quiz.text[start:end] for start, end in quiz.answers)
    assert tokenizer.decode(plain) == "x"
    assert not none.any()


@pytest.mark.parametrize("packing", [PackedDataset, LaneDataset])
def test_only_answers_are_targets(tokenizer: CMRNTokenizer, packing: type[PackedDataset]) -> None:
    text, answer = "the number is 7. What is it? It is 7.", (35, 36)
    documents = [Document(text, answers=(answer,)), Document("to be or not", source_index=1)]
    data = packing.build(documents, tokenizer, (), 16, [1.0, 1.0])
    cursor, seen = data.start(), set()
    for _ in range(12):
        batch, cursor = data.batch(cursor, 2)
        for ids, labels in zip(batch.input_ids_BT.tolist(), batch.labels_BT.tolist(), strict=True):
            kept = [pair for pair in zip(ids, labels, strict=True) if pair[1] != -100]
            assert all(token == label for token, label in kept)
            seen |= {label for _, label in kept}
    wanted = {*tokenizer.encode("7"), *tokenizer.encode("to be or not"), tokenizer.eos_token_id}
    assert seen == wanted


def sources(root: Path, *paths: str, limit: int = 3) -> DataConfig:
    lines = [json.dumps({"text": PROSE[start : start + 3000]}) for start in range(0, 12_000, 3000)]
    (root / "prose.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    quiz = tuple(SourceConfig(path=path, limit=limit) for path in paths)
    return DataConfig(sources=(SourceConfig(path="prose.jsonl.gz", domain="prose"), *quiz))


def test_a_corpus_keeps_quizzes_whole_and_out_of_validation(tmp_path: Path) -> None:
    data = sources(tmp_path, "quiz://facts?noise=prose.jsonl.gz&length=2000")
    corpus = load_corpus(data, tmp_path)
    asked = [document for document in corpus.train if document.answers]
    assert len(asked) == 3
    assert {document.domain for document in asked} == {None}
    assert not any(document.answers for document in corpus.validation)
    assert [row.domain for row in corpus.report.domains] == ["prose"]
    assert not any("Question:" in text for text in sample_texts(corpus.train))


@pytest.mark.parametrize(
    "path", ["quiz://riddles", "quiz://", "quiz://facts?lengths=3", "quiz://facts?length=0", "quiz://facts?length=²"]
)
def test_a_quiz_that_is_not_there_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError) as error:
        list(read_source(SourceConfig(path=path), 0, tmp_path))
    assert error.value.where == path
