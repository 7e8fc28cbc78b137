"""Verb and noun phrases of a loose reading: and, or, not and their frames are taken apart, the rest is left whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cmrn.reasoning.formulas import conjoin, deny
from cmrn.reasoning.lexicon import BE, MODALS, PREPOSITIONS, is_plural_form, word_set
from cmrn.reasoning.loose_words import AUXILIARIES, PARTS, Words, is_verb_form, lemmas
from cmrn.reasoning.segment import Token
from cmrn.reasoning.theory import And, Atom, Formula, Literal, Or, Term, Variable, Xor

__all__ = ["EVERY", "GENERIC", "PRONOUNS", "LoosePhrases", "NotFramedError", "Say", "Tokens", "parts_of", "strip"]

Tokens = Sequence[Token]
Say = Callable[[Term], Formula]
X = Variable("x")
EVERY = word_set("all every each any")
PRONOUNS = word_set("he she it they he/she she/he")
GENERIC = word_set("person people thing things individual individuals you we")
_FRAMES = {"either": "or", "neither": "nor", "both": "and"}
_ADVERBS = word_set("either neither both not also never always often once")
_BEFORE_NOUNS = word_set("a an the to of by in for with all no some every his their")


class NotFramedError(Exception):
    """A sentence whose frame was not made out."""


@dataclass
class LoosePhrases:
    """phrases: every predicate's words, by its name. verbs: words that the passage shows to be verbs.

    choice: which of the places that may be the verb's is tried, the likeliest first.
    """

    phrases: dict[str, Words] = field(default_factory=dict)
    verbs: frozenset[str] = frozenset()
    choice: int = 0

    def is_past(self, words: Tokens) -> bool:
        """Whether a sentence tells of one past event, so that `a man` is some man."""
        verb = words[self.main_verb(words, 1)].lower
        return verb in ("was", "had", "did") or (verb not in AUXILIARIES and (verb.endswith("ed") or verb in PARTS))

    def main_verb(self, words: Tokens, start: int) -> int:
        """Where the verb of a general sentence stands: behind a relative clause, if its noun has one."""
        low = [token.lower for token in words]
        places = [at for at in range(start, len(words)) if self._may_be_verb(words, at)]
        near = low[start : min([start + 5, *places[:1]])]
        relative = next((start + k for k, word in enumerate(near) if word in ("who", "that", "which")), None)
        if relative is None:
            if not places:
                raise NotFramedError
            finite = [at for at in places if low[at] in AUXILIARIES and low[at] not in ("being", "been", "be")]
            participle = low[places[0]].endswith(("ed", "ing")) or low[places[0]] in PARTS
            main = finite[:1] if participle and finite else places[:1]
            if low[main[0]] not in AUXILIARIES:
                main += [at for at in places if at not in main]
            return self._back(low, main[min(self.choice, len(main) - 1)])
        first = next(
            (at for at in range(relative + 1, len(low)) if low[at] not in _ADVERBS and low[at][-2:] != "ly"), 0
        )
        inside = [first, *(at for at in places if at > first)]
        if inside and low[inside[0]] in AUXILIARIES:
            inside = [inside[0], *(at for at in inside[1:] if not _same_group(low, inside[0], at))]
        main = [at for at in inside[1:] if low[at - 1] not in ("and", "or", "not", "to", ",", "nor", "that", "who")]
        if not main:
            raise NotFramedError
        return self._back(low, main[min(self.choice, len(main) - 1)])

    def _back(self, low: list[str], verb: int) -> int:
        while verb > 1 and (
            low[verb - 1] in ("either", "neither", "both", "also", "never") or low[verb - 1].endswith("ly")
        ):
            verb -= 1
        return verb

    def verb(self, words: Tokens) -> int:
        """Where the verb of a clause stands whose subject has none in it."""
        name = next((at for at, word in enumerate(words) if not (word.text[0].isupper() or word.text[0].isdigit())), 0)
        if name > 0 and words[0].lower not in EVERY | GENERIC and words[name].lower.isalpha():
            word = words[name].lower
            if (
                word in _ADVERBS
                or word.endswith("ly")
                or (word.endswith("s") and word not in PREPOSITIONS and len(word) > 3)
            ):
                return name
        places = [at for at in range(1, len(words)) if self._may_be_verb(words, at)]
        if not places:
            raise NotFramedError
        return self._back([token.lower for token in words], places[0])

    def _may_be_verb(self, words: Tokens, at: int) -> bool:
        following = words[at + 1].lower if at + 1 < len(words) else ""
        before = words[at - 1].lower if at else ""
        if before in _BEFORE_NOUNS:
            return False
        return self.is_verb(words[at], following)

    def is_verb(self, token: Token, following: str = "") -> bool:
        """Whether a word may be a finite verb; `following` is the word behind it."""
        return is_verb_form(token, following, self.verbs)

    def joins(self, token: Token) -> bool:
        """Whether `and`, `or` or `but` may join phrases where it stands, rather than words inside one."""
        return True

    def noun(self, words: Tokens, plural: bool) -> Callable[[Term], list[Formula]]:
        """What a noun, with the relative clause behind it, says."""
        low = [token.lower for token in words]
        at = next((k for k, word in enumerate(low) if word in ("who", "that", "which")), len(words))
        noun, clause = words[:at], words[at + 1 :]
        parts: list[Say] = []
        if any(token.lower not in GENERIC for token in noun) and lemmas(noun):
            cut = _head_end(noun, plural)
            parts += [self.leaf(piece) for piece in (noun[:cut], noun[cut:]) if lemmas(piece)]
        if clause:
            parts.append(self.phrase(clause))
        return lambda term: [each for part in parts for each in parts_of(part(term))]

    def phrase(self, words: Tokens, prefix: Tokens = ()) -> Say:
        """What a verb phrase says: its frame of and, or, not taken apart, the rest left whole."""
        words = [token for token in strip(words) if token.lower != "also"]
        begins = len(words) > 1 and (self.is_verb(words[1]) or words[1].lower in _ADVERBS)
        if begins and words[0].lower in PRONOUNS:
            words = words[1:]
        low = [token.lower for token in words]
        if not words:
            raise NotFramedError
        framed = self._framed(words, low, prefix)
        if framed is not None:
            return framed
        for at, word in enumerate(low[:4]):
            if word in ("not", "never") or (word == "no" and at and low[0] in ("has", "have", "had")):
                return self._denied(words, at, prefix)
        split = self._split(words, low, prefix)
        if split is None:
            return self._complement([*prefix, *words])
        left, right, lead, made = split
        first, second = self.phrase(left, prefix), self.phrase(right, lead)
        return lambda term: made((first(term), second(term)))

    def _denied(self, words: Tokens, at: int, prefix: Tokens) -> Say:
        """What stands behind `not` is denied together, up to where another verb takes over."""
        rest = [*words[:at], *words[at + 1 :]]
        low = [token.lower for token in rest]
        split = self._split(rest, low, prefix)
        if split is not None:
            left, right, lead, made = split
            if not lead or right[0].lower in ("not", "never") or low[len(left)] == "but":
                first, second = self.phrase(left, prefix), self.phrase(right, lead)
                return lambda term: made((deny(first(term)), second(term)))
            if made is And and right[0].lower in ("a", "an", "someone", "somebody"):
                raise NotFramedError  # `not a cat and a dog` may deny the first or both together
        whole = self.phrase(rest, prefix)
        return lambda term: deny(whole(term))

    def _split(
        self, words: Tokens, low: list[str], prefix: Tokens
    ) -> tuple[Tokens, Tokens, Tokens, type[And] | type[Or]] | None:
        """(left, right, the words that right takes over, And or Or) at the `or`, `but` or `and` that joins phrases."""
        for joint in ("or", "but", "and"):
            made: type[And] | type[Or] = Or if joint == "or" else And
            for at in (k for k in range(1, len(low) - 1) if low[k] == joint and self.joins(words[k])):
                left, right = strip(words[:at]), strip(words[at + 1 :])
                if not left or not right or "between" in low[:at]:
                    continue
                lead = (*prefix, *self._lead(left))
                if right[0].lower in AUXILIARIES:
                    return left, right, (), made
                if right[0].lower in ("not", "never", "either", "neither", "both"):
                    return left, right, lead, made
                helped = bool(lead) and lead[0].lower in MODALS | {"do", "does", "did"}
                if self._leads_phrase(right):
                    return left, right, lead[:1] if helped else (), made
                short = len(left) - len(self._lead(left)) <= 2 and not any(word in PREPOSITIONS for word in low[:at])
                copula = bool(lead) and lead[0].lower in BE
                if copula and (short or right[0].lower in ("a", "an") or right[0].lower in PREPOSITIONS):
                    return left, right, lead, made
                if short and len(right) <= 2 and not any(token.lower in PREPOSITIONS for token in right):
                    return left, right, lead, made
        return None

    def _lead(self, words: Tokens) -> Tokens:
        """The copula or verb that a following complement without one takes over."""
        kept = []
        for token in words:
            if token.lower in AUXILIARIES and token.lower not in ("not",):
                kept.append(token)
            else:
                break
        if kept and kept[0].lower in BE | MODALS:
            return kept
        return [token for token in words[:1] if self.is_verb(token)]

    def _leads_phrase(self, words: Tokens) -> bool:
        """Whether words begin a verb phrase of their own."""
        following = words[1].lower if len(words) > 1 else ""
        if self.is_verb(words[0], following) and following not in ("and", "or"):
            return True
        word = words[0].lower
        return (
            word.isalpha() and words[0].text[0].islower() and following in word_set("a an the their his her at least")
        )

    def _framed(self, words: Tokens, low: list[str], prefix: Tokens) -> Say | None:
        """`either A or B`, `neither A nor B`, `both A and B`, behind a copula or auxiliary or not."""
        for frame, joint in _FRAMES.items():
            at = next((k for k, word in enumerate(low) if word == frame), None)
            if at is None or any(word not in AUXILIARIES and word not in ("a", "an", "not") for word in low[:at]):
                continue
            inner = low[at + 1 :]
            cut = _matching(inner, frame, joint)
            if cut is None and frame == "neither":
                cut = _matching(inner, frame, "or")
            if cut is None:
                raise NotFramedError
            lead = [*prefix, *(token for token in words[:at] if token.lower != "not")]
            left, right = words[at + 1 : at + 1 + cut], words[at + 2 + cut :]
            lead_right = lead or list(self._lead(left))
            own = bool(right) and (right[0].lower in AUXILIARIES or (not lead and self._leads_phrase(right)))
            first = self.phrase(left, lead)
            second = self.phrase(right, () if own else lead_right)
            denied = "not" in low[:at]
            if frame == "neither":
                return _joined(And, _maybe_denied(first, True), _maybe_denied(second, True))
            if frame == "both":
                return _maybe_denied(_joined(And, first, second), denied)
            if denied:
                return _joined(And, _maybe_denied(first, True), _maybe_denied(second, True))
            return _joined(Xor, first, second)
        return None

    def _complement(self, words: Tokens) -> Say:
        """A phrase without frame; `is a N who …` says both."""
        low = [token.lower for token in words]
        copula = low[0] in BE
        at = next((k for k, word in enumerate(low) if word in ("who", "that", "which")), None)
        if copula and at is not None and at + 1 < len(words) and self.is_verb(words[at + 1]):
            noun = self.noun(words[1:], False)
            return lambda term: conjoin(noun(term))
        start = next((k for k, word in enumerate(low[:4]) if word in ("a", "an")), None)
        if copula and start is not None:
            cut = start + 1 + _head_end(words[start + 1 :])
            if cut < len(words) and lemmas(words[start + 1 : cut]):
                kind, rest = self.leaf(words[start + 1 : cut]), self.leaf(words[cut:])
                return lambda term: And((kind(term), rest(term)))
        return self.leaf(words)

    def leaf(self, words: Tokens) -> Say:
        """A phrase left whole: one predicate, named by its words of content."""
        key = lemmas(words)
        if not key:
            raise NotFramedError
        name = f"is “{' '.join(key)}”"
        self.phrases[name] = key
        return lambda term: Literal(Atom(name, (term,)))


def _head_end(noun: Tokens, plural: bool = False) -> int:
    """Where a noun ends and what stands behind it begins: a preposition, or a participle with its own words.

    plural: the noun must have a plural's form.
    """
    for at in range(1, len(noun) - 1):
        word, following = noun[at].lower, noun[at + 1].lower
        many = is_plural_form(noun[at - 1].lower, ())
        if word in PREPOSITIONS and word != "of":
            return at if many or not plural else len(noun)
        past = word.endswith("ed") or word in PARTS
        if past and (following in PREPOSITIONS or following in ("a", "an", "the", "to")) and (many or not plural):
            return at
        if word.endswith("ing") and len(word) > 4 and many:
            return at
    return len(noun)


def strip(words: Tokens) -> Tokens:
    """The words without commas at their ends, and without `then` in front."""
    while words and words[-1].lower == ",":
        words = words[:-1]
    while words and words[0].lower in (",", "then"):
        words = words[1:]
    return words


def _matching(inner: list[str], frame: str, joint: str) -> int | None:
    """Where the joint that belongs to a frame stands, frames inside it passed over."""
    depth = 0
    opener = {"or": "either", "nor": "neither", "and": "both"}[joint]
    for at, word in enumerate(inner):
        if word == opener:
            depth += 1
        elif word == joint:
            if depth == 0:
                return at
            depth -= 1
    return None


def _same_group(low: list[str], first: int, at: int) -> bool:
    """Whether a verb is part of the group an auxiliary opens: `has won`, `can not swim`."""
    return all(word in AUXILIARIES or word in ("not", "never") or word.endswith("ly") for word in low[first:at])


def _joined(made: type[And] | type[Xor], first: Say, second: Say) -> Say:
    return lambda term: made((first(term), second(term)))


def _maybe_denied(say: Say, denied: bool) -> Say:
    return (lambda term: deny(say(term))) if denied else say


def parts_of(formula: Formula) -> list[Formula]:
    """The parts of a conjunction; any other formula alone."""
    return list(formula.parts) if isinstance(formula, And) else [formula]
