"""Verb phrases: what is said of a subject.

    vp         = part (("," | and | or | but) part)* | either part or part | neither part nor part | both part and part
    part       = BE [not] complements | (do|does|did) not verb | MODAL [not] verb | never verb | verb
    complement = a nominal | plural nominal | ADJ [PREPOSITION np] | ADJ-er than np | more ADJ than np
               | PREPOSITION np | PARTICIPLE by np | the NOUN of np | NAME 's NOUN | not complement
    verb       = VERB [ADVERB] [np] [PREPOSITION np] | VERB PREPOSITION np

Predicates: "bird" of a kind, "is red", "can fly", "does fly" of a verb without object, "chases" of one with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from cmrn.reasoning.lexicon import (
    IRREGULAR_VERBS,
    MODALS,
    PREPOSITIONS,
    is_plural_form,
    third_person,
    verb_bases,
    word_set,
)
from cmrn.reasoning.loose_words import is_participle, lemma
from cmrn.reasoning.phrases import Parses, Phrases
from cmrn.reasoning.syntax import Joined, Kind, Negated, NounPhrase, Property, Relation, VerbPhrase
from cmrn.reasoning.vocabulary import DUMMIES

__all__ = ["VerbPhrases", "negate", "past"]

T = TypeVar("T")
_PAST = word_set("had did went ate saw knew took gave made won lost wrote found left ran came bought sold told met led "
                  "built taught caught held kept felt")  # fmt: skip
_ADVERBS = ("always", "also", "both")


def negate(phrase: VerbPhrase, positive: bool = False) -> VerbPhrase:
    """The phrase denied, or itself where `positive`."""
    return phrase if positive else Negated(phrase)


class VerbPhrases(Phrases):
    """Reads verb phrases, and through them whole predicates."""

    def verb_phrase(self, at: int, plural: bool | None) -> Parses[VerbPhrase]:
        """One verb phrase or several of one subject; the longest first."""
        return self.coordinated(at, lambda here: self.part(here, plural))

    def coordinated(self, at: int, item: Callable[[int], Parses[VerbPhrase]]) -> Parses[VerbPhrase]:
        """Items joined by `and`, `or`, `but`, `either … or`, `neither … nor`; both groupings where they are mixed."""
        first = self.word(at)
        found: Parses[VerbPhrase] = []
        if first in ("either", "neither", "both"):
            last = {"either": "or", "neither": "nor", "both": "and"}[first]
            return [(node, end) for node, end in self._framed(at + 1, item, first, last)]
        for part, end in item(at):
            found += self._chain(end, item, ((None, part),))
            found.append((part, end))
        return found

    def _framed(self, at: int, item: Callable[[int], Parses[VerbPhrase]], first: str, last: str) -> Parses[VerbPhrase]:
        found: Parses[VerbPhrase] = []
        pending: list[tuple[tuple[VerbPhrase, ...], int]] = [((part,), end) for part, end in item(at)]
        if first == "either":
            pending = [((part,), end) for part, end in self._inner(at, item)]
        while pending:
            parts, here = pending.pop(0)
            comma = self.word(here) == ","
            joint = here + comma
            if self.word(joint) == last:
                for part, end in item(joint + 1):
                    whole = (*parts, part)
                    if first == "neither":
                        found.append((Joined("and", tuple(Negated(one) for one in whole)), end))
                    elif first == "both":
                        found.append((Joined("and", whole), end))
                    else:
                        found.append(self._not_both(Joined("xor", whole), end))
            elif comma:
                pending += [((*parts, part), end) for part, end in item(here + 1)]
        return found

    def _inner(self, at: int, item: Callable[[int], Parses[VerbPhrase]]) -> Parses[VerbPhrase]:
        """An item, or several joined by `and`, between `either` and `or`."""
        found: Parses[VerbPhrase] = []
        for part, end in item(at):
            if self.word(end) == "and":
                found += [(Joined("and", (part, other)), stop) for other, stop in item(end + 1)]
            found.append((part, end))
        return found

    def _not_both(self, phrase: VerbPhrase, at: int) -> tuple[VerbPhrase, int]:
        """`or … but not both` is exactly one, `or both` at least one."""
        if not isinstance(phrase, Joined) or phrase.operator == "and":
            return phrase, at
        words = [self.word(here) for here in range(at, at + 4)]
        if words == [",", "but", "not", "both"]:
            return Joined("xor", phrase.parts), at + 4
        if words[:3] == ["but", "not", "both"]:
            return Joined("xor", phrase.parts), at + 3
        if words[:3] == [",", "or", "both"]:
            return Joined("or", phrase.parts), at + 3
        if words[:2] == ["or", "both"]:
            return Joined("or", phrase.parts), at + 2
        return phrase, at

    def _chain(
        self,
        at: int,
        item: Callable[[int], Parses[VerbPhrase]],
        sofar: tuple[tuple[str | None, VerbPhrase], ...],
    ) -> Parses[VerbPhrase]:
        """The items joined to those so far; an operator None is a comma, which takes the last operator's place."""
        comma = self.word(at) == ","
        joint = at + comma
        word = self.word(joint)
        operator = {"and": "and", "or": "or", "but": "and"}.get(word)
        start = joint + 1 if operator else joint
        if not (operator or comma):
            return []
        if word == "and" and self.word(start) == "also":
            start += 1
        found: Parses[VerbPhrase] = []
        for part, end in item(start):
            chain = (*sofar, (operator, part))
            found += self._chain(end, item, chain)
            if operator:
                found += [self._not_both(node, end) for node in _grouped(chain)]
        return found

    def part(self, at: int, plural: bool | None) -> Parses[VerbPhrase]:
        """One verb phrase that is not itself joined, but for the complements of one `is`."""
        word = self.word(at)
        if word in _ADVERBS[:2]:
            return self.part(at + 1, plural)
        if word in ("is", "was", "am", "are", "were"):
            if plural is not None and plural != (word in ("are", "were")):
                return []
            return self.after_be(at + 1, plural if plural is not None else word in ("are", "were"))
        if word in ("does", "do", "did"):
            agrees = word == "did" or plural is None or plural == (word == "do")
            if agrees and self.word(at + 1) == "not":
                return [
                    (Negated(phrase), end) for phrase, end in self.verb(at + 2, past if word == "did" else third_person)
                ]
            return []
        if word in MODALS:
            return self.after_modal(at + 1, word)
        if word == "never":
            return [(Negated(phrase), end) for phrase, end in self.finite(at + 1, plural)]
        return self.finite(at, plural)

    def after_modal(self, at: int, modal: str) -> Parses[VerbPhrase]:
        """`can [not] fly`."""
        denied = self.word(at) in ("not", "never")
        here = at + denied
        if self.word(here) == "be":
            return []
        return [(negate(phrase, not denied), end) for phrase, end in self.verb(here, lambda base: f"{modal} {base}")]

    def after_be(self, at: int, plural: bool) -> Parses[VerbPhrase]:
        """`[not] complement`, joined ones included; `not` before `either` or a list of them denies the whole."""
        while self.word(at) in _ADVERBS[:2]:
            at += 1
        if self.word(at) in ("not", "never"):
            here = at + 1
            if self.word(here) in ("both", "either"):
                return [
                    (_deny_framed(node), end)
                    for node, end in self.coordinated(here, lambda k: self.complement(k, plural))
                ]
            found: Parses[VerbPhrase] = []
            for part, end in self.complement(here, plural):
                alone: VerbPhrase = Negated(part)
                found += (
                    self._chain(end, lambda k: self.complement(k, plural), ((None, alone),)) if self._turns(end) else []
                )
                if self.word(end) == "or":
                    found += [
                        (Joined("and", (alone, Negated(other))), stop)
                        for other, stop in self.complement(end + 1, plural)
                    ]
                found.append((alone, end))
            return found
        return self.coordinated(at, lambda here: self.complement(here, plural))

    def _turns(self, at: int) -> bool:
        """Whether what follows a denied complement is one that is not itself denied: `not red but kind`."""
        comma = self.word(at) == ","
        word, after = self.word(at + comma), self.word(at + comma + 1)
        return word == "but" or (word == "and" and after == "not")

    def complement(self, at: int, plural: bool) -> Parses[VerbPhrase]:
        """What follows `is`."""
        word = self.word(at)
        if word in ("not", "never"):
            return [(Negated(part), end) for part, end in self.complement(at + 1, plural)]
        if word in ("a", "an"):
            return [(Kind(noun), end) for noun, end in self.nominal(at + 1, False)]
        if word == "the":
            return self._relational(at)
        if word in PREPOSITIONS and self.word(at + 1) == "the" and self.is_open(at + 2) and self.word(at + 3) == "of":
            name = f"is {word} the {self.word(at + 2)} of"
            return [(Relation(name, (place,)), end) for place, end in self.single(at + 4)]
        if word in PREPOSITIONS and word != "by":
            return [(Relation(f"is {word}", (place,)), end) for place, end in self.single(at + 1)]
        if word in ("more", "less") and self.is_open(at + 1) and self.word(at + 2) == "than":
            name = f"is {word} {self.word(at + 1)} than"
            return [(Relation(name, (other,)), end) for other, end in self.single(at + 3)]
        if not self.is_open(at):
            return []
        return self._possessed(at) + self._nominal_complement(at, plural) + self._adjectival(at)

    def _nominal_complement(self, at: int, plural: bool) -> Parses[VerbPhrase]:
        if plural:
            return [(Kind(noun), end) for noun, end in self.nominal(at, True)]
        word = self.word(at)
        if word in self.vocabulary.nouns and word not in self.vocabulary.adjectives and not self.is_open(at + 1):
            return [(Kind(noun), end) for noun, end in self.nominal(at, False) if end == at + 1]
        return []

    def _adjectival(self, at: int) -> Parses[VerbPhrase]:
        """An adjective, with adverbs before it, and what it is of: `afraid of wolves`, `taller than Bob`."""
        here = at
        while self.word(here) in ("very", "quite", "really", "too") or (
            self.word(here).endswith("ly") and self.is_open(here + 1)
        ):
            here += 1
        word = self.word(here)
        if not self.is_open(here) or (
            is_plural_form(word, self.vocabulary.seen) and word not in self.vocabulary.adjectives
        ):
            return []
        if (
            word in self.vocabulary.plurals
            or word in DUMMIES
            or self.is_open(here + 1)
            or word in self.vocabulary.nouns - self.vocabulary.adjectives
        ):
            return []
        if not self.tokens[here].text[0].islower() and not word.endswith(("an", "ish", "ese", "ic", "ch")):
            return []
        name = "is " + " ".join(self.word(k) for k in range(at, here + 1))
        after = self.word(here + 1)
        found: Parses[VerbPhrase] = []
        if after == "than" and word.endswith("er"):
            return [(Relation(f"{name} than", (other,)), end) for other, end in self.single(here + 2)]
        if after == "by":
            return [(Relation(f"{name} by", (other,)), end) for other, end in self.single(here + 2)]
        if after in PREPOSITIONS:
            found += [(Relation(f"{name} {after}", (other,)), end) for other, end in self.single(here + 2)]
        found.append((Property(name), here + 1))
        return found

    def _relational(self, at: int) -> Parses[VerbPhrase]:
        """`the father of Bob`."""
        end = at + 1
        while self.is_open(end):
            end += 1
        if end == at + 1 or self.word(end) != "of":
            return []
        name = "is the " + " ".join(self.word(k) for k in range(at + 1, end)) + " of"
        return [(Relation(name, (other,)), stop) for other, stop in self.single(end + 1)]

    def _possessed(self, at: int) -> Parses[VerbPhrase]:
        """`Bob's father`."""
        found: Parses[VerbPhrase] = []
        for owner, end in self._name(at):
            if self.word(end) in ("'s", "’s") and self.is_open(end + 1) and not self.is_open(end + 2):
                found.append((Relation(f"is the {self.word(end + 1)} of", (owner,)), end + 2))
        return found

    def finite(self, at: int, plural: bool | None) -> Parses[VerbPhrase]:
        """A verb that shows its subject's number or the past."""
        if self._is_past(at):
            base = self.word(at)
            return self._objects(at + 1, base, f"does {base}") if not self.word(at).endswith("s") else []
        if plural is None:
            return self.finite(at, True) + self.finite(at, False)
        if plural:
            return self.verb(at, third_person) if not self._is_third(at) else []
        if self.vocabulary.singular(self.word(at)) in self.vocabulary.nouns:
            return []
        return [pair for base in self._bases(at)[:1] for pair in self._tail(at + 1, base, third_person)]

    def _is_past(self, at: int) -> bool:
        word = self.word(at)
        return (
            self.is_open(at) and (word in _PAST or (len(word) > 4 and word.endswith("ed") and word[-3:] != "eed"))
        ) or word == "had"

    def _is_third(self, at: int) -> bool:
        """Whether a word can only be the third person: the passage has its base, or its form is special."""
        word = self.word(at)
        return word in IRREGULAR_VERBS or any(base in self.vocabulary.seen for base in verb_bases(word))

    def _bases(self, at: int) -> tuple[str, ...]:
        word = self.word(at)
        if word == "has":
            return ("have",)
        return verb_bases(word, self.vocabulary.seen) if self.is_open(at) else ()

    def verb(self, at: int, name: Callable[[str], str]) -> Parses[VerbPhrase]:
        """A verb in its base form and what follows it."""
        word = self.word(at)
        if word not in ("have", "do") and not (self.is_open(at) and self.tokens[at].text[0].islower()):
            return []
        if self._is_adverb(at) or self.vocabulary.is_adjective(word) or is_plural_form(word, self.vocabulary.seen):
            return []
        return self._tail(at + 1, word, name)

    def _tail(self, at: int, base: str, name: Callable[[str], str]) -> Parses[VerbPhrase]:
        binary = name(base)
        alone = binary if binary.partition(" ")[0] in MODALS else f"does {binary if name is past else base}"
        return self._objects(at, binary, alone)

    def _objects(self, at: int, binary: str, unary: str) -> Parses[VerbPhrase]:
        """The verb with an object, with a preposition and its object, with both, or alone."""
        found: Parses[VerbPhrase] = []
        word = self.word(at)
        if self._is_adverb(at) and not self.is_open(at + 1):
            return self._objects(at + 1, f"{binary} {word}", f"{unary} {word}")
        if word in PREPOSITIONS:
            found += [(Relation(f"{binary} {word}", (other,)), end) for other, end in self.single(at + 1)]
        else:
            for first, end in self.object(at):
                preposition = self.word(end)
                if preposition in PREPOSITIONS and first.kind not in ("and", "or", "nor", "xor"):
                    found += [
                        (Relation(f"{binary} _ {preposition}", (first, other)), stop)
                        for other, stop in self.single(end + 1)
                    ]
                found.append((Relation(binary, (first,)), end))
        found.append((Property(unary), at))
        return found

    def _is_adverb(self, at: int) -> bool:
        word = self.word(at)
        if not (self.is_open(at) and word.endswith("ly") and len(word) > 4 and self.tokens[at].text[0].islower()):
            return False
        return word not in self.vocabulary.nouns and word not in self.vocabulary.names

    def object(self, at: int) -> Parses[NounPhrase]:
        """A noun phrase where a verb takes one; a bare word there names what it says."""
        return self.noun_phrase(at)

    def reduced(self, at: int) -> Parses[VerbPhrase]:
        """What a participle behind a noun says of it: `born in Germany`, `living in Paris`, `owned by Bob`."""
        word = self.word(at)
        if not is_participle(word) or not self.is_open(at) or self.word(at + 1) not in PREPOSITIONS:
            return []
        if word.endswith("ing"):
            return [(p, end) for p, end in self._tail(at + 1, lemma(word), third_person) if isinstance(p, Relation)]
        return [(phrase, end) for phrase, end in self._adjectival(at) if isinstance(phrase, Relation)]

    def transitive(self, at: int, plural: bool | None) -> Parses[Callable[[NounPhrase], VerbPhrase]]:
        """`likes` in `who Bob likes`."""
        bases = (self.word(at),) if plural and self.is_open(at) else self._bases(at)[:1]

        def clause(base: str) -> Callable[[NounPhrase], VerbPhrase]:
            return lambda subject: Relation(third_person(base), (subject,), passive=True)

        return [(clause(base), at + 1) for base in bases]


