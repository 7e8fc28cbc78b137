"""A looser reading of what the grammar rejects: the frame of a sentence is read, its phrases stay whole.

`All people who regularly drink coffee are dependent on caffeine` is a rule between two phrases; what is inside a phrase
is compared with other phrases only (`alignment`). Such a reading is always marked as one.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmrn.reasoning.formulas import conjoin, deny
from cmrn.reasoning.lexicon import BE, is_plural_form, word_set
from cmrn.reasoning.loose_phrases import (
    EVERY,
    GENERIC,
    PRONOUNS,
    LoosePhrases,
    NotFramedError,
    Say,
    Tokens,
    X,
    parts_of,
    strip,
)
from cmrn.reasoning.loose_words import is_verb_form
from cmrn.reasoning.segment import Token
from cmrn.reasoning.theory import And, Constant, Exists, ForAll, Formula, Iff, Implies, Or, Term, Variable, Xor

__all__ = ["LooseReader"]

_SOMEONE = word_set("someone somebody something")
_EVERYONE = word_set("everyone everybody everything anyone anybody anything")
_NOBODY = word_set("nobody nothing none")
_REFUSED = word_set(
    "most many few several usually often sometimes generally typically rarely probably possibly perhaps maybe nearly "
    "almost because although though while except unless what where how why only before after during in on at among"
)
_UNCERTAIN = word_set("probably possibly perhaps maybe unless except whether might may")
_NEVER_NAMED = word_set("who which that of")
_OPENERS = word_set(
    "suppose assume also therefore thus hence however furthermore moreover nevertheless finally and but then so"
)


@dataclass
class LooseReader(LoosePhrases):
    """Reads whole sentences. last: whom the one before spoke of; never_named: words that no name has in it."""

    last: Term | None = None
    never_named: frozenset[str] = _NEVER_NAMED

    def read(self, tokens: Tokens) -> Formula:
        """The formula of a sentence.

        Raises:
            NotFramedError: its frame was not made out.
        """
        words: Tokens = list(tokens)
        while words and (words[0].lower in _OPENERS or words[0].lower == ","):
            words = words[1:]
        words = _without_brackets(words)
        if not words or words[0].lower in _REFUSED or any(token.lower in _UNCERTAIN for token in words):
            raise NotFramedError
        try:
            return self._sentence(words)
        except IndexError:  # the words ran out where more were looked for
            raise NotFramedError from None

    def _sentence(self, words: Tokens) -> Formula:
        low = [token.lower for token in words]
        if low[0] in ("if", "when", "whenever"):
            return self._conditional(*self.condition(words[1:]))
        for joint, size in (("if and only if", 4), ("if", 1)):
            at = _find(low, joint.split())
            if at > 0 and low[at - 1] != "even":
                head, body = words[:at], words[at + size :]
                return self._conditional(body, head, both=size == 4)
        if low[:2] == ["it", "is"] and "that" in low[2:6]:
            at = low.index("that")
            lead = low[2:at]
            if lead in (["not", "true"], ["not", "the", "case"], ["false"]):
                return deny(self._or_that(words[at + 1 :]))
            if lead in (["true"], ["the", "case"]):
                return self._or_that(words[at + 1 :])
        if low[0] == "there" and low[1] in BE:
            return self._there(words[2:])
        if low[0] == "either":
            return self._either(words[1:])
        if low[0] == "neither":
            raise NotFramedError
        return self.clauses(words)

    def _or_that(self, words: Tokens) -> Formula:
        low = [token.lower for token in words]
        at = _find(low, ["or", "that"])
        if at > 0:
            return Or((self.clauses(words[:at]), self.clauses(words[at + 2 :])))
        return self.clauses(words)

    def condition(self, words: Tokens) -> tuple[Tokens, Tokens]:
        """(body, head) of what follows `if`."""
        low = [token.lower for token in words]
        at = low.index("then") if "then" in low else -1
        if at > 0:
            return strip(words[:at]), words[at + 1 :]
        commas = [k for k, word in enumerate(low) if word == "," and _starts_subject(words[k + 1 :])]
        if len(commas) != 1:
            raise NotFramedError
        return words[: commas[0]], words[commas[0] + 1 :]

    def _conditional(self, body: Tokens, head: Tokens, both: bool = False) -> Formula:
        """A rule about whoever its condition speaks of, or between two statements."""
        if self.frame(body)[0] in ("some", "generic"):
            before, self.last = self.last, X
            _, limits, phrase = self._subject(body)
            condition = conjoin([*limits, *parts_of(phrase(X))])
            conclusion = self._about(head, X)
            self.last = before
            return ForAll((X,), Iff(condition, conclusion) if both else Implies(condition, conclusion))
        condition = self.clauses(body)
        conclusion = self.clauses(head)
        return Iff(condition, conclusion) if both else Implies(condition, conclusion)

    def _about(self, words: Tokens, term: Term) -> Formula:
        """A clause whose subject, a pronoun or the noun again, stands for the term."""
        low = [token.lower for token in words]
        if low[0] == "either" and not self.is_verb(words[1]):
            return self._either(words[1:])
        verb = self.verb(words)
        subject = [word for word in low[:verb] if word != "/"]
        if set(subject) <= PRONOUNS or (subject[0] in ("the", "that", "this") and len(subject) < 4):
            return self.phrase(words[verb:])(term)
        if subject[0] in ("people", "they", "person", "a", "an", "you", "we", "one") and isinstance(term, Variable):
            return self.phrase(words[verb:])(term)
        return self.clauses(words)

    def _there(self, words: Tokens) -> Formula:
        denied = words[0].lower in ("no", "not")
        words = words[denied:]
        if words and words[0].lower in ("a", "an", "some", "any", "at"):
            words = words[3:] if words[0].lower == "at" else words[1:]
        found = Exists((X,), conjoin(self.noun(words, False)(X)))
        return deny(found) if denied else found

    def _either(self, words: Tokens) -> Formula:
        """`either S or S`; `either A or B` of whatever is spoken of; `either A or B VERB`."""
        low = [token.lower for token in words]
        cuts = [at for at, word in enumerate(low) if word == "or"]
        for at in cuts:
            left, right = strip(words[:at]), words[at + 1 :]
            if self._has_verb(left) and self._has_verb(right) and _starts_subject(right):
                frame = self.frame(left)[0]
                if frame in ("generic", "some"):
                    _, limits, phrase = self._subject(left)
                    said: Formula = Xor((phrase(X), self._about(right, X)))
                    return ForAll((X,), Implies(conjoin(limits), said) if limits else said)
                first = self.clauses(left)
                return Xor((first, self._about(right, self.last) if self.last is not None else self.clauses(right)))
        if cuts and self._has_verb(words[: cuts[0]]) and not _starts_clause(words[cuts[0] + 1 :]):
            verb = self.verb(words)
            either = Token("either", "either", 0, 0)
            return self.clauses([*words[: verb + 1], either, *words[verb + 1 :]])
        if len(cuts) == 1 and not self._has_verb(words):
            parts = tuple(self.leaf(part)(X) for part in (words[: cuts[0]], words[cuts[0] + 1 :]))
            return ForAll((X,), Xor(parts))
        raise NotFramedError

    def _has_verb(self, words: Tokens) -> bool:
        try:
            return self.verb(words) > 0
        except NotFramedError:
            return False

    def clauses(self, words: Tokens) -> Formula:
        """Clauses of their own subjects joined by `and`, `or`, `but`; else one clause."""
        low = [token.lower for token in words]
        for joint in ("and", "but", "or"):
            for at, word in enumerate(low):
                left, right = strip(words[:at]), words[at + 1 :]
                if word == joint and left and right and self._own_subject(right) and self._has_verb(left):
                    if self.frame(left)[0] in ("generic", "some", "every", "no"):
                        continue
                    first = self.clauses(left)
                    second = self.clauses(right)
                    return Or((first, second)) if joint == "or" else And((first, second))
        if low[0] in PRONOUNS and self.last is not None:
            return self.phrase(words[self.verb(words) :])(self.last)
        return self.clause(words)

    def _own_subject(self, words: Tokens) -> bool:
        """Whether words begin a clause of their own: a name, a pronoun or a quantified noun, and a verb behind it."""
        if not _starts_subject(words):
            return False
        try:
            verb = self.verb(words)
        except NotFramedError:
            return False
        return 0 < verb < 5 and not any(token.lower in ("or", "and", ",", "that", "who") for token in words[:verb])

    def clause(self, words: Tokens) -> Formula:
        """A clause of one subject and its phrase."""
        kind, limits, phrase = self._subject(words)
        if kind.startswith("name:"):
            names = kind.removeprefix("name:").split(" & ")
            self.last = Constant(names[-1]) if len(names) == 1 else None
            return conjoin([phrase(Constant(name)) for name in names])
        said = phrase(X)
        if kind == "some" or (words[0].lower in ("a", "an") and self.is_past(words)):
            return Exists((X,), conjoin([*limits, *parts_of(said)]))
        if kind == "no":
            said = deny(said)
        whole = ForAll((X,), Implies(conjoin(limits), said) if limits else said)
        return deny(whole) if kind == "not every" else whole

    def frame(self, words: Tokens) -> tuple[str, int]:
        """(every, no, some, not every, generic or name; where its noun begins)."""
        return _frame(words)

    def _subject(self, words: Tokens) -> tuple[str, list[Formula], Say]:
        """(kind of subject, what its noun says of x, what is said of it)."""
        frame, start = self.frame(words)
        if frame == "name":
            verb = self.verb(words)
            text = [token.text for token in words[:verb]]
            names = " ".join(text).replace(" , and ", " & ").replace(" and ", " & ").replace(" , ", " & ")
            if not text or any(word in self.never_named for word in text):
                raise NotFramedError
            return "name:" + names.lower().removeprefix("the "), [], self.phrase(words[verb:])
        verb = self.main_verb(words, start)
        limits = self.noun(words[start:verb], words[0].lower not in ("every", "each", "a", "an", "no"))(X)
        return {"generic": "every"}.get(frame, frame), limits, self.phrase(words[verb:])


def _without_brackets(words: Tokens) -> Tokens:
    low = [token.lower for token in words]
    if "(" in low and ")" in low[low.index("(") :]:
        return _without_brackets([*words[: low.index("(")], *words[low.index(")", low.index("(")) + 1 :]])
    return words


def _frame(words: Tokens) -> tuple[str, int]:
    """(every, no, some, not every, generic or name; where its noun begins)."""
    low = [token.lower for token in words]
    first, after = low[0], low[1] if len(low) > 1 else ""
    if first == "not" and after in EVERY | _EVERYONE:
        return "not every", 1 if after in _EVERYONE else 2
    if first in EVERY or first in _EVERYONE or first == "those":
        here = 2 if after == "the" else 1
        return "every", here
    if first == "no":
        return "no", 2 if after == "one" else 1
    if first in _NOBODY:
        return "no", 1
    if first == "some" or first in _SOMEONE:
        return "some", 1
    if first in ("a", "an"):
        return "generic", 1
    if first in GENERIC:
        return "generic", 0
    token = words[0]
    plural = is_plural_form(first, ()) and (not token.text[0].isupper() or _sentence_case(words))
    if plural and not any(word.text[0].isupper() for word in words[1:2]):
        return "generic", 0
    for at in range(1, min(5, len(words))):
        if words[at].text[0].isupper():
            break
        if low[at] in ("are", "were", "have", "do", "can", "will", "who", "that", "either", "neither"):
            return ("generic" if at > 1 and is_plural_form(low[at - 1], ()) and first != "the" else "name"), 0
    return "name", 0


def _sentence_case(words: Tokens) -> bool:
    """Whether a plural-looking first word is followed by what only a plural takes."""
    following = next((token.lower for token in words[1:] if is_verb_form(token, "")), "")
    return following in ("are", "were", "have", "do", "can", "will", "either") or not following.endswith("s")


def _starts_subject(words: Tokens) -> bool:
    if not words:
        return False
    word = words[0]
    return word.text[0].isupper() or word.lower in PRONOUNS | EVERY | GENERIC | word_set("no some a an the there")


def _starts_clause(words: Tokens) -> bool:
    return _starts_subject(words) and any(is_verb_form(token, "") for token in words)


def _find(low: list[str], phrase: list[str]) -> int:
    return next((k for k in range(len(low)) if low[k : k + len(phrase)] == phrase), -1)
