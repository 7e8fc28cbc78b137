"""Nothing is said twice, and what is held out is whole and new."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.config import DataConfig, SourceConfig
from cmrn.data import Document
from cmrn.data.deduplicate import PASSAGE_WORDS, Passages, unseen_paragraphs
from cmrn.data.split import LEAST_BYTES, MOST_OVERLAP, split_documents


def prose(seed: int, words: int) -> str:
    """Words in an order that nothing else shares."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=4)) for _ in range(words))


def grams(text: str) -> set[tuple[str, ...]]:
    """The definition of a text's passages, word for word."""
    words = re.findall(r"\w+", text.lower())
    length = min(PASSAGE_WORDS, len(words))
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)} if length else set()


@given(texts=st.lists(st.lists(st.sampled_from(["a", "B", "c."]), max_size=40).map(" ".join), max_size=6))
def test_passages_are_those_of_the_definition(texts: list[str]) -> None:
    passages = Passages.of(texts)
    assert passages.count == len(set().union(*map(grams, texts)))
    for i, first in enumerate(texts):
        assert len(passages[i]) == len(grams(first))
        for j, second in enumerate(texts):
            assert len(set(passages[i]) & set(passages[j])) == len(grams(first) & grams(second))


def test_a_near_duplicate_goes_and_a_quotation_stays() -> None:
    long, other = prose(1, 400), prose(2, 400)
    edited = long.replace(" ", "  ", 40).upper().rsplit(" ", 30)[0]
    quoting = other + " " + " ".join(long.split()[:60])
    assert Passages.of([long, edited, quoting]).novel(range(3), 0.5) == [0, 2]


def test_a_repeated_paragraph_is_kept_once() -> None:
    clause, own = prose(1, 50), prose(2, 50)
    found = list(unseen_paragraphs([([clause, own], "first"), ([clause.upper() + "!", prose(3, 50)], "second")]))
    assert found == [(f"{clause}\n\n{own}", "first"), (prose(3, 50), "second")]


def split_of(documents: list[Document], fraction: float = 0.1, seed: int = 1) -> tuple[list[int], list[int], list[int]]:
    split = split_documents(documents, Passages.of([document.text for document in documents]), fraction, seed)
    rest = [i for i in range(len(documents)) if i not in {*split.validation, *split.withheld}]
    return rest, list(split.validation), list(split.withheld)


@given(
    shared=st.lists(st.integers(0, 5), min_size=2, max_size=24),
    fraction=st.floats(0.05, 0.4),
    seed=st.integers(0, 99),
)
def test_what_is_held_out_is_new(shared: list[int], fraction: float, seed: int) -> None:
    """Documents with the same number share a passage of 60 words out of 160; number 0 shares nothing."""
    documents = [
        Document(prose(100 + i, 100) + (" " + prose(clause, 60) if clause else " " + prose(900 + i, 60)), "d")
        for i, clause in enumerate(shared)
    ]
    train, held, withheld = split_of(documents, fraction, seed)
    assert sorted([*train, *held, *withheld]) == list(range(len(documents)))
    known = set().union(*(grams(documents[i].text) for i in train))
    for i in held:
        own = grams(documents[i].text)
        assert len(own & known) <= MOST_OVERLAP * len(own)


def test_clusters_are_held_out_together_where_all_documents_overlap() -> None:
    documents = [Document(prose(i, 100) + " " + prose(1000 + i // 3, 80), "d") for i in range(30)]
    train, held, withheld = split_of(documents)
    assert withheld == []
    assert held
    assert not {i // 3 for i in held} & {i // 3 for i in train}


def test_a_collage_of_many_small_quotations_is_withheld() -> None:
    """No pair overlaps much, yet a fifth of each collage is in training, so it can be neither test nor secret."""
    whole = [Document(prose(i, 700), "whole") for i in range(40)]
    collages = [
        Document(" ".join(" ".join(d.text.split()[:25]) + " " + prose(900 + i, 40) for d in part), "collage")
        for i, part in enumerate((whole[:10], whole[20:30]))
    ]
    train, held, withheld = split_of(whole + collages)
    assert len(withheld) == 1
    assert withheld[0] >= len(whole)
    assert {(whole + collages)[i].domain for i in held} == {"whole"}
    assert len(train) + len(held) + len(withheld) == 42


def test_the_split_depends_on_texts_and_seed_not_on_order() -> None:
    documents = [Document(prose(i, 60), "ab"[i % 2]) for i in range(60)]
    chosen = {documents[i].text for i in split_of(documents)[1]}
    backwards = documents[::-1]
    assert {backwards[i].text for i in split_of(backwards)[1]} == chosen
    assert {documents[i].text for i in split_of(documents, seed=2)[1]} != chosen
    assert {documents[i].domain for i in split_of(documents)[1]} == {"a", "b"}


def test_a_large_domain_gives_the_asked_share_and_a_small_one_enough() -> None:
    large = [Document(prose(i, 400), "large") for i in range(1000)]
    small = [Document(prose(5000 + i, 400), "small") for i in range(60)]
    held = split_of(large + small, 0.05)[1]
    sizes = dict.fromkeys(("large", "small"), 0)
    for i in held:
        document = (large + small)[i]
        sizes[document.domain or ""] += len(document.text)
    assert sizes["large"] == pytest.approx(0.05 * 1000 * 2000, rel=0.05)
    assert 0.15 * 60 * 2000 <= sizes["small"] <= LEAST_BYTES


def test_a_domain_of_one_document_holds_out_its_end() -> None:
    text = "\n\n".join(prose(i, 40) for i in range(50))
    split = split_documents([Document(text, "book")], Passages.of([text]), 0.1, 1)
    (tail,) = split.tails
    assert split.head_of[0].text + tail.text == text
    assert split.head_of[0].text.endswith("\n\n")
    assert 0.1 * len(text) < len(tail.text) < 0.25 * len(text)


def test_a_split_of_a_few_words_holds_out_nothing() -> None:
    assert split_of([Document("to be", "tiny")]) == ([0], [], [])
    config = DataConfig(sources=(SourceConfig(path="x.txt"),))
    assert config.deduplicate
