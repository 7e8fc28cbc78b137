"""Stories of kin: what is read, what is marked, and what follows by composition."""

from __future__ import annotations

import pytest

from cmrn.reasoning.compose import learn_compositions
from cmrn.reasoning.kinship import Kin, read_kin, relate

TABLE = learn_compositions(
    [(("father", "daughter"), "sister"), (("brother", "son"), "nephew"), (("mother", "mother"), "grandmother"),
     (("sister", "father"), "father"), (("daughter", "brother"), "son")]
)  # fmt: skip


def said(text: str, *names: str) -> set[tuple[str, str, str]]:
    return {(fact.person, fact.relation, fact.other) for fact in read_kin(text, names).facts}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("Dale scolded his son, Nick, for pulling Dale's daughter's braids.", {("Dale", "son", "Nick")}),
        ("Ann's younger brother, Bob, sang.", {("Ann", "brother", "Bob")}),
        ("Bob is the great brother of Ann.", {("Ann", "brother", "Bob")}),
        ("Bob, Ann's husband, cooked.", {("Ann", "husband", "Bob")}),
        ("Bob has a sister named Ann.", {("Bob", "sister", "Ann")}),
        ("Bob went out with his sisters Ann and Eve.", {("Bob", "sister", "Ann"), ("Bob", "sister", "Eve")}),
        ("Ann and Bob are siblings.", {("Ann", "sibling", "Bob"), ("Bob", "sibling", "Ann")}),
        ("Ann took her daughter Eve and her son Tim.", {("Ann", "daughter", "Eve"), ("Ann", "son", "Tim")}),
        ("Ann called her father, Bob, and brother Tim.", {("Ann", "father", "Bob"), ("Ann", "brother", "Tim")}),
        ("Ann is married to Bob.", {("Ann", "spouse", "Bob")}),
        ("Dale hit Wayne. He has a sister. Her name is Lil.", {("Dale", "sister", "Lil")}),
        ("Dinner was ready. Ann sat near Bob.", set()),
    ],
)  # fmt: skip
def test_what_a_sentence_says(text: str, facts: set[tuple[str, str, str]]) -> None:
    assert said(text, "Ann", "Bob", "Dale") == facts


def test_a_pronoun_with_two_that_fit_is_marked_as_guessed() -> None:
    sure = read_kin("Ann met Bob and her son Tim.", ("Ann", "Bob"))
    assert sure.facts[0] == Kin("Ann", "son", "Tim", 1, guessed=True)
    (told,) = read_kin("Bob is a man. Eve is his aunt. Ann came with her son Tim.", ("Ann", "Bob", "Eve")).facts[-1:]
    assert (told.person, told.guessed) == ("Ann", False)


def test_a_kin_word_not_made_out_is_named() -> None:
    read = read_kin("Ann is glad. An uncle by whom Bob was raised left.", ("Ann", "Bob"))
    assert [sentence.text for sentence in read.lost] == ["An uncle by whom Bob was raised left"]


def test_what_was_never_said_follows_by_composition_and_turned_round() -> None:
    read = read_kin("Dale scolded his son, Nick. Dale's daughter, June, cried.", ("Nick", "June"))
    found = relate(read, "Nick", "June", TABLE)
    assert found is not None
    assert found.relation == "sister"
    back = relate(read, "June", "Nick", {**TABLE, ("father", "son"): {"brother": 1.0}})
    assert back is not None
    assert back.relation == "brother"
    assert relate(read, "Nick", "Bob", TABLE) is None


def test_ways_that_disagree_give_no_answer() -> None:
    read = read_kin("Ann is Bob's mother. Ann is Bob's aunt.", ("Ann", "Bob"))
    assert relate(read, "Bob", "Ann", TABLE) is None