def past(base: str) -> str:
    """The regular past of a verb, or its irregular one."""
    for form, of in IRREGULAR_VERBS.items():
        if of == base and form in _PAST:
            return form
    if base.endswith("e"):
        return base + "d"
    if re.fullmatch(r"[^aeiou]+[aeiou][^aeiouwxy]", base):
        return base + base[-1] + "ed"
    return base[:-1] + "ied" if base.endswith("y") and base[-2:-1] not in "aeiou" else base + "ed"


def _deny_framed(node: VerbPhrase) -> VerbPhrase:
    """`not either a or b` is neither; `not both a and b` denies that they hold together."""
    if isinstance(node, Joined) and node.operator == "xor":
        return Joined("and", tuple(Negated(part) for part in node.parts))
    return Negated(node)


def _grouped(chain: tuple[tuple[str | None, VerbPhrase], ...]) -> list[VerbPhrase]:
    """The chain as trees: one where its operators agree; else with `and` the tighter, then with `or` the tighter."""
    operators: list[str] = []
    for operator, _ in reversed(chain[1:]):
        operators.insert(0, operator or (operators[0] if operators else "and"))
    parts = [part for _, part in chain]
    if len(set(operators)) == 1:
        return [Joined(operators[0], tuple(parts))]
    return [_tightest(parts, operators, "and"), _tightest(parts, operators, "or")]


def _tightest(parts: list[VerbPhrase], operators: list[str], tight: str) -> VerbPhrase:
    groups = [[parts[0]]]
    for operator, part in zip(operators, parts[1:], strict=True):
        if operator == tight:
            groups[-1].append(part)
        else:
            groups.append([part])
    made = tuple(group[0] if len(group) == 1 else Joined(tight, tuple(group)) for group in groups)
    return Joined("or" if tight == "and" else "and", made)
