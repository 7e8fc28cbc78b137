"""Facts of bAbI scattered in literature, and a question about them (Kuratov et al. 2024, "BABILong")."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.memory_text import Hay, Question, hidden
from cmrn.data.encoding import TextEncoder
from cmrn.errors import DataError, UsageError

__all__ = ["Story", "babi_questions", "read_stories"]

TASKS = {1: "qa1_single-supporting-fact_test.txt", 2: "qa2_two-supporting-facts_test.txt"}


@dataclass(frozen=True)
class Story:
    """The statements before a question, the question and its answer."""

    facts: tuple[str, ...]
    question: str
    answer: str


def read_stories(folder: Path, task: int) -> tuple[Story, ...]:
    """Every question of a bAbI test file with the statements of its story before it.

    Raises:
        UsageError: the file is not there.
        DataError: a line is not of the form that bAbI has.
    """
    path = folder / TASKS[task]
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="--data-root names the folder that holds long_context")
    stories: list[Story] = []
    facts: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        place, space, rest = line.strip().partition(" ")
        if not space or not place.isdigit():
            raise DataError("not a line of bAbI", where=f"{path}:{number}")
        if place == "1":
            facts = []
        question, tab, told = rest.partition("\t")
        if tab:
            stories.append(Story(tuple(facts), question.strip(), told.split("\t")[0].strip()))
        else:
            facts.append(rest.strip())
    return tuple(stories)


def babi_questions(
    stories: Sequence[Story], hay: Hay, length: int, tokenizer: TextEncoder, seed: int, count: int
) -> list[Question]:
    """`count` of the stories, each in a text of exactly `length` tokens, its facts in their order at random depths."""
    generator = random.Random(f"babi {length} {seed}")
    questions = []
    for story in generator.sample(list(stories), min(count, len(stories))):
        depths = sorted(generator.random() for _ in story.facts)
        start = generator.randrange(len(hay.tokens))
        placed = list(zip(depths, story.facts, strict=True))
        asked = f"Question: {story.question} Answer:"
        questions.append(hidden(hay, start, length, placed, asked, f" {story.answer}", tokenizer))
    return questions
