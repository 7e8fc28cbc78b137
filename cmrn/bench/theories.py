"""Reasoning problems of our own: invented words, many wordings, irregular plurals, distractors, any depth.

The answer comes from how a problem was made, never from a solver or from the text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["FAMILIES", "Problem", "problems"]


@dataclass(frozen=True)
class Problem:
    """A text with its question, the right answer, and the depth of the shortest proof."""

    text: str
    answer: str
    family: str
    depth: int


@dataclass(frozen=True)
class _Noun:
    one: str
    many: str


_ONSETS = ("bl", "gr", "tr", "fl", "kr", "pl", "sn", "v", "z", "m", "d", "w", "y", "th", "g", "n")
_NUCLEI = ("o", "i", "u", "ar", "im", "om", "ast", "el", "un", "onk")
_ENDINGS = (("pus", "puses"), ("pus", "pi"), ("k", "ks"), ("bix", "bices"), ("dum", "da"), ("lis", "les"),
            ("man", "men"), ("ch", "ches"), ("by", "bies"), ("ver", "vers"), ("sh", "shes"), ("ton", "tons"),
            ("lorf", "lorves"))  # fmt: skip
_REAL = (("mouse", "mice"), ("wolf", "wolves"), ("goose", "geese"), ("sheep", "sheep"), ("child", "children"),
         ("ox", "oxen"), ("deer", "deer"), ("thief", "thieves"), ("fox", "foxes"), ("fly", "flies"), ("woman", "women"),
         ("box turtle", "box turtles"), ("prime number", "prime numbers"), ("fish", "fish"),
         ("hero", "heroes"))  # fmt: skip
_NAMES = ("Max", "Zorra", "Bob", "Alice", "Fae", "Quentin", "Mirela", "Tovin", "James", "Iris")
_ADJECTIVE_ENDINGS = ("y", "ish", "al", "ic", "ous", "ent", "ing", "")


class _Words:
    """Draws words that have not been drawn before."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.taken: set[str] = set()

    def stem(self) -> str:
        return self.rng.choice(_ONSETS) + self.rng.choice(_NUCLEI)

    def noun(self) -> _Noun:
        while True:
            if self.rng.random() < 0.2:
                one, many = self.rng.choice(_REAL)
            else:
                stem = self.stem()
                end, ends = self.rng.choice(_ENDINGS)
                one, many = stem + end, stem + ends
            if not {one, many} & self.taken:
                self.taken |= {one, many}
                return _Noun(one, many)

    def adjective(self) -> str:
        while True:
            word = self.stem() + self.rng.choice("bdgklmnprt") + self.rng.choice(_ADJECTIVE_ENDINGS)
            if word not in self.taken and len(word) > 3:
                self.taken.add(word)
                return word


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _cap(text: str) -> str:
    return text[0].upper() + text[1:]


_POSITIVE: tuple[Callable[[_Noun, _Noun], str], ...] = (
    lambda a, b: f"Every {a.one} is {_a(b.one)}.",
    lambda a, b: f"Each {a.one} is {_a(b.one)}.",
    lambda a, b: f"All {a.many} are {b.many}.",
    lambda a, b: f"{_cap(a.many)} are {b.many}.",
    lambda a, b: f"{_cap(_a(a.one))} is {_a(b.one)}.",
    lambda a, b: f"If something is {_a(a.one)}, then it is {_a(b.one)}.",
    lambda a, b: f"Anything that is {_a(a.one)} is {_a(b.one)}.",
    lambda a, b: f"Everything that is {_a(a.one)} is also {_a(b.one)}.",
    lambda a, b: f"Whenever someone is {_a(a.one)}, they are {_a(b.one)}.",
    lambda a, b: f"Something is {_a(b.one)} if it is {_a(a.one)}.",
    lambda a, b: f"Only {b.many} are {a.many}.",
    lambda a, b: f"There is no {a.one} that is not {_a(b.one)}.",
)
_NEGATIVE: tuple[Callable[[_Noun, _Noun], str], ...] = (
    lambda a, b: f"No {a.one} is {_a(b.one)}.",
    lambda a, b: f"No {a.many} are {b.many}.",
    lambda a, b: f"{_cap(a.many)} are not {b.many}.",
    lambda a, b: f"If something is {_a(a.one)} then it is not {_a(b.one)}.",
    lambda a, b: f"Nothing that is {_a(a.one)} is {_a(b.one)}.",
)
_ASKED: tuple[Callable[[str, str], str], ...] = (
    lambda name, noun: f"Is {name} {_a(noun)}?",
    lambda name, noun: f"True or false: {name} is {_a(noun)}.",
    lambda name, noun: f"Is it true that {name} is {_a(noun)}?",
    lambda name, noun: f"Is the following statement true, false, or unknown? {name} is {_a(noun)}.",
)


def _finish(rng: random.Random, lines: list[str], question: str, answer: str, family: str, depth: int) -> Problem:
    rng.shuffle(lines)
    return Problem(" ".join([*lines, question]), answer, family, depth)


