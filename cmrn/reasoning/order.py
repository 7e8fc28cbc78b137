"""Puzzles of a fixed order: "there are five birds: …", who is left of whom, second-newest, last.

Every thing has one place and every place one thing; places count from the left, the first, the newest, the dearest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cmrn.reasoning.segment import Token
from cmrn.reasoning.theory import And, Atom, Constant, Formula, Implies, Literal, Or, Xor

__all__ = ["Order", "find_order"]

_COUNT = {
    word: count
    for count, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 2)
}
_ORDINAL = {word: count for count, word in enumerate(
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"], 1)}  # fmt: skip
# Each scale with the words of its two ends: places count from the first end.
_SCALES = {
    "left": ("side", 1), "right": ("side", -1), "new": ("age", 1), "old": ("age", -1), "young": ("age", 1),
    "expensive": ("price", 1), "cheap": ("price", -1), "tall": ("height", 1), "short": ("height", -1),
    "heavy": ("weight", 1), "light": ("weight", -1), "fast": ("speed", 1), "slow": ("speed", -1), "big": ("size", 1),
    "large": ("size", 1), "small": ("size", -1), "high": ("level", 1), "low": ("level", -1), "early": ("time", 1),
    "late": ("time", -1), "above": ("rank", 1), "below": ("rank", -1), "ahead": ("rank", 1), "behind": ("rank", -1),
    "before": ("rank", 1), "after": ("rank", -1), "finish": ("rank", 1), "first": ("rank", 1), "last": ("rank", -1),
}  # fmt: skip
_INTRO = re.compile(r"\b(two|three|four|five|six|seven|eight|nine|ten|\d+) ((?:\w+ )*\w+) ?: (.+)$")
_IS = r"(?:is|are|was|were)"
_FINISH = r"(?:finish|finishes|finished|came|placed|ranked)(?: in)?"
_FORMS = (
    ("end", re.compile(rf"{_IS} the (left|right)most$")),
    ("from", re.compile(rf"{_IS} (?:the )?(\w+) from the (left|right)$")),
    (
        "rank",
        re.compile(
            rf"{_FINISH} (?:the )?(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)(?: place)?$"
        ),
    ),
    ("last", re.compile(rf"{_FINISH} (?:the )?(?:(\w+)-to-)?last(?: place)?$")),
    ("superlative", re.compile(rf"{_IS} the (?:(\w+)[- ])?(?:(most|least) ([\w-]+)|(\w+)est)$")),
    ("beside", re.compile(rf"{_IS} (?:somewhere )?to the (left|right) of @$")),
    ("ranked", re.compile(rf"(?:{_FINISH}|{_IS}) (above|below|before|after|ahead of|behind) @$")),
    ("comparative", re.compile(rf"{_IS} (?:(more|less) ([\w-]+)|(\w+)er) than @$")),
)


@dataclass(frozen=True)
class Order:
    """The things of one puzzle, as they are mentioned, and the sentence that listed them."""

    things: tuple[str, ...]
    scales: tuple[str, ...] = ()

    def everywhere(self) -> Formula:
        """Every thing has exactly one place, and every place exactly one thing."""
        size = range(1, len(self.things) + 1)
        placed = [Xor(tuple(self.at(thing, place) for place in size)) for thing in self.things]
        filled = [Xor(tuple(self.at(thing, place) for thing in self.things)) for place in size]
        return And((*placed, *filled))

    def at(self, thing: str, place: int) -> Literal:
        """That a thing has a place."""
        return Literal(Atom(f"is at place {place}", (Constant(thing),)))

    def before(self, first: str, second: str) -> Formula:
        """That one thing's place comes before another's."""
        size = len(self.things)
        parts: list[Formula] = [self.at(first, size).negated(), self.at(second, 1).negated()]
        for place in range(1, size):
            later = tuple(self.at(second, other) for other in range(place + 1, size + 1))
            parts.append(Implies(self.at(first, place), later[0] if len(later) == 1 else Or(later)))
        return And(tuple(parts))

    def read(self, tokens: Sequence[Token]) -> tuple[Formula, str] | None:
        """The formula of a sentence about the order and its scale; None where it is about something else."""
        text, found = self._mentions(" ".join(token.lower for token in tokens))
        if not found or not text.startswith("@ "):
            return None
        for kind, form in _FORMS:
            match = form.match(text[2:])
            if match and len(found) == text.count("@"):
                return self._formula(kind, match, found)
        return None

    def _mentions(self, text: str) -> tuple[str, list[str]]:
        """The text with `@` for each thing, and the things in order."""
        found: list[str] = []
        ways = {}
        for thing in self.things:
            low = thing.lower()
            ways[low] = thing
            ways.setdefault(low.removeprefix("the "), thing)
        pattern = re.compile(r"(?:\bthe )?\b(" + "|".join(re.escape(way.removeprefix("the ")) for way in sorted(
            ways, key=len, reverse=True)) + r")\b(?!-)")  # fmt: skip

        def mark(match: re.Match[str]) -> str:
            found.append(ways.get(match[1], ways.get("the " + match[1], match[1])))
            return "@"

        return pattern.sub(mark, text), found

    def _formula(self, kind: str, match: re.Match[str], found: list[str]) -> tuple[Formula, str] | None:
        size = len(self.things)
        if kind in ("end", "from", "rank", "last", "superlative"):
            located = _place(kind, match, size)
            if located is None or len(found) != 1:
                return None
            place, scale = located
            return (self.at(found[0], place), scale) if 1 <= place <= size else None
        if len(found) != 2 or found[0] == found[1]:
            return None
        if kind == "comparative":
            scale, direction = _scale(match[2] or match[3], match[1])
        else:
            scale, direction = _SCALES[match[1].split()[0]]
        first, second = found if direction > 0 else found[::-1]
        return self.before(first, second), scale


def _place(kind: str, match: re.Match[str], size: int) -> tuple[int, str] | None:
    """The place a form names, counted from the scale's first end."""
    if kind == "end":
        return (1 if match[1] == "left" else size), "side"
    if kind == "from":
        count = _ORDINAL.get(match[1], 0)
        return (count if match[2] == "left" else size + 1 - count), "side"
    if kind == "rank":
        return _ORDINAL[match[1]], "rank"
    count = _ORDINAL.get(match[1], 0) if match[1] else 1
    if count == 0:
        return None
    if kind == "last":
        return size + 1 - count, "rank"
    scale, direction = _scale(match[3] or match[4], match[2])
    return (count if direction > 0 else size + 1 - count), scale


