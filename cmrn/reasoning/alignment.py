"""Rules between phrases that say the same or nearly so, each visible and with a degree; phrases are never merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cmrn.reasoning.lexicon import PREPOSITIONS, word_set
from cmrn.reasoning.likeness import Likeness
from cmrn.reasoning.loose_phrases import X
from cmrn.reasoning.loose_words import VERBS, Words, lemma
from cmrn.reasoning.theory import Atom, Constant, ForAll, Formula, Iff, Implies, Literal

__all__ = ["Bridge", "bridges"]

SAME, NARROWER = 0.9, 0.8
LEAST_LIKENESS = 0.6
MOST_PHRASES = 150
_OPPOSING = word_set("without before after above below over under inside outside against behind during")
_LIGHT = (PREPOSITIONS - _OPPOSING) | word_set("often regularly currently once more any every other only can own")
_WAYS = frozenset({"to", "from"})
_TURNING = word_set("not no non never without fake former alleged only unless")
_TELLING = word_set("in on of by from with for at than")
_MODAL = word_set("have can must should do")


@dataclass(frozen=True)
class Bridge:
    """A soft rule between two phrases, in words and as a formula."""

    formula: Formula
    text: str
    degree: float


def bridges(
    phrases: Mapping[str, Words], domains: frozenset[str], names: frozenset[Constant], likeness: Likeness | None = None
) -> Iterator[Bridge]:
    """The rules between a passage's phrases: predicates with their words, nouns that all spoken of are, and its names.

    Two phrases say the same where they differ only in order, in light words such as `often` and `into`, or in a noun
    that says what the passage is about. A longer one says what a shorter one does of which it has every word, with the
    same verb, or the same first or last word of a noun. `V by A` of B is `V B` of A. Other pairs are taken for
    the same where the learned likeness is high enough, with its degree. There are none in long passages.
    """
    if len(phrases) > MOST_PHRASES:
        return
    for one, left in phrases.items():
        yield from _turned(one, left, phrases, names)
        for two, right in phrases.items():
            different = set(left) ^ set(right)
            if (
                one == two
                or different >= _WAYS
                or different == {"from"}
                or (different & _TURNING and different - _LIGHT)
            ):
                continue
            if different <= _LIGHT | (domains if set(right) < set(left) else set()):
                if one < two or different & domains:
                    formula: Formula = Iff(Literal(Atom(one, (X,))), Literal(Atom(two, (X,))))
                    yield Bridge(ForAll((X,), formula), f"“{_text(left)}” is as good as “{_text(right)}”", SAME)
            elif set(right) < set(left) and _is_narrower(left, right):
                formula = Implies(Literal(Atom(one, (X,))), Literal(Atom(two, (X,))))
                yield Bridge(ForAll((X,), formula), f"what is “{_text(left)}” is “{_text(right)}”", NARROWER)
            elif likeness is not None and one < two and not _is_wider(left, right):
                yield from _alike(one, two, left, right, likeness)


def _is_wider(left: Words, right: Words) -> bool:
    """Whether the rule between the two runs from the second to the first only."""
    return set(left) < set(right) and _is_narrower(right, left)


def _apart(different: set[str]) -> bool:
    """Whether what only one of two phrases has turns its sense: a `not`, or `from` where the other's `to` may be."""
    if different >= _WAYS or different == {"from"}:
        return True
    return bool(different & _TURNING and different - _LIGHT)


def _alike(one: str, two: str, left: Words, right: Words, likeness: Likeness) -> Iterator[Bridge]:
    """The rule that two phrases say the same, where the likeness learned is high enough."""
    if not set(left) & set(right) or set(left) == set(right):
        return
    degree = likeness.degree(left, right)
    if degree >= LEAST_LIKENESS:
        formula = Iff(Literal(Atom(one, (X,))), Literal(Atom(two, (X,))))
        yield Bridge(ForAll((X,), formula), f"“{_text(left)}” is taken for “{_text(right)}”", round(degree, 2))


def _is_narrower(left: Words, right: Words) -> bool:
    """Whether leaving words out of a phrase makes it more general."""
    if _is_verb(left[0]):
        return left[0] == right[0]
    alike = left[-1] == right[-1] or left[0] == right[0]
    return alike and not _is_verb(right[0]) and not set(left) & _TELLING


def _is_verb(word: str) -> bool:
    return word in VERBS or word in _MODAL


def _turned(one: str, left: Words, phrases: Mapping[str, Words], names: frozenset[Constant]) -> Iterator[Bridge]:
    """`produce by paramount` of a film and `produce tintin` of a company, where both are named."""
    if "by" not in left[1:-1]:
        return
    at = left.index("by")
    known = {words: name for name in names for words in (_words(name), tuple(lemma(word) for word in _words(name)))}
    doer = known.get(left[at + 1 :])
    for two, right in phrases.items():
        done = known.get(right[at:])
        if doer is not None and done is not None and right[:at] == left[:at]:
            formula = Iff(Literal(Atom(one, (done,))), Literal(Atom(two, (doer,))))
            yield Bridge(formula, f"“{_text(left)}” of {done.name} is “{_text(right)}” of {doer.name}", SAME)


def _words(name: Constant) -> Words:
    return tuple(name.name.split())


def _text(words: Words) -> str:
    return " ".join(words)
