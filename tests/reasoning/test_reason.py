from __future__ import annotations

import pytest

from cmrn.bench.theories import problems
from cmrn.reasoning.limits import UnstratifiableError
from cmrn.reasoning.reason import (
    EmptyTextError,
    NoPremisesError,
    NotEnglishError,
    NothingUnderstoodError,
    TooLongError,
    examine,
    reason,
)
from tests.reasoning.english import ask

PENGUINS = (
    "If all birds can fly, and penguins are birds, but penguins cannot fly, "
    "what can we conclude about the initial premise?"
)


def test_the_penguins_refute_the_premise() -> None:
    answer = ask(PENGUINS)
    assert (answer.kind, answer.answer) == ("meta", "false")
    assert [one.statements for one in answer.contradictions] == [("P1", "P2", "P3")]
    assert answer.revisions[0].text == "all birds except penguins can fly"
    assert "some penguin exists" in answer.assumptions
    assert len(answer.revisions) >= 3
    assert answer.steps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("All birds can fly. Tweety is a bird. Can Tweety fly?", "true"),
        ("All birds can fly. Tweety cannot fly. Is Tweety a bird?", "false"),
        ("All birds can fly. Tweety is a cat. Can Tweety fly?", "unknown"),
        ("Bob is a cat or a dog. Every cat is a pet. Every dog is a pet. Is Bob a pet?", "true"),
        ("Bob is either red or kind. Bob is not red. Is Bob kind?", "true"),
        ("Anne is taller than Bob. Bob is taller than Carl. Is Carl taller than Anne?", "false"),
        ("Anne is taller than Bob. Bob is taller than Carl. Is Carl shorter than Anne?", "true"),
        ("The lion is young. Every lion is kind. Is the lion kind?", "true"),
        ("Bob is red. Bob is not red. Anne is kind. Is Bob red?", "both"),
        ("Bob is red. Bob is not red. Anne is kind. Is Anne kind?", "true"),
        ("If Bob is red then Anne is kind. If Anne is kind then Bob is red. Is Bob red?", "unknown"),
        ("socrates is a man. all men are mortal. is socrates mortal?", "true"),
        ("Either Bob is red or Bob is kind. If Bob is red then Bob is hot. If Bob is kind then Bob is hot. Is Bob hot?",
         "true"),
    ],
)  # fmt: skip
def test_truth(text: str, expected: str) -> None:
    assert ask(text).answer == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mice are afraid of wolves. Gertrude is a mouse. What is gertrude afraid of?", "wolf"),
        ("Bob is red. Anne is kind. Who is red?", "Bob"),
        ("Bob is a dog. Is Bob a cat or a dog?", "dog"),
        ("On a shelf, there are three books: a red book, a green book, and a blue book. The red book is the leftmost. "
         "The green book is to the right of the blue book. Which of the following is true?\n"
         "A) The green book is the second from the left.\nB) The green book is the rightmost.",
         "B) The green book is the rightmost"),
        ("Five cats ran a race: Ada, Bo, Cy, Di, and Ed. Ada finished last. Which of the following is true?\n"
         "A) Ada finished fifth.\nB) Bo finished last.", "A) Ada finished fifth"),
    ],
)  # fmt: skip
def test_values(text: str, expected: str) -> None:
    assert ask(text).value == expected


def test_an_example_settles_only_what_it_says_it_does() -> None:
    answer = ask("Lily is a frog. Lily is green. Greg is a frog. What color is Greg?")
    assert answer.value == "green"
    assert any("by example" in line for line in answer.assumptions)
    assert ask("Lily is a frog. Lily is green. Greg is a swan. What color is Greg?").value is None


def test_the_world_decides_what_absence_means() -> None:
    text = "Every bird flies. Tom is a cat. Does Tom fly?"
    assert ask(text).answer == "unknown"
    assert ask(text, "closed").answer == "false"


def test_a_word_no_premise_has_is_named() -> None:
    answer = ask("Max is red. Is Max sour?")
    assert answer.answer == "unknown"
    assert any("sour" in line and "no premise" in line for line in answer.conclusions)


def test_a_verdict_without_all_sentences_is_partial() -> None:
    (found,) = examine("Tom is kind. Most cats are red. Is Tom kind?")
    assert (found.answer.answer, found.answer.status) == ("true", "partial")
    assert found.to_json()["not_understood"][0]["at"]


def test_readings_that_disagree_are_shown() -> None:
    (found,) = examine("Bob is kind or red and happy. Is Bob happy?")
    assert found.answer.status == "ambiguous"
    assert {found.answer.answer, *(answer.answer for _, answer in found.others)} == {"unknown", "true"}


def test_every_question_is_answered() -> None:
    found = examine("Bob is red. Is Bob red? Is Bob not red?")
    assert [one.answer.answer for one in found] == ["true", "false"]


def test_without_a_question_what_follows_is_told() -> None:
    answer = reason("All birds can fly. Tweety is a bird.")
    assert (answer.kind, answer.answer) == ("meta", None)
    assert "Tweety can fly" in answer.conclusions


def test_facts_and_rules_come_first() -> None:
    assert reason("Can Tweety fly?", facts=["Tweety is a bird."], rules=["All birds can fly."]).answer == "true"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", EmptyTextError),
        (" \n\t", EmptyTextError),
        ("?!.", EmptyTextError),
        ("Is Bob red?", NoPremisesError),
        ("Todos los gatos son animales. Tom es un gato.", NotEnglishError),
        ("猫はかわいい。", NotEnglishError),
        ("Most of the cats may be red.", NothingUnderstoodError),
        ("Bob is red. " * 400_000, TooLongError),
    ],
)
def test_what_cannot_be_answered_has_its_own_error(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        reason(text)


def test_a_line_of_a_megabyte_is_named_not_swallowed() -> None:
    (found,) = examine("Tom is kind. Bob is " + "very " * 200_000 + "red. Is Tom kind?")
    assert found.answer.status == "partial"
    assert found.answer.answer == "true"


def test_negation_through_recursion_names_its_cycle() -> None:
    text = "If something is not red then it is kind. If something is not kind then it is red. Bob is hot. Is Bob red?"
    with pytest.raises(UnstratifiableError) as caught:
        reason(text, "closed")
    assert caught.value.cycle


def test_own_problems_come_out_right() -> None:
    wrong = []
    for problem in problems(11, 12):
        answer = ask(problem.text)
        if answer.answer != problem.answer or answer.status != "ok":
            wrong.append((problem.family, problem.depth, problem.answer, answer.answer, problem.text))
    assert not wrong


def test_a_denied_premise_turns_the_answer_and_a_missing_one_leaves_it_open() -> None:
    for problem in problems(13, 10, deepest=6)[:10]:
        first = problem.text.split(". ")
        openers = ("Every", "Each", "All", "If", "Any", "When", "Some", "Only", "A ", "An ", "There", "No", "Is")
        fact = next(one for one in first if " is a" in one and not one.startswith(openers))
        without = ask(problem.text.replace(f"{fact}. ", "", 1))
        assert without.answer == "unknown", problem.text