def _scale(word: str, amount: str | None) -> tuple[str, int]:
    """The scale of an adjective, which may have lost its last letters before -er or -est, and its direction."""
    stems = [word, word + "e", re.sub(r"(.)\1$", r"\1", word), re.sub(r"i$", "y", word)]
    scale, direction = next((_SCALES[stem] for stem in stems if stem in _SCALES), (word, 1))
    return scale, -direction if amount in ("less", "least") else direction


def find_order(tokens: Sequence[Token]) -> Order | None:
    """The puzzle a sentence opens by listing its things; None where it does not."""
    text = " ".join(token.lower for token in tokens)
    match = _INTRO.search(text)
    if match is None:
        return None
    count = _COUNT.get(match[1]) or (int(match[1]) if match[1].isdigit() else None)
    colon = max(index for index, token in enumerate(tokens) if token.lower == ":")
    things: list[list[Token]] = [[]]
    for token in tokens[colon + 1 :]:
        if token.lower == ",":
            things.append([])
        elif token.lower == "and" and not things[-1]:
            continue
        elif token.lower == "and":
            things.append([])
        else:
            things[-1].append(token)
    if any(not words for words in things) or count != len(things):
        return None
    names = tuple(_thing(words) for words in things)
    return Order(names) if len(set(names)) == len(names) else None


def _thing(words: Sequence[Token]) -> str:
    if words[0].lower in ("a", "an", "the"):
        return " ".join(["the", *(token.lower for token in words[1:])])
    return " ".join(token.text for token in words)
