"""Texts that ask about themselves: what a memory is trained with, and measured by.

A quiz hides statements in ordinary text and asks for them further on; only its answers are targets. Kinds: `passkey`
(numbers under a name), `facts` (who is where, people moving on, after bAbI task 1, Weston et al. 2015), `pairs` (random
identifiers as keys and values, after Liu et al. 2023, "Lost in the Middle") and `associations` (pairs of words).
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from cmrn.errors import DataError

__all__ = [
    "CHARACTERS",
    "KEY_FORM",
    "KEY_QUESTION",
    "LOCATION_QUESTION",
    "PAIRS_BEGIN",
    "PAIR_QUESTION",
    "QUIZZES",
    "Noise",
    "Quiz",
    "QuizWriter",
    "pairs_object",
    "quizzes",
]

NAMES = (
    "Mary", "John", "Daniel", "Sandra", "Fred", "Julie", "Bill", "Jeff", "Alice", "Oscar", "Nina", "Peter", "Clara",
    "Hugo", "Irene", "Victor", "Laura", "Simon", "Emma", "Ralph", "Agnes", "Martin", "Rosa", "Felix", "Helen", "Arthur",
    "Grace", "Walter", "Edith", "Henry", "Paula", "Louis", "Ada", "Frank", "Martha", "Leo",
)  # fmt: skip
PLACES = (
    "bathroom", "hallway", "garden", "office", "bedroom", "kitchen", "park", "school", "cinema", "library", "cellar",
    "attic", "station", "market", "harbour", "church", "stable", "museum", "bakery", "theatre", "hospital", "forest",
    "tower", "bank",
)  # fmt: skip
MOVES = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
OTHER_MOVES = ("walked to", "ran to", "returned to", "is now in", "has gone to", "hurried to")
OWNERS = ("", *(f" of {name}" for name in NAMES), *(f" for the {place}" for place in PLACES))
KEYS = (
    "pass key",
    "secret number",
    "access code",
    "magic number",
    "password",
    "code word",
    "vault code",
    "lucky number",
)
KEY_FORM = "The {key} is {value}. Remember it. {value} is the {key}."
KEY_FORMS = (
    KEY_FORM,
    "The {key} is {value}.",
    "Remember that the {key} is {value}.",
    "Note well: {value} is the {key}.",
    "There is one thing to keep in mind, the {key}: {value}.",
    "Here is the {key}: {value}. Do not forget it.",
    "I was told that the {key} would be {value}.",
    "({key}: {value})",
)
KEY_QUESTION = "What is the {key}? The {key} is"
KEY_QUESTIONS = (KEY_QUESTION, "Question: what is the {key}? Answer:", "Now recall the {key}. It is", "The {key} was")
LOCATION_QUESTION = "Question: Where is {name}? Answer:"
LOCATION_QUESTIONS = (LOCATION_QUESTION, "Where is {name}? The", "Tell me where {name} is now: the")
PAIRS_BEGIN = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
PAIR_QUESTION = 'Key: "{key}"\nCorresponding value: "'
FEWEST_STATEMENTS, MOST_QUESTIONS = 8, 400
CHARACTERS = 48_000
"""Most characters of a quiz by default: fewer than 16,384 tokens of 3 characters or more."""
WORD = re.compile(r"\b\w{3,9}\b")


@dataclass(frozen=True)
class Quiz:
    """A text and its answers, each (start, end) in characters, in order."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass
class QuizWriter:
    """Puts a quiz together piece by piece."""

    pieces: list[str] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)
    length: int = 0

    def add(self, text: str, answer: bool = False) -> None:
        """Write on; `answer` marks the piece as what is asked for."""
        if answer:
            self.answers.append((self.length, self.length + len(text)))
        self.pieces.append(text)
        self.length += len(text)

    def wants_more(self, characters: int) -> bool:
        """Whether the text is shorter than `characters` and not full of questions, or asks nothing yet."""
        return not self.answers or (self.length < characters and len(self.answers) < MOST_QUESTIONS)

    def quiz(self) -> Quiz:
        """What was written."""
        return Quiz("".join(self.pieces), tuple(self.answers))


