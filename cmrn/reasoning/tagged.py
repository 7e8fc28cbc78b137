"""What no list of words frames, read by learned marks: where phrases begin and what joins them comes from the tagger.

The formulas are made as in a loose reading, so a sentence has one or is refused; content words are only ever copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cmrn.reasoning.lexicon import word_set
from cmrn.reasoning.loose import LooseReader
from cmrn.reasoning.loose_phrases import EVERY, GENERIC, PRONOUNS, NotFramedError, Tokens, strip
from cmrn.reasoning.segment import Token
from cmrn.reasoning.tagger import Tagger
from cmrn.reasoning.theory import And, Formula, Or

__all__ = ["CONFIDENCE", "TaggedReader", "marks_of"]

CONFIDENCE = 0.6
"""A sentence of which any word is marked with less is not read."""


def marks_of(tagger: Tagger, words: Tokens) -> dict[int, str] | None:
    """The mark of each word, by the place where it begins; None where the tagger is not sure enough of one."""
    tagged = tagger.tag([token.lower if token.lower == "not" else token.text for token in words])
    if tagged.confidence < CONFIDENCE:
        return None
    return {token.start: tag for token, tag in zip(words, tagged.tags, strict=True)}


@dataclass
class TaggedReader(LooseReader):
    """Reads a sentence by the marks of its words."""

    never_named: frozenset[str] = word_set("who which that")
    marks: Mapping[int, str] = field(default_factory=dict)

    def mark(self, token: Token) -> str:
        """What a word does in its sentence."""
        return self.marks.get(token.start, "other")

    def read(self, tokens: Tokens) -> Formula:
        """The formula of a sentence; what stands before its subject is read behind its phrase."""
        before = [token for token in tokens if self.mark(token) == "fronted"]
        rest = [token for token in tokens if self.mark(token) != "fronted"]
        return super().read([*rest, *strip(before)])

    def is_verb(self, token: Token, following: str = "") -> bool:
        """Whether a phrase begins with the word."""
        return self.mark(token) in ("verb", "inner verb")

    def joins(self, token: Token) -> bool:
        """Whether the word joins phrases."""
        return self.mark(token) == "joins phrases"

    def verb(self, words: Tokens) -> int:
        """Where the first phrase of a clause begins."""
        return self.main_verb(words, 1)

    def main_verb(self, words: Tokens, start: int) -> int:
        """Where the first phrase begins that is in no relative clause."""
        place = next((at for at in range(start, len(words)) if self.mark(words[at]) == "verb"), None)
        if place is None:
            raise NotFramedError
        return self._back([token.lower for token in words], place)

    def frame(self, words: Tokens) -> tuple[str, int]:
        """As a loose reading has it, but whether words without a quantifier name something is what the marks say."""
        first = words[0].lower
        if self.mark(words[0]) != "kind" and first not in EVERY | GENERIC | {"no", "some", "a", "an"}:
            return "name", 0
        frame, start = super().frame(words)
        return ("generic", 0) if frame == "name" else (frame, start)

    def condition(self, words: Tokens) -> tuple[Tokens, Tokens]:
        """(body, head) of what follows `if`, cut where the marks say."""
        cut = self._cut(words)
        if cut is None:
            return super().condition(words)
        return strip(words[:cut]), strip(words[cut + 1 :])

    def clauses(self, words: Tokens) -> Formula:
        """Clauses of their own subjects, joined where the marks say; else one clause."""
        cut = self._cut(words)
        low = [token.lower for token in words]
        if cut is None:
            if low[0] in PRONOUNS and self.last is not None:
                return self.phrase(words[self.verb(words) :])(self.last)
            return self.clause(words)
        joint = next((word for word in low[cut : cut + 2] if word in ("and", "or", "but")), None)
        if joint is None or self.frame(words)[0] != "name":
            raise NotFramedError
        left, right = strip(words[:cut]), strip(words[low.index(joint, cut) + 1 :])
        first = self.clauses(left)
        second = self.clauses(right)
        return Or((first, second)) if joint == "or" else And((first, second))

    def _cut(self, words: Tokens) -> int | None:
        """Where the first word stands that joins clauses, the comma before it included."""
        inside = range(1, len(words) - 1)
        return next((at for at in inside if self.mark(words[at]) == "joins clauses"), None)
