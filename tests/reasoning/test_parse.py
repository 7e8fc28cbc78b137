from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.bench.theories import problems
from cmrn.reasoning.parse import MOST_READINGS, read
from cmrn.reasoning.segment import segment
from cmrn.reasoning.theory import Statement
from cmrn.reasoning.verbalise import say
from tests.reasoning.english import lost, said

READ_AS = {
    "All birds can fly.": "all birds can fly",
    "Every bird can fly.": "all birds can fly",
    "Each jompus is not sour.": "all jompuses are not sour",
    "No cat is a dog.": "all cats are not dogs",
    "No cats are dogs.": "all cats are not dogs",
    "Mice are afraid of wolves.": "all mice are afraid of wolves",
    "Sheep are afraid of mice.": "all sheep are afraid of mice",
    "Spiders are eight-legged.": "all spiders are eight-legged",
    "Red, cold things are round.": "all red, cold things are round",
    "No quiet people are kind.": "all quiet things are not kind",
    "Only birds can fly.": "for all x, if x can fly then x is a bird",
    "Some cats are not red.": "there is x such that x is a cat and x is not red",
    "Not all cats are red.": "there is x such that x is a cat and x is not red",
    "There is a cat that is red.": "there is x such that x is a cat and x is red",
    "There is no cat that is red.": "for all x, x is not a cat or x is not red",
    "Bob is neither red nor kind.": "Bob is not red and Bob is not kind",
    "Bob is either a cat or a dog.": "either Bob is a cat or Bob is a dog, exactly one",
    "Bob is red or kind, or both.": "Bob is red or Bob is kind",
    "Bob is a cat or a dog, but not both.": "either Bob is a cat or Bob is a dog, exactly one",
    "Neither Bob nor Anne is red.": "Bob is not red and Anne is not red",
    "Bob and Anne are kind.": "Bob is kind and Anne is kind",
    "Bob, Anne and Carl are kind.": "Bob is kind and Anne is kind and Carl is kind",
    "Bob or Anne is kind.": "Bob is kind or Anne is kind",
    "Bob is kind but not red.": "Bob is kind and Bob is not red",
    "Bob isn't kind.": "Bob is not kind",
    "Bob cannot fly.": "Bob cannot fly",
    "Bob can't fly.": "Bob cannot fly",
    "Bob does not chase the cat.": "Bob does not chase the cat",
    "The bald eagle chases the cat.": "the bald eagle chases the cat",
    "Bob is taller than Anne.": "Bob is taller than Anne",
    "Bob is Anne's father.": "Bob is the father of Anne",
    "Bob is the father of Anne.": "Bob is the father of Anne",
    "Bob is in the kitchen.": "Bob is in the kitchen",
    "The box is to the left of the cup.": "the box is to the left of the cup",
    "Bob flies.": "Bob flies",
    "Bob never flies.": "Bob does not fly",
    "It is not the case that Bob is red.": "Bob is not red",
    "It is false that Bob is red.": "Bob is not red",
    "If something is red then it is hot.": "all red things are hot",
    "If someone is red and kind, they are hot.": "all red, kind things are hot",
    "Something is hot if it is red.": "all red things are hot",
    "If Bob is red then Anne is kind.": "if Bob is red then Anne is kind",
    "If Rina is not kind, then she is sad.": "if Rina is not kind then Rina is sad",
    "Bob is red unless Anne is kind.": "if Anne is not kind then Bob is red",
    "Unless Anne is kind, Bob is red.": "if Anne is not kind then Bob is red",
    "Bob is red only if Anne is kind.": "if Bob is red then Anne is kind",
    "Bob is red if and only if Anne is kind.": "Bob is red if and only if Anne is kind",
    "Bob is red iff Anne is kind.": "Bob is red if and only if Anne is kind",
    "Everything that is a cat or a dog is a pet.": "for all x, if x is a cat or x is a dog then x is a pet",
    "Things that Bob likes are red.": "for all x, if Bob likes x then x is red",
    "Every cat likes every dog.": "for all x, if x is a cat then for all y, if y is a dog then x likes y",
    "Bob likes some cat.": "there is x such that x is a cat and Bob likes x",
    "No cat or dog is red.": "(all cats are not red) and (all dogs are not red)",
    "All cats and dogs are red.": "(all cats are red) and (all dogs are red)",
    "No cats, dogs and birds are red.": "(all cats are not red) and (all dogs are not red) and (all birds are not red)",
    "Wumpuses and zumpuses are red.": "(all wumpuses are red) and (all zumpuses are red)",
    "If someone has a cat, they are happy.": "for all x and y, if y is a cat and x has y then x is happy",
    "Nobody who is kind is sad.": "all kind things are not sad",
    "If something chases the cat and it is red then the cat likes it.":
        "for all x, if x chases the cat and x is red then the cat likes x",
}  # fmt: skip