def _chain(rng: random.Random, depth: int) -> Problem:
    """A chain of kinds, with another chain as distractor; the question is true, false or undecided."""
    words = _Words(rng)
    kinds = [words.noun() for _ in range(depth + 1)]
    name = rng.choice(_NAMES)
    answer = rng.choice(("true", "false", "unknown"))
    lines = [f"{name} is {_a(kinds[0].one)}."]
    for at, (left, right) in enumerate(pairwise(kinds)):
        forms = _NEGATIVE if answer == "false" and at == depth - 1 else _POSITIVE
        if answer == "unknown" and at == depth - 1:
            left, right = right, left
        lines.append(rng.choice(forms)(left, right))
    others = [words.noun() for _ in range(3)]
    lines += [rng.choice(_POSITIVE)(others[0], others[1]), rng.choice(_POSITIVE)(others[1], others[2])]
    lines.append(rng.choice(_POSITIVE)(others[2], kinds[rng.randrange(depth)]))
    return _finish(rng, lines, rng.choice(_ASKED)(name, kinds[-1].one), answer, "chain", depth)


def _properties(rng: random.Random, depth: int) -> Problem:
    """A chain that ends in a property, conjunctions of two on the way."""
    words = _Words(rng)
    nouns = [words.noun() for _ in range(depth + 1)]
    first, last, side = words.adjective(), words.adjective(), words.adjective()
    name = rng.choice(_NAMES)
    positive = rng.random() < 0.5
    lines = [f"{name} is {_a(first)} {nouns[0].one}.", f"Every {nouns[0].one} is {side}."]
    for left, right in pairwise(nouns):
        form = rng.randrange(3)
        if form == 0:
            lines.append(f"If something is {_a(left.one)} and {first}, then it is {_a(right.one)}.")
        elif form == 1:
            lines.append(f"{_cap(left.many)} that are {first} are {right.many}.")
        else:
            lines.append(rng.choice(_POSITIVE)(left, right))
    lines.append(f"{'All' if positive else 'No'} {nouns[-1].many} are {last}.")
    asked = rng.random() < 0.5
    question = f"Is {name} {'' if asked else 'not '}{last}?"
    return _finish(rng, lines, question, "true" if asked == positive else "false", "properties", depth + 1)


def _cases(rng: random.Random, depth: int) -> Problem:
    """Proof by cases: one of two kinds, and both lead to a third."""
    words = _Words(rng)
    a, b, c, d = (words.noun() for _ in range(4))
    name = rng.choice(_NAMES)
    lines = [f"{name} is {rng.choice(('', 'either '))}{_a(a.one)} or {_a(b.one)}."]
    if rng.random() < 0.5:
        lines.append(f"Everything that is {_a(a.one)} or {_a(b.one)} is {_a(c.one)}.")
    else:
        lines += [rng.choice(_POSITIVE)(a, c), rng.choice(_POSITIVE)(b, c)]
    last = c
    for _ in range(depth - 1):
        new = words.noun()
        lines.append(rng.choice(_POSITIVE)(last, new))
        last = new
    lines.append(rng.choice(_POSITIVE)(d, a))
    return _finish(rng, lines, rng.choice(_ASKED)(name, last.one), "true", "cases", depth + 1)


def _elimination(rng: random.Random, depth: int) -> Problem:
    """One of two, and not the first; or neither of them."""
    words = _Words(rng)
    a, b, c = (words.noun() for _ in range(3))
    name, other = rng.sample(_NAMES, 2)
    if rng.random() < 0.5:
        lines = [f"{name} is {_a(a.one)} or {_a(b.one)}.", f"{name} is not {_a(a.one)}.", rng.choice(_POSITIVE)(b, c)]
        answer = "true"
    else:
        lines = [f"{name} is neither {_a(a.one)} nor {_a(b.one)}.", f"{other} is {_a(a.one)}.",
                 f"Only {a.many} are {c.many}."]  # fmt: skip
        answer = "false"
    return _finish(rng, lines, rng.choice(_ASKED)(name, c.one), answer, "elimination", 2)


def _contradiction(rng: random.Random, depth: int) -> Problem:
    """Proof by contradiction: what the individual lacks tells what it is not."""
    words = _Words(rng)
    kinds = [words.noun() for _ in range(depth + 1)]
    name = rng.choice(_NAMES)
    lines = [f"{name} is not {_a(kinds[-1].one)}."]
    lines += [rng.choice(_POSITIVE)(left, right) for left, right in pairwise(kinds)]
    return _finish(rng, lines, rng.choice(_ASKED)(name, kinds[0].one), "false", "contradiction", depth)


def _unless(rng: random.Random, depth: int) -> Problem:
    """Conditions that are said with unless, only if, if and only if."""
    words = _Words(rng)
    p, q = words.adjective(), words.adjective()
    one, two = rng.sample(_NAMES, 2)
    form = rng.randrange(3)
    if form == 0:
        lines, answer = [f"{one} is {p} unless {two} is {q}.", f"{two} is not {q}."], "true"
    elif form == 1:
        lines, answer = [f"{one} is {p} only if {two} is {q}.", f"{two} is not {q}."], "false"
    else:
        lines, answer = [f"{one} is {p} if and only if {two} is {q}.", f"{two} is {q}."], "true"
    return _finish(rng, lines, f"Is {one} {p}?", answer, "conditions", 1)


FAMILIES: dict[str, Callable[[random.Random, int], Problem]] = {
    "chain": _chain,
    "properties": _properties,
    "cases": _cases,
    "elimination": _elimination,
    "contradiction": _contradiction,
    "conditions": _unless,
}


def problems(seed: int, count: int, deepest: int = 25) -> list[Problem]:
    """As many problems of each family, of depths 1 to `deepest`; one seed gives one list."""
    rng = random.Random(seed)
    return [make(rng, 1 + at % deepest) for make in FAMILIES.values() for at in range(count)]
