"""What a reasoner must do with what it cannot take as it stands, a test a case; all but degrees through the command."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cmrn.bench.random_theories import ask, literal
from cmrn.errors import DataError
from cmrn.reasoning.chain import compile_rules
from cmrn.reasoning.limits import ExplosionError, Limits, OutOfStepsError
from cmrn.reasoning.reason import (
    EmptyTextError,
    NoPremisesError,
    NotEnglishError,
    NothingUnderstoodError,
    TooLongError,
    examine,
)
from cmrn.reasoning.solve import solve
from cmrn.reasoning.theory import Constant, Statement, Theory
from cmrn_cli.main import run


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `cmrn reason … --json`: (exit code, its document, what it says on stderr)."""

    def tell(*words: str) -> tuple[int, dict[str, Any], str]:
        code = run(["reason", *words, "--json"])
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out else {}, shown.err

    return tell


def test_an_unparsed_sentence_is_named_with_its_place(told: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Tom is kind. Bob is red. Anne is grumbling unless. Is Tom kind?"
    code, document, _ = told(text)
    assert (code, document["status"], document["answer"]) == (0, "partial", "true")
    (lost,) = document["not_understood"]
    assert (lost["sentence"], text[lost["start"] : lost["end"]], lost["text"]) == (3, lost["text"], lost["text"])
    assert lost["at"]
    assert lost["hint"]
    code, _, errors = told(text, "--strict")
    assert code == 3
    assert "chars 25-49" in errors
    run(["reason", text])
    assert "sentence 3, chars 25-49, at" in capsys.readouterr().err


def test_an_ambiguous_text_shows_every_reading_that_differs(told: Any) -> None:
    code, document, _ = told("Bob is kind or red and happy. Is Bob happy?")
    assert (code, document["status"]) == (0, "ambiguous")
    assert {document["answer"], *(one["answer"] for one in document["readings"])} == {"true", "unknown"}


def test_readings_are_at_most_eight(told: Any) -> None:
    text = "Bob is kind or red and happy. " + " ".join(f"N{i} is a or b and c." for i in range(6)) + " Is Bob happy?"
    assert len(told(text)[1]["readings"]) <= 7


def test_a_word_of_no_premise_is_unknown_and_named(told: Any) -> None:
    code, document, _ = told("Max is red. Is Max sour?")
    assert (code, document["answer"]) == (0, "unknown")
    assert any("sour" in line and "no premise" in line for line in document["conclusions"])


def test_inconsistent_premises_spare_what_they_do_not_touch(told: Any) -> None:
    premises = "Bob is red. Bob is not red. Anne is kind."
    code, touched, _ = told(f"{premises} Is Bob red?")
    assert (code, touched["answer"], touched["status"]) == (0, "both", "inconsistent")
    assert touched["contradictions"] == [{"statements": ["P1", "P2"]}]
    assert {step["conclusion"] for step in touched["steps"]} == {"Bob is red", "Bob is not red"}
    assert told(f"{premises} Is Anne kind?")[1]["answer"] == "true"


@pytest.mark.parametrize(("world", "answer"), [("open", "unknown"), ("closed", "false")])
def test_a_cycle_supports_nothing(told: Any, world: str, answer: str) -> None:
    text = "If Bob is red then Bob is kind. If Bob is kind then Bob is red. Anne is tall. Is Bob red?"
    assert told(text, "--world", world)[1]["answer"] == answer


def test_negation_through_recursion_lists_its_cycle(told: Any) -> None:
    text = "If something is not red then it is kind. If something is kind then it is red. Bob is hot. Is Bob red?"
    code, _, errors = told(text, "--world", "closed")
    assert code == 3
    assert "Bob is not red → Bob is kind → Bob is red" in json.loads(errors)["error"]["message"]


def test_an_explosion_is_estimated_and_its_rule_named(told: Any) -> None:
    names = " ".join(f"Bob{i} likes Ann{i}." for i in range(60))
    rule = "If A1 is red, then Bob likes Ann."
    many = "Everyone likes everyone who likes everyone who likes everyone."
    code, document, errors = told(f"{names} {rule} {many} Is Bob1 red?")
    error = json.loads(errors)["error"]
    assert (code, document) == (6, {})
    assert (error["where"], "would become" in error["message"]) == ("P62", True)
    with pytest.raises(ExplosionError):
        examine(f"{names} {rule} {many} Is Bob1 red?")


def test_a_search_too_long_gives_no_answer() -> None:
    text = " ".join(f"N{i} is red or N{i + 1} is red." for i in range(20)) + " Is N7 red?"
    with pytest.raises(OutOfStepsError, match="within 3 steps"):
        examine(text, limits=Limits(steps=3))


def test_time_runs_out_with_its_own_exit_code(told: Any) -> None:
    text = " ".join(f"N{i} is red or N{i + 1} is kind." for i in range(300)) + " Is N7 red?"
    code, document, errors = told(text, "--timeout", "0.001")
    assert (code, document) == (6, {})
    assert "within 0.001 seconds" in errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to reason about"),
        ("猫はかわいい。", "English"),
        ("Is Bob red?", "no premise"),
        ("Frobnicate of the.", "no premise was understood"),
    ],
)
def test_what_holds_no_premise_says_which_way(told: Any, text: str, message: str) -> None:
    code, document, errors = told(text)
    assert (code, document) == (3, {})
    assert message in json.loads(errors)["error"]["message"]


def test_each_kind_of_nothing_has_its_own_error() -> None:
    texts = {"": EmptyTextError, "猫はかわいい。": NotEnglishError, "Is Bob red?": NoPremisesError,
             "Frobnicate of the.": NothingUnderstoodError, "a " * (3 << 20): TooLongError}  # fmt: skip
    for text, error in texts.items():
        with pytest.raises(error):
            examine(text)


def test_a_sentence_only_the_learned_parser_reads_is_shown_marked_and_refused_under_strict(told: Any) -> None:
    text = (
        "The Vornish of Klee vasticates in Drell. Anything that vasticates in Drell is calm at night. "
        "True or false: The Vornish of Klee is calm at night."
    )
    code, document, _ = told(text)
    assert (code, document["answer"], document["status"]) == (0, "true", "partial")
    assert any(line.startswith("read by learned marks: ") for line in document["assumptions"])
    assert told(text, "--strict")[0] == 3


def test_each_question_has_its_answer(told: Any) -> None:
    _, document, _ = told("Bob is red. Is Bob red? Is Bob not red?")
    assert [one["answer"] for one in document["answers"]] == ["true", "false"]


def test_a_line_of_a_megabyte_is_named(told: Any) -> None:
    code, document, _ = told("Tom is kind. Bob is " + "very " * 200_000 + "red. Is Tom kind?")
    assert (code, document["status"]) == (0, "partial")
    assert document["not_understood"][0]["sentence"] == 2


@pytest.mark.parametrize("degree", [float("nan"), -0.1, 1.5, float("inf")])
def test_a_degree_that_is_none_is_refused(degree: float) -> None:
    fact = literal("red", Constant("ann"))
    known = Theory((Statement("P1", fact, "ann is red", 0, 0, "fact", degree),), "open")
    with pytest.raises(DataError, match="P1 has the degree"):
        solve(known, ask(fact))
    with pytest.raises(DataError, match="weight"):
        compile_rules([((0,), 1)], 2, [degree])
