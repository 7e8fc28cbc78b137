"""The trees that sentences are read into, before they become formulas."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Clause",
    "Conditional",
    "Denied",
    "Group",
    "Joined",
    "Kind",
    "Negated",
    "Nominal",
    "NounPhrase",
    "Property",
    "Relation",
    "Simple",
    "Tree",
    "VerbPhrase",
]


@dataclass(frozen=True)
class Nominal:
    """A noun with its adjectives and relative clauses. head: None for a thing or person of any kind."""

    head: str | None
    adjectives: tuple[str, ...] = ()
    joined: str = "and"
    clauses: tuple[VerbPhrase, ...] = ()
    human: bool = False


@dataclass(frozen=True)
class NounPhrase:
    """What a sentence speaks of.

    kind: name, the, every, no, some, a, bare, any, only, not every, pronoun, that, each other what; or and, or, xor,
    nor with parts. at: the index of its first word.
    """

    kind: str
    noun: Nominal | None = None
    name: str = ""
    plural: bool = False
    parts: tuple[NounPhrase, ...] = ()
    at: int = 0


@dataclass(frozen=True)
class Property:
    """A predicate of the subject alone, such as `is red` or `can fly`."""

    predicate: str


@dataclass(frozen=True)
class Kind:
    """The subject is of a kind: `is a bird`."""

    noun: Nominal


@dataclass(frozen=True)
class Relation:
    """A predicate of the subject and others: `chases the cat`. passive: the subject is the second argument."""

    predicate: str
    objects: tuple[NounPhrase, ...]
    passive: bool = False


@dataclass(frozen=True)
class Negated:
    """Not the part."""

    part: VerbPhrase


@dataclass(frozen=True)
class Joined:
    """Verb phrases of one subject, joined by and, or, xor."""

    operator: str
    parts: tuple[VerbPhrase, ...]


VerbPhrase = Property | Kind | Relation | Negated | Joined


@dataclass(frozen=True)
class Simple:
    """A subject and what is said of it; phrase None: that there is such a thing."""

    subject: NounPhrase
    phrase: VerbPhrase | None


@dataclass(frozen=True)
class Denied:
    """It is not so that the part holds."""

    part: Clause


@dataclass(frozen=True)
class Group:
    """Clauses joined by and, or, xor."""

    operator: str
    parts: tuple[Clause, ...]


@dataclass(frozen=True)
class Conditional:
    """If the body holds, so does the head; both: and the other way round; head_first: as written."""

    body: Clause
    head: Clause
    both: bool = False
    head_first: bool = False


Clause = Simple | Denied | Group | Conditional
Tree = Clause
