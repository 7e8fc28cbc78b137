"""Sentences made to be misread: what is answered without a mark must be right."""

from __future__ import annotations

import pytest

from cmrn.errors import CMRNError
from cmrn.reasoning.reason import examine

CASES = (
    ("All but one of the cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Not all birds can fly. Tweety is a bird. Can Tweety fly?", "unknown"),
    ("Hardly any birds can fly. Tweety is a bird. Can Tweety fly?", "unknown"),
    ("Few birds can fly. Tweety is a bird. Can Tweety fly?", "unknown"),
    ("Only cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Tom used to be red. Is Tom red?", "unknown"),
    ("Bob thinks that Tom is red. Is Tom red?", "unknown"),
    ("Tom is nearly red. Is Tom red?", "unknown"),
    ("Tom is as kind as Bob. Is Tom kind?", "unknown"),
    ("Every cat likes a dog. Tom is a cat. Rex is a dog. Does Tom like Rex?", "unknown"),
    ("Tom is a former cat. Is Tom a cat?", "unknown"),
    ("Tom is a toy cat. Is Tom a cat?", "unknown"),
    ("Tom is anything but red. Is Tom red?", "unknown"),
    ("Tom is far from kind. Is Tom kind?", "unknown"),
    ("Tom refuses to eat fish. Does Tom eat fish?", "unknown"),
    ("Tom barely eats fish. Does Tom eat fish?", "unknown"),
    ("Unless Tom is red, Bob is kind. Tom is not red. Is Bob kind?", "true"),
    ("Every cat but Tom is red. Tom is a cat. Is Tom red?", "unknown"),
    ("All cats other than Tom are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Some cats are not red. Tom is a cat. Is Tom red?", "unknown"),
    ("At most one cat is red. Tom is a cat. Is Tom red?", "unknown"),
    ("Tom and Bob together are heavy. Is Tom heavy?", "unknown"),
    ("Tom is kind only if Bob is red. Bob is red. Is Tom kind?", "unknown"),
    ("The cat Tom chased is red. Is Tom red?", "unknown"),
    ("Tom is not only red but also kind. Is Tom red?", "true"),
    ("Tom is red, not kind. Is Tom kind?", "false"),
    ("Tom is less kind than Bob. Is Tom kind?", "unknown"),
    ("Tom almost never eats fish. Does Tom eat fish?", "unknown"),
    ("Tom is said to be red. Is Tom red?", "unknown"),
    ("Nobody but Tom is red. Is Tom red?", "true"),
    ("Tom doubts that Bob is kind. Is Bob kind?", "unknown"),
    ("Tom is not a red cat. Is Tom red?", "unknown"),
    ("Tom is not a red cat. Is Tom a cat?", "unknown"),
    ("Tom denies being red. Is Tom red?", "unknown"),
    ("Supposedly Tom is red. Is Tom red?", "unknown"),
    ("Tom is red according to Bob. Is Tom red?", "unknown"),
    ("Tom is too kind to be red. Is Tom red?", "unknown"),
    ("Tom would be red if Bob were kind. Is Tom red?", "unknown"),
    ("Cats that chase no dogs are red. Tom is a cat. Tom chases Rex. Rex is a dog. Is Tom red?", "unknown"),
    ("Two cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Tom, unlike Bob, is red. Is Bob red?", "unknown"),
    ("Tom is no longer red. Is Tom red?", "false"),
    ("Not every cat that is red is kind. Tom is a red cat. Is Tom kind?", "unknown"),
    ("None but cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Nearly all cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("Tom is Bob's cat. Is Bob a cat?", "unknown"),
    ("Tom's cat is red. Is Tom red?", "unknown"),
    ("Whether or not Tom is red, Bob is kind. Is Tom red?", "unknown"),
    ("Tom owns a car. True or false: Tom owns a Japanese car.", "unknown"),
    ("Tom is a cat. True or false: Tom is a big cat.", "unknown"),
    ("All cats are not red. Tom is a cat. Is Tom red?", "unknown"),
    ("Everyone is not red. Is Tom red?", "unknown"),
    ("Tom does not like any dog. Rex is a dog. Does Tom like Rex?", "false"),
    ("No cat likes any dog. Tom is a cat. Rex is a dog. Does Tom like Rex?", "false"),
    ("It is not true that any dog is red. Rex is a dog. Is Rex red?", "false"),
    ("Everyone who likes any dog is sad. Rex is a dog. Tom likes Rex. Is Tom sad?", "true"),
    ("If Tom does not like any dog then Tom is sad. Rex is a dog. Tom does not like Rex. Is Tom sad?", "unknown"),
    ("Rex is a dog. Rex is red. Ben is a dog. Ben is not red. Is any dog red?", "true"),
    ("Rex is a dog. Tom likes Rex. Ben is a dog. Tom does not like Ben. Does Tom like any dog?", "true"),
    ("Rex is a dog. Rex is red. Ben is a dog. Ben is not red. True or false: Any dog is red.", "false"),
    ("Tom can like any dog. Rex is a dog. Can Tom like Rex?", "true"),
    ("Tom does not like some dogs. Rex is a dog. Does Tom like Rex?", "unknown"),
    ("Tom does not like some dogs. Does Tom like all dogs?", "false"),
    ("Rex is happy. Only Tom is happy. Is Rex a tom?", "unknown"),
    ("Tom likes only Rex. Tom likes Ben. Is Ben a rex?", "unknown"),
    ("10 cats are red. Tom is a cat. Is Tom red?", "unknown"),
    ("2 Germans are sad. Tom is a German. Is Tom sad?", "unknown"),
    ("1 Tom is a cat.\n2 All cats are red.\n3 Is Tom red?", "true"),
    ("There is no cat that likes any dog. Tom is a cat. Rex is a dog. Does Tom like Rex?", "false"),
    ("A dog saw Ned. Rex is a dog. Is it true that Rex saw Ned?", "unknown"),
    ("Tom chased Ned. Did Tom chase Ned?", "true"),
    ("Tom did not chase Ned. Did Tom chase Ned?", "false"),
    ("Tom passed. Did Tom pass?", "true"),
    ("Tom did not pass. Did Tom pass?", "false"),
    ("Tom saw Ned. Did Tom see Ned?", "true"),
    ("Tom stopped. Did Tom stop?", "true"),
    ("Tom did not stop. Did Tom stop?", "false"),
    ("Everyone who passed is happy. Tom is not happy. Did Tom pass?", "false"),
    ("Tom is a red or round cat. Tom is not round. Is Tom red?", "true"),
    ("Even Tom is red. Is Tom red?", "true"),
    ("Tom is an imaginary cat. Is Tom a cat?", "unknown"),
    ("Tom is a would-be cat. Is Tom a cat?", "unknown"),
    ("No 3 cats are red. Is it true that all 3 cats are red?", "unknown"),
    ("7 is even. All even numbers are kind. 7 is a number. Is 7 kind?", "true"),
)


@pytest.mark.parametrize(("text", "right"), CASES)
def test_what_is_answered_without_a_mark_is_right(text: str, right: str) -> None:
    try:
        (found,) = examine(text)
    except CMRNError:
        return
    if found.answer.status == "ok":
        assert found.answer.answer == right


def test_all_that_are_not_may_be_none_or_not_all() -> None:
    (found,) = examine("All cats are not red. Tom is a cat. Is Tom red?")
    assert (found.answer.answer, found.answer.status) == ("false", "ambiguous")
    assert [other.answer for _, other in found.others] == ["unknown"]
    for plain in ("No cats are red.", "All cats are never red.", "Each cat is not red."):
        (found,) = examine(f"{plain} Tom is a cat. Is Tom red?")
        assert (found.answer.answer, found.answer.status) == ("false", "ok")


def test_a_name_behind_a_past_verb_is_no_kind() -> None:
    (found,) = examine("A cat chased Ned. Rex is a dog. Did a cat chase Ned?")
    first = found.to_json()["premises"][0]
    assert first["read_as"] == "there is x such that x is a cat and x chased Ned"
    assert found.answer.answer == "true"


@pytest.mark.parametrize(
    "text",
    [
        "All products made before 2020 are cheap in Boston. The lamp is made after 2020. True or false: The lamp is "
        "cheap in Boston.",
        "All tennis umpires from Spain are strict at work. Tom is a tennis player from Spain. True or false: Tom is "
        "strict at work.",
        "Everyone who likes hot tea with milk is calm at work. Tom likes cold tea with milk. True or false: Tom is "
        "calm at work.",
        "All who watch 3 movies a week are tired at work. Tom watches 4 movies a week. True or false: Tom is tired at "
        "work.",
    ],
)
def test_a_loose_reading_takes_no_opposites_for_the_same(text: str) -> None:
    try:
        (found,) = examine(text)
    except CMRNError:
        return
    assert found.answer.answer == "unknown"