class Noise:
    """Passages of real text, from any place in it."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text.strip()]
        if not self._texts:
            raise DataError("no text to hide statements in")
        self._ends = list(accumulate(len(text) for text in self._texts))
        self.words = tuple(sorted(set(WORD.findall(" ".join(text[:20_000] for text in self._texts)[:400_000]))))
        if not self.words:
            raise DataError("no words in the text to hide statements in")

    def take(self, generator: random.Random, characters: int) -> str:
        """About that many characters in one piece, from a word's beginning to a word's end; longer texts come up more.

        Fewer, where the text ends before.
        """
        text = self._texts[bisect_left(self._ends, generator.randrange(1, self._ends[-1] + 1))]
        start = generator.randrange(max(1, len(text) - characters))
        start = text.find(" ", start) + 1
        end = text.rfind(" ", start, start + characters + 1)
        return text[start : end if end > start else start + characters].strip()


def quizzes(kind: str, noise: Noise, characters: int = CHARACTERS, seed: int = 1) -> Iterator[Quiz]:
    """Endless quizzes of one kind, of a sixteenth of `characters` to all of it, short ones as likely as long.

    The same arguments give the same quizzes.
    """
    make = QUIZZES[kind]
    number = 0
    while True:
        generator = random.Random(f"{kind} {seed} {number}")
        yield make(generator, noise, round(characters * 2.0 ** generator.uniform(-4, 0)))
        number += 1


def _gap(generator: random.Random, characters: int) -> Callable[[], int]:
    """Lengths of the passages between statements: about one mean within a quiz, of any size among quizzes."""
    mean = min(2.0 ** generator.uniform(4, 11), characters / FEWEST_STATEMENTS)
    return lambda: int(generator.expovariate(1 / mean))


def _passkeys(generator: random.Random, noise: Noise, characters: int) -> Quiz:
    """Numbers under different names; each is asked for anywhere after it was given, more than once."""
    writer, gap = QuizWriter(), _gap(generator, characters)
    known: dict[str, str] = {}
    alone = generator.random() < 0.3
    width = 10 ** generator.choice((4, 5, 5, 5, 6, 7))
    while writer.wants_more(characters):
        writer.add(noise.take(generator, gap()) + generator.choice((" ", "\n", " ", "\n\n")))
        if not known or (not alone and generator.random() < 0.4):
            key = generator.choice(KEYS) + ("" if alone else generator.choice(OWNERS))
            known[key] = known.get(key) or str(generator.randrange(width // 10, width))
            writer.add(generator.choice(KEY_FORMS).format(key=key, value=known[key]) + " ")
        else:
            key = generator.choice(list(known))
            writer.add(generator.choice(KEY_QUESTIONS).format(key=key))
            writer.add(f" {known[key]}", answer=True)
            writer.add(". ")
    return writer.quiz()


def _facts(generator: random.Random, noise: Noise, characters: int) -> Quiz:
    """People move from place to place; where one is now is asked for."""
    writer, gap = QuizWriter(), _gap(generator, characters)
    where: dict[str, str] = {}
    people = generator.sample(NAMES, generator.randint(2, 8)) if generator.random() < 0.5 else NAMES[:4]
    places = PLACES[:6] if generator.random() < 0.5 else generator.sample(PLACES, generator.randint(4, 12))
    moves = MOVES if generator.random() < 0.7 else (*MOVES, *OTHER_MOVES)
    asking = generator.choice((0.2, 0.4, 0.6))
    while writer.wants_more(characters):
        writer.add(noise.take(generator, gap()) + generator.choice((" ", "\n", " ", "\n\n")))
        if not where or generator.random() > asking:
            name = generator.choice(people)
            where[name] = generator.choice(places)
            writer.add(f"{name} {generator.choice(moves)} the {where[name]}. ")
        else:
            name = generator.choice(list(where))
            writer.add(generator.choice(LOCATION_QUESTIONS).format(name=name))
            writer.add(f" {where[name]}", answer=True)
            writer.add(". ")
    return writer.quiz()


def pairs_object(pairs: Iterable[tuple[str, str]]) -> str:
    """A JSON object, one pair a line."""
    return "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in pairs) + "}"


def identifier(generator: random.Random) -> str:
    """A random identifier as in RFC 9562."""
    digits = f"{generator.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _pairs(generator: random.Random, noise: Noise, characters: int) -> Quiz:
    """A JSON object of random identifiers, some of whose values are asked for at its end; a passage now and then."""
    writer = QuizWriter()
    count = max(3, min(140, characters // 120))
    keys = [identifier(generator) for _ in range(count)]
    values = {key: identifier(generator) for key in keys}
    if generator.random() < 0.5:
        writer.add(noise.take(generator, generator.randrange(1000)) + "\n\n")
    writer.add(f"{PAIRS_BEGIN}{pairs_object(values.items())}\n\n")
    for key in generator.sample(keys, min(count, 24)):
        writer.add(PAIR_QUESTION.format(key=key))
        writer.add(values[key], answer=True)
        writer.add('"\n')
        if generator.random() < 0.1:
            writer.add(noise.take(generator, generator.randrange(1000)) + "\n")
    return writer.quiz()


def _associations(generator: random.Random, noise: Noise, characters: int) -> Quiz:
    """Pairs of words, then the same keys in another order with their values to be named."""
    writer = QuizWriter()
    count = max(4, min(400, characters // 60))
    words = generator.choices(noise.words, k=count)
    table = {key: generator.choice(words) for key in words}
    arrow, end = generator.choice((" ->", ":", " =", " is")), generator.choice(("\n", "; ", ", "))
    for key, value in table.items():
        writer.add(f"{key}{arrow} {value}{end}")
    if generator.random() < 0.5:
        writer.add("\n" + noise.take(generator, generator.randrange(1, 4000)) + "\n")
    for key in generator.sample(list(table), len(table)):
        writer.add(f"{key}{arrow}")
        writer.add(f" {table[key]}", answer=True)
        writer.add(end)
    return writer.quiz()


QUIZZES: Mapping[str, Callable[[random.Random, Noise, int], Quiz]] = {
    "passkey": _passkeys,
    "facts": _facts,
    "pairs": _pairs,
    "associations": _associations,
}
"""What makes a quiz of each kind, of about so many characters."""