@pytest.mark.parametrize("text", READ_AS)
def test_one_sentence_has_one_meaning(text: str) -> None:
    made = [line for line in said(text) if line]
    assert made == [READ_AS[text]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Every lorpus is sour. Each wumpus is a floral lorpus.",
            "for all x, if x is a wumpus then x is floral and x is a lorpus",
        ),
        ("Each wumpus is a prime number.", "all wumpuses are prime numbers"),
        ("127 is a Mersenne prime.", "127 is a mersenne prime"),
        ("Max is a lorpus. All lorpi are sour.", "all lorpuses are sour"),
        ("All lorpi are sour.", "all lorpuses are sour"),
        ("Max is a zellis. All zelles are sour.", "all zellises are sour"),
        ("Every human is mortal. Gold is a metal. Everyone loves Ann.", "for all x, x loves Ann"),
        ("Tom is a man. He is kind.", "Tom is kind"),
        ("socrates is a man. all men are mortal.", "all men are mortal"),
        ("Penguins are birds. Penguins cannot fly.", "all penguins cannot fly"),
        ("James cannot fly.", "James cannot fly"),
        ("Every dog is red. Bob likes cats and dogs.", "Bob likes cats and Bob likes dogs"),
        ("Bob is kind. Something is red if it is hot.", "all hot things are red"),
    ],
)
def test_the_passage_tells_what_a_word_is(text: str, expected: str) -> None:
    assert said(text)[-1] == expected


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Most cats are red.", "are"),
        ("Cats usually chase dogs.", "usually"),
        ("Bob may be red.", "may"),
        ("If a cat chases a dog then it is red.", "it"),
        ("It is red.", "It"),
        ("Bob is red because Anne is kind.", "because"),
        ("The dogs are red.", "are"),
        ("Colorless green ideas furiously.", "furiously"),
        ("Bob saw her duck and.", "duck"),
        ("Two cats are red.", "are"),
        ("Cats chasing dogs are red.", "dogs"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named_with_its_place(text: str, at: str) -> None:
    whole = f"Tom is kind and Tim is kind. {text} Sue is kind."
    (found,) = read(whole)[0].not_understood
    assert whole[found.start : found.end] == found.text == text.rstrip(".")
    assert found.at in found.text
    assert found.hint
    assert lost(whole)[0][1] == found.at


def test_sentences_around_one_that_is_lost_are_kept() -> None:
    reading = read("Tom is kind. Most cats are red. Sue is kind.")[0]
    assert [one.text for one in reading.theory.statements] == ["Tom is kind", "Sue is kind"]


def test_mixed_and_or_has_both_groupings() -> None:
    readings = read("Bob is kind or red and happy. Is Bob happy?")
    assert len(readings) == 2
    assert len({one.theory.statements for one in readings}) == 2


def test_readings_stay_few() -> None:
    assert len(read("Bob is kind or red and happy. " * 12)) <= MOST_READINGS


def test_a_prompt_of_premises_and_a_question_is_cut_into_them() -> None:
    text = (
        "If all birds can fly, and penguins are birds, but penguins cannot fly, "
        "what can we conclude about the initial premise?"
    )
    (reading,) = read(text)
    assert [say(one.formula) for one in reading.theory.statements] == [
        "all birds can fly", "all penguins are birds", "all penguins cannot fly"]  # fmt: skip
    assert [text[one.start : one.end] for one in reading.theory.statements] == [
        "all birds can fly", "penguins are birds", "penguins cannot fly"]  # fmt: skip
    (question,) = reading.questions
    assert (question.kind, question.about) == ("meta", "P1")


@pytest.mark.parametrize(
    ("question", "kind", "formula"),
    [
        ("Is Bob red?", "truth", "Bob is red"),
        ("Is Bob not red?", "truth", "Bob is not red"),
        ("Does Bob like Lily?", "truth", "Bob likes Lily"),
        ("Can Bob fly?", "truth", "Bob can fly"),
        ("Are all cats red?", "truth", "all cats are red"),
        ("Is it true that Bob is red?", "truth", "Bob is red"),
        ("True or false: Bob is red.", "truth", "Bob is red"),
        ("Is the following statement true or false? Bob is red.", "truth", "Bob is red"),
        ("Bob is red?", "truth", "Bob is red"),
        ("Who is red?", "value", "what is red"),
        ("What is Bob afraid of?", "value", "Bob is afraid of what"),
        ("Whom does Bob like?", None, ""),
        ("Who does Bob like?", "value", "Bob likes what"),
        ("Where is Bob?", "value", "Bob is in what"),
        ("Is Bob a cat or a dog?", "choice", "Bob is a cat or Bob is a dog"),
    ],
)
def test_questions(question: str, kind: str | None, formula: str) -> None:
    reading = read(f"Bob likes Lily. Every cat is red. {question}")[0]
    if kind is None:
        assert [one.text for one in reading.not_understood] == [question.rstrip("?")]
        return
    assert not reading.not_understood
    (asked,) = reading.questions
    assert asked.formula is not None
    assert (asked.kind, say(asked.formula)) == (kind, formula)


def test_own_problems_are_wholly_read_and_in_one_way() -> None:
    for problem in problems(7, 12):
        readings = read(problem.text)
        assert len(readings) == 1, problem.text
        assert not readings[0].not_understood, readings[0].not_understood
        assert len(readings[0].questions) == 1


@given(st.text(max_size=200))
def test_any_text_is_read_or_named(text: str) -> None:
    for reading in read(text):
        for one in (*reading.theory.statements, *reading.not_understood, *reading.questions):
            if not (isinstance(one, Statement) and one.id.startswith("B")):
                assert 0 <= one.start <= one.end <= len(text)


WORDS = (
    "all every no some is are not a the and or if then unless that who it they bob anne cat cats dog red kind can fly"
)


@given(st.lists(st.sampled_from([*WORDS.split(), ",", ".", "?"]), max_size=14))
def test_no_sentence_of_common_words_is_dropped(words: list[str]) -> None:
    text = " ".join(words)
    reading = read(text)[0]
    covered = [(one.start, one.end) for one in (*reading.theory.statements, *reading.not_understood, *reading.questions)
               if one.end]  # fmt: skip
    for at, character in enumerate(text):
        if character.isalpha():
            assert any(start <= at < end for start, end in covered), (text, at)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Every person born in Germany is German.", "for all x, if x is born in Germany then x is german"),
        ("Every dog owned by Bob is happy.", "for all x, if x is a dog and x is owned by Bob then x is happy"),
        ("Every man living in Paris is happy.", "for all x, if x is a man and x lives in Paris then x is happy"),
    ],
)
def test_a_participle_behind_a_noun_is_no_part_of_its_name(text: str, expected: str) -> None:
    assert said(text) == [expected]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("All birds can\nfly. Tweety is\na bird.", 2),
        ("If all birds can fly, \nwhat can we conclude?", 1),
        ("socrates is a man\nall men are mortal", 2),
        ("Tom is kind\n\nBob is red", 2),
        ("Tom is kind\nBob is red", 2),
    ],
)
def test_a_line_that_breaks_a_sentence_does_not_end_it(text: str, sentences: int) -> None:
    assert len(segment(text)) == sentences
