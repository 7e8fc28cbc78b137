"""Whole sentences: statements and what joins them.

sentence = if S [","] [then] S | S if S | S only if S | S (if and only if | iff) S | unless S "," S | S unless S
         | either S or S | it is [not] (true|false|the case) that S | S [","] (and|or|but) S | simple
simple   = there (is|are) np | np vp
"""

from __future__ import annotations

from cmrn.reasoning.phrases import Parses
from cmrn.reasoning.syntax import Clause, Conditional, Denied, Group, Negated, NounPhrase, Simple, VerbPhrase
from cmrn.reasoning.verbs import VerbPhrases

__all__ = ["Clauses"]

_OPENERS = ("also", "therefore", "thus", "hence", "so", "however", "furthermore", "moreover", "finally", "and", "but",
            "then")  # fmt: skip
_IF = ("if", "when", "whenever")
_ALL = ("all", "everyone", "everybody", "everything")


class Clauses(VerbPhrases):
    """Reads the sentences of a passage."""

    def sentence(self, at: int = 0) -> list[Clause]:
        """Every reading of the words from `at` to the end, the preferred first."""
        while self.word(at) in _OPENERS and at + 1 < len(self.tokens):
            at += 1
            if self.word(at) == ",":
                at += 1
        return list(dict.fromkeys(tree for tree, end in self.clause(at) if self._done(end)))

    def _done(self, at: int) -> bool:
        return at == len(self.tokens)

    def clause(self, at: int) -> Parses[Clause]:
        """A clause with its conditions."""
        word = self.word(at)
        if word in _IF:
            return self._conditional(at + 1)
        if word == "unless":
            return [(Conditional(Denied(body), head), end) for body, head, end in self._two(at + 1, False)]
        found: Parses[Clause] = []
        for left, end in self.joined(at):
            here = end + (self.word(end) == ",")
            word = self.word(here)
            if word == "iff" or [self.word(here + k) for k in range(4)] == ["if", "and", "only", "if"]:
                start = here + (1 if word == "iff" else 4)
                found += [(Conditional(left, right, True), stop) for right, stop in self.joined(start)]
            elif word == "only" and self.word(here + 1) == "if":
                found += [(Conditional(left, right), stop) for right, stop in self.joined(here + 2)]
            elif word in (*_IF, "unless"):
                found += [
                    (Conditional(Denied(body) if word == "unless" else body, left, head_first=True), stop)
                    for body, stop in self.joined(here + 1)
                ]
            found.append((left, end))
        return found

    def _conditional(self, at: int) -> Parses[Clause]:
        return [(Conditional(body, head), end) for body, head, end in self._two(at, True)]

    def _two(self, at: int, then: bool) -> list[tuple[Clause, Clause, int]]:
        found = []
        for body, middle in self.joined(at):
            here = middle + (self.word(middle) == ",")
            here += then and self.word(here) == "then"
            here += self.word(here) == "," and here > middle
            if here == middle and not then:
                continue
            found += [(body, head, end) for head, end in self.joined(here)]
        return found

    def joined(self, at: int) -> Parses[Clause]:
        """Clauses joined by `and`, `or`, `but`, or framed by `either … or`; the longest first."""
        found: Parses[Clause] = []
        if self.word(at) == "either":
            for left, middle in self.joined(at + 1):
                here = middle + (self.word(middle) == ",")
                if self.word(here) == "or":
                    found += [(Group("xor", (left, right)), end) for right, end in self.simple(here + 1)]
        for left, end in self.simple(at):
            found += self._more(left, end)
            found.append((left, end))
        return found

    def _more(self, left: Clause, at: int) -> Parses[Clause]:
        here = at + (self.word(at) == ",")
        operator = {"and": "and", "but": "and", "or": "or"}.get(self.word(here))
        if operator is None:
            return []
        if self.word(here + 1) == "if":
            return []
        found: Parses[Clause] = []
        for right, end in self.simple(here + 1):
            parts = left.parts if isinstance(left, Group) and left.operator == operator else (left,)
            whole = Group(operator, (*parts, right))
            found += self._more(whole, end)
            found.append((whole, end))
        return found

    def simple(self, at: int) -> Parses[Clause]:
        """A subject and its verb phrase, or that there is something."""
        words = [self.word(at + k) for k in range(3)]
        if words[0] == "there":
            if words[1] not in ("is", "are", "was", "were"):
                return []
            denied = self.word(at + 2) == "not"
            found: Parses[Clause] = []
            for subject, end in self.single(at + 2 + denied):
                if subject.kind in ("a", "some", "no", "bare", "any"):
                    one: Clause = Simple(subject, None)
                    found.append((Denied(one) if denied else one, end))
            return found
        if words[0] == "it" and words[1] == "is":
            denial = self._truth(at + 2)
            if denial is not None:
                here, positive = denial
                return [(tree if positive else Denied(tree), end) for tree, end in self.joined(here)]
        found = []
        wide: Parses[Clause] = []
        for subject, middle in self.noun_phrase(at):
            phrases = self.verb_phrase(middle, _number(subject))
            found += [(Simple(subject, phrase), end) for phrase, end in phrases]
            if subject.kind == "every" and words[0] in _ALL:
                wide += self._not_all(subject, phrases, middle)
            if self.word(middle) == "either" and subject.plural:
                found += self._floating(subject, middle)
        return found + wide

    def _not_all(self, subject: NounPhrase, phrases: Parses[VerbPhrase], at: int) -> Parses[Clause]:
        """`all that glitters is not gold`: what is denied may also be that all do."""
        return [
            (Denied(Simple(subject, phrase.part)), end)
            for phrase, end in phrases
            if isinstance(phrase, Negated) and all(self.word(k) != "never" for k in range(at, end))
        ]

    def _floating(self, subject: NounPhrase, at: int) -> Parses[Clause]:
        """`people either sing or dance`: the frame stands before the verbs."""
        framed: Parses[VerbPhrase] = self.coordinated(at, lambda here: self.part(here, _number(subject)))
        return [(Simple(subject, phrase), end) for phrase, end in framed]

    def _truth(self, at: int) -> tuple[int, bool] | None:
        """Behind `it is`: (where the clause starts, whether it is asserted), for `not true that` and its kin."""
        positive = self.word(at) != "not"
        here = at + (not positive)
        if self.word(here) == "false":
            positive = not positive
        elif self.word(here) == "the" and self.word(here + 1) == "case":
            here += 1
        elif self.word(here) != "true":
            return None
        return (here + 2, positive) if self.word(here + 1) == "that" else None


def _number(subject: NounPhrase) -> bool | None:
    """Plural or not, None where the verb may take either."""
    if subject.kind in ("nor", "or", "xor"):
        return None
    return subject.plural
