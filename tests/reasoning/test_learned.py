"""The learned parser: it copies words it has never seen, refuses when unsure, and bridges no phrases that oppose."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from cmrn.bench.reason_folio import Story, annotated_pairs
from cmrn.errors import CheckpointError
from cmrn.reasoning.learned import shipped
from cmrn.reasoning.likeness import Pair, learn_likeness, opposed
from cmrn.reasoning.loose_phrases import NotFramedError
from cmrn.reasoning.segment import segment, tokenize
from cmrn.reasoning.tagged import TaggedReader, marks_of
from cmrn.reasoning.tagged_english import Teller
from cmrn.reasoning.tagger import FEATURES, TAGS, Tagger, features
from cmrn.reasoning.teach import share_right, teach
from cmrn.reasoning.verbalise import say


def read(text: str) -> str:
    (sentence,) = segment(text)
    words = tokenize(sentence)
    marks = marks_of(shipped().tagger or Tagger(), words)
    if marks is None:
        raise NotFramedError
    return say(TaggedReader(marks=marks).read(words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("All brelkas vasticate", "all “brelka” things are “vasticate”"),
        ("The Vornish of Klee is a grimble", "vornish of klee is “grimble”"),
        ("Vask contributes to the region", "vask is “contribute region”"),
    ],
)
def test_unseen_words_are_copied_into_the_frame(text: str, expected: str) -> None:
    assert read(text) == expected


def test_the_shipped_tagger_reads_sentences_it_was_not_taught_with() -> None:
    words, whole = share_right(shipped().tagger or Tagger(), seed=999, count=200)
    assert words > 0.98
    assert whole > 0.85


def test_an_untaught_tagger_is_not_sure_enough() -> None:
    (sentence,) = segment("All brelkas vasticate")
    assert marks_of(Tagger(), tokenize(sentence)) is None
    assert Tagger().tag([]).tags == ()


def test_teaching_is_the_same_for_the_same_seed_and_lowers_the_loss() -> None:
    one, two = (teach(seed=3, steps=12) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert share_right(one, 5, 40)[0] > share_right(Tagger(), 5, 40)[0] + 0.1


def test_sentences_are_marked_with_known_tags() -> None:
    teller = Teller(random.Random(4))
    for _ in range(200):
        sentence = teller.sentence()
        assert {tag for _, tag in sentence} <= set(TAGS)
        assert all(word and " " not in word for word, _ in sentence)
        assert any(tag == "verb" for _, tag in sentence)
    assert features([]).shape == (0, FEATURES)


def test_weights_that_are_missing_or_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Tagger.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        Tagger.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("watch 3 movie week", "watch 4 movie week"),
        ("make before 2020", "make after 2020"),
        ("like hot tea", "like cold tea"),
        ("tennis umpire", "tennis player"),
        ("live in paris", "live in rome"),
        ("flight from boston", "flight to boston"),
        ("live without fear", "live with fear"),
        ("member", "former member"),
    ],
)
def test_phrases_that_oppose_are_never_alike(left: str, right: str) -> None:
    likeness = shipped().likeness
    assert likeness is not None
    assert opposed(tuple(left.split()), tuple(right.split()))
    assert likeness.degree(tuple(left.split()), tuple(right.split())) == 0


def test_likeness_learns_what_annotators_took_for_the_same() -> None:
    light = [Pair((f"verb{k}", f"noun{k}"), (f"verb{k}", f"noun{k}", "often"), True) for k in range(20)]
    other = [Pair((f"verb{k}", f"noun{k}"), (f"verb{k}", f"noun{k}", "stone", "house"), False) for k in range(20)]
    likeness = learn_likeness([*light, *other])
    assert likeness.degree(("own", "dog"), ("own", "dog", "often")) > 0.8
    assert likeness.degree(("own", "dog"), ("own", "dog", "stone", "house")) < 0.2


def test_annotation_pairs_phrases_of_one_predicate() -> None:
    story = Story(
        ("All people who drive are calm.", "Anyone who is calm sleeps well.", "Ann is a calm person."),
        ("∀x (Drive(x) → Calm(x))", "∀x (Calm(x) → Sleep(x))", "Calm(ann)"), (), 0,
    )  # fmt: skip
    pairs = list(annotated_pairs(story))
    assert Pair(("drive",), ("calm",), False) in pairs
    assert all(pair.left != pair.right for pair in pairs)
