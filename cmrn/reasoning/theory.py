"""What premises and questions mean: terms, formulas, theories and readings, all frozen.

A reading is one way to understand a text: its theory, its questions, what was not understood, and what was assumed.
Offsets count characters of the input.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

__all__ = [
    "And",
    "Atom",
    "Constant",
    "Exists",
    "ForAll",
    "Formula",
    "Iff",
    "Implies",
    "Literal",
    "Not",
    "NotUnderstood",
    "Or",
    "Question",
    "Reading",
    "Statement",
    "Term",
    "Theory",
    "Variable",
    "World",
    "Xor",
]

World = typing.Literal["open", "closed"]


@dataclass(frozen=True)
class Variable:
    """A place that a quantifier fills."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A named individual; two names are two individuals."""

    name: str


Term = Variable | Constant


@dataclass(frozen=True)
class Atom:
    """A predicate of terms, such as "can fly" of Tweety; the predicate's name is in lower case."""

    predicate: str
    arguments: tuple[Term, ...]


@dataclass(frozen=True)
class Literal:
    """An atom or its negation.

    >>> Literal(Atom("bird", (Constant("tweety"),))).negated().positive
    False
    """

    atom: Atom
    positive: bool = True

    def negated(self) -> Literal:
        """The opposite literal; twice is the same literal again."""
        return Literal(self.atom, not self.positive)


@dataclass(frozen=True)
class And:
    """Every part holds."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Or:
    """At least one part holds."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Xor:
    """Exactly one part holds."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Formula


@dataclass(frozen=True)
class Implies:
    """The head holds wherever the body does."""

    body: Formula
    head: Formula


@dataclass(frozen=True)
class Iff:
    """Both sides hold, or neither does."""

    left: Formula
    right: Formula


@dataclass(frozen=True)
class ForAll:
    """The part holds of every individual."""

    variables: tuple[Variable, ...]
    part: Formula


@dataclass(frozen=True)
class Exists:
    """The part holds of some individual, named or not."""

    variables: tuple[Variable, ...]
    part: Formula


Formula = Literal | And | Or | Xor | Not | Implies | Iff | ForAll | Exists


@dataclass(frozen=True)
class Statement:
    """A premise: its id ("P1", "P2", …), what it says, its text, where that stands, and its degree in [0, 1]."""

    id: str
    formula: Formula
    text: str
    start: int
    end: int
    kind: typing.Literal["fact", "rule"]
    degree: float = 1.0


@dataclass(frozen=True)
class Question:
    """What is asked: whether a formula holds, which option does, which value, or what follows about a premise.

    `options` pairs each option's text with its formula; `about` is the id of the premise that a meta question is about.
    """

    kind: typing.Literal["truth", "choice", "value", "meta"]
    text: str
    start: int
    end: int
    formula: Formula | None
    options: tuple[tuple[str, Formula], ...] = ()
    about: str | None = None


@dataclass(frozen=True)
class NotUnderstood:
    """A sentence that was not understood: its text and place, the word where reading stopped, and a nearest form.

    sentence: which of the text it is, counted from 1; 0 for a part of one.
    """

    text: str
    start: int
    end: int
    at: str
    hint: str
    sentence: int = 0


@dataclass(frozen=True)
class Theory:
    """The premises, and whether what they leave out is false (closed) or unknown (open)."""

    statements: tuple[Statement, ...]
    world: World


@dataclass(frozen=True)
class Reading:
    """One way to understand a text."""

    theory: Theory
    questions: tuple[Question, ...]
    not_understood: tuple[NotUnderstood, ...]
    assumptions: tuple[str, ...]
