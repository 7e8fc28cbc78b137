"""What the grammar rejects, read by its frame alone: the answers are marked, and every rule between phrases is told."""

from __future__ import annotations

import pytest

from cmrn.reasoning.alignment import bridges
from cmrn.reasoning.loose import LooseReader
from cmrn.reasoning.loose_phrases import NotFramedError
from cmrn.reasoning.loose_words import lemma
from cmrn.reasoning.loosely import read_loosely
from cmrn.reasoning.reason import NothingUnderstoodError, Reasoned, examine
from cmrn.reasoning.segment import segment, tokenize
from cmrn.reasoning.solve import verify
from cmrn.reasoning.verbalise import say

COFFEE = (
    "All people who regularly drink coffee are dependent on caffeine. People either regularly drink coffee or joke "
    "about being addicted to caffeine. No one who jokes about being addicted to caffeine is unaware that caffeine is a "
    "drug. Rina is unaware that caffeine is a drug. True or false: Rina is dependent on caffeine."
)


def framed(text: str) -> str:
    (sentence,) = segment(text)
    return say(LooseReader().read([token for token in tokenize(sentence) if token.text != "."]))


def answered(text: str) -> Reasoned:
    (found,) = examine(text)
    assert found.question is not None
    verify(found.reading.theory, found.question, found.answer)
    return found


def verdict(text: str) -> str | None:
    """true or false; None where nothing follows, or nothing at all was understood."""
    try:
        answer = examine(text)[0].answer.answer
    except NothingUnderstoodError:
        return None
    return answer if answer in ("true", "false") else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("All people who regularly drink coffee are dependent on caffeine.",
         "all “regularly drink coffee” things are “dependent on caffeine”"),
        ("People either drink tea or joke about coffee.",
         "for all x, either x is “drink tea” or x is “joke about coffee”, exactly one"),
        ("No one who jokes about caffeine sleeps well.", "all “joke about caffeine” things are not “sleep well”"),
        ("Rina neither hires a maid nor owns a dog.", "rina is not “hire maid” and rina is not “own dog”"),
        ("If people live in the suburbs, then they do not have a dog.",
         "all “live in suburbs” things are not “have dog”"),
        ("Either an animal is a bird or it eats other animals.",
         "for all x, if x is “animal” then either x is “bird” or x is “eat other animal”, exactly one"),
        ("It is not true that Ron is a reptile or that Henry is tall.", "ron is not “reptile” and henry is not “tall”"),
        ("There are no people who can resist drinks.", "for all x, x is not “can resist drink”"),
    ],
)  # fmt: skip
def test_frames(text: str, expected: str) -> None:
    assert framed(text).replace("suburb”", "suburbs”") == expected


@pytest.mark.parametrize(
    "text",
    [
        "Most people like tea.",
        "Ron may like tea.",
        "Jeff is not an owner and a person who likes dogs.",
        "Because of tea.",
    ],
)
def test_what_has_no_certain_frame_is_not_read(text: str) -> None:
    with pytest.raises(NotFramedError):
        framed(text)


def test_an_answer_is_partial_and_says_what_it_rests_on() -> None:
    found = answered(COFFEE)
    assert (found.answer.answer, found.answer.status) == ("true", "partial")
    assert any(line.startswith("read loosely") for line in found.answer.assumptions)
    assert found.reading.not_understood
    assert (
        verdict(COFFEE.replace("True or false: Rina is dependent", "True or false: Rina is not dependent")) == "false"
    )
    assert verdict(COFFEE.replace("Rina is unaware", "Rina is not unaware")) is None


def test_a_premise_taken_away_leaves_the_answer_open() -> None:
    sentences = COFFEE.split(". ")
    for gone in range(4):
        kept = ". ".join(sentence for number, sentence in enumerate(sentences) if number != gone)
        assert verdict(kept) is None, gone


def test_bridges_have_degrees_and_are_told() -> None:
    text = (
        "All people who often visit museums enjoy old paintings by masters. Ann visits museums and likes jazz very "
        "much. True or false: Ann enjoys old paintings by masters."
    )
    found = answered(text)
    assert (found.answer.answer, found.answer.degree) == ("true", 0.9)
    assert "“visit museum” is as good as “often visit museum”" in "".join(found.answer.assumptions) or (
        "“often visit museum” is as good as “visit museum”" in "".join(found.answer.assumptions)
    )


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("inspire by bach", "inspire from bach", True),
        ("german producer", "producer", True),
        ("tennis umpire", "tennis player", False),
        ("not own dog", "own dog", False),
        ("former member", "member", False),
        ("live without fear", "live in fear", False),
        ("produce film", "film", False),
        ("make before 2020", "make after 2020", False),
        ("flight from boston", "flight boston", False),
    ],
)
def test_which_phrases_are_bridged(one: str, two: str, same: bool) -> None:
    phrases = {text: tuple(text.split()) for text in (one, two)}
    assert bool(list(bridges(phrases, frozenset(), frozenset()))) == same


def test_only_a_statement_asked_about_is_read_so() -> None:
    assert read_loosely(["All people who drink tea are calm. Is Bob calm?"], ()) is None
    assert read_loosely(["All people who drink tea are calm."], ()) is None
    assert read_loosely([""], ()) is None


@pytest.mark.parametrize(
    ("word", "base"),
    [("drives", "drive"), ("driving", "drive"), ("carried", "carry"), ("stopped", "stop"), ("men", "man"),
     ("wolves", "wolf"), ("uses", "use"), ("written", "write"), ("series", "sery"), ("bus", "bus")],
)  # fmt: skip
def test_base_forms(word: str, base: str) -> None:
    assert lemma(word) == base
