"""Noun phrases: names, quantified nouns with adjectives and relative clauses, pronouns, and their coordination.

    np       = single | single ("," single)* [","] (and|or) single | both..and | either..or | neither..nor
    single   = (every|each|all|any|no|some|only|not all|not every) nominal | (a|the) nominal | NAME | PRONOUN
             | (something|someone|everything|everyone|anyone|nothing|…) [ADJ] [relative]
             | those relative | plural nominal
    nominal  = [ADJ ("," ADJ)* [and|or ADJ]] NOUN [relative] [PREPOSITION np]
             | … NOUN PARTICIPLE PREPOSITION np
    relative = (who|that|which) (verb phrase | single verb)

Every method returns all (tree, next word) that fit, the preferred first; `far` is the furthest word looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from cmrn.reasoning.lexicon import PREPOSITIONS, PRONOUNS, is_plural_form, word_set
from cmrn.reasoning.loose_words import is_participle
from cmrn.reasoning.segment import Token
from cmrn.reasoning.syntax import Nominal, NounPhrase, Relation, VerbPhrase
from cmrn.reasoning.vocabulary import DUMMIES, Vocabulary, is_open

__all__ = ["Parses", "Phrases"]

T = TypeVar("T")
Parses = list[tuple[T, int]]
_QUANTIFIERS = {"every": "every", "each": "every", "all": "every", "any": "any", "no": "no", "some": "some",
                "only": "only"}  # fmt: skip
_INDEFINITE = {
    "something": ("some", False), "someone": ("some", True), "somebody": ("some", True), "anything": ("any", False),
    "anyone": ("any", True), "anybody": ("any", True), "everything": ("every", False), "everyone": ("every", True),
    "everybody": ("every", True), "nothing": ("no", False), "nobody": ("no", True),
}  # fmt: skip


_SHARED = ("every", "no", "some", "a", "any", "only", "not every")
_PLURAL_MODIFIERS = word_set("sports news arms goods systems sales savings customs")
_NUMBERS = word_set("one two three four five six seven eight nine ten")
_NAMES_IN_S = word_set("james charles thomas chris lucas nicholas marcus iris agnes frances silas jonas lois hans "
                        "dennis curtis carlos andreas lewis socrates alexis jess jesus moses")  # fmt: skip


class Phrases(ABC):
    """Reads noun phrases of one sentence; verb phrases, which they contain, are a subclass's."""

    def __init__(self, tokens: Sequence[Token], vocabulary: Vocabulary) -> None:
        self.tokens = tokens
        self.vocabulary = vocabulary
        self.far = 0
        self._known: dict[tuple[str, int], Parses[NounPhrase]] = {}

    def word(self, at: int) -> str:
        """The word in lower case, "" behind the last."""
        if at > self.far:
            self.far = at
        return self.tokens[at].lower if at < len(self.tokens) else ""

    def is_open(self, at: int) -> bool:
        """Whether a word of content stands there."""
        self.word(at)
        return at < len(self.tokens) and is_open(self.tokens[at])

    @abstractmethod
    def verb_phrase(self, at: int, plural: bool | None) -> Parses[VerbPhrase]:
        """A verb phrase that agrees with its subject's number; None for a subject of either number."""

    @abstractmethod
    def reduced(self, at: int) -> Parses[VerbPhrase]:
        """What a participle behind a noun says of it: `born in Germany`, `living in Paris`, `owned by Bob`."""

    @abstractmethod
    def transitive(self, at: int, plural: bool | None) -> Parses[Callable[[NounPhrase], VerbPhrase]]:
        """A verb that still lacks its object, as a relative clause with its own subject has it."""

    def noun_phrase(self, at: int) -> Parses[NounPhrase]:
        """Any noun phrase, coordinated ones included."""
        key = ("np", at)
        if key not in self._known:
            self._known[key] = []  # a noun phrase does not start with itself
            self._known[key] = self._noun_phrase(at)
        return self._known[key]

    def _noun_phrase(self, at: int) -> Parses[NounPhrase]:
        first = self.word(at)
        if first in ("both", "either", "neither"):
            last, kind = {"both": ("and", "and"), "either": ("or", "xor"), "neither": ("nor", "nor")}[first]
            return [
                (NounPhrase(kind, plural=kind == "and", parts=(left, right), at=at), end)
                for left, middle in self.single(at + 1)
                if self.word(middle) == last
                for right, end in self.single(middle + 1)
            ]
        found = []
        for left, middle in self.single(at):
            found += self._coordinated(left, middle, at)
            found.append((left, middle))
        return found

    def _coordinated(self, first: NounPhrase, at: int, start: int) -> Parses[NounPhrase]:
        """The phrases joined to a first one by commas and a last `and` or `or`."""
        if first.noun is not None and first.noun.clauses:
            return []
        parts: list[tuple[tuple[NounPhrase, ...], int]] = [((first,), at)]
        found: Parses[NounPhrase] = []
        while parts:
            sofar, here = parts.pop()
            comma = self.word(here) == ","
            joint = here + comma
            if self.word(joint) in ("and", "or"):
                kind = self.word(joint)
                if first.kind in _SHARED:
                    found += self._sharing(sofar, first, joint, start)
                    continue
                found += [
                    (NounPhrase(kind, plural=kind == "and" or part.plural, parts=(*sofar, part), at=start), end)
                    for part, end in self.single(joint + 1)
                    if part.kind != "pronoun"
                ]
            elif comma and first.kind in _SHARED:
                parts += [
                    ((*sofar, NounPhrase(first.kind, noun, plural=first.plural, at=here + 1)), end)
                    for noun, end in self.nominal(here + 1, first.plural)
                ]
            elif comma:
                parts += [((*sofar, part), end) for part, end in self.single(here + 1)]
        return found

    def _sharing(self, sofar: tuple[NounPhrase, ...], first: NounPhrase, joint: int, start: int) -> Parses[NounPhrase]:
        """What follows `no cat or`, `all cats and`: a noun under the same word, a phrase with its own, or a name."""
        joined = self.word(joint)
        last = joint + 1
        shared = "or" if first.kind in ("some", "a") and joined == "or" else "and"
        found: Parses[NounPhrase] = []
        for noun, end in self.nominal(last, first.plural):
            part = NounPhrase(first.kind, noun, plural=first.plural, at=last)
            found.append((NounPhrase(shared, plural=first.plural, parts=(*sofar, part), at=start), end))
        if first.kind == "every":
            found += [
                (NounPhrase(joined, plural=joined == "and", parts=(*sofar, part), at=start), end)
                for part, end in self.single(last)
                if part.kind in ("every", "the") or (part.kind == "name" and self.tokens[last].text[0].isupper())
            ]
        return found

    def single(self, at: int) -> Parses[NounPhrase]:
        """One noun phrase without coordination."""
        key = ("single", at)
        if key not in self._known:
            self._known[key] = []
            self._known[key] = self._single(at)
        return self._known[key]

    def _single(self, at: int) -> Parses[NounPhrase]:
        word, after = self.word(at), self.word(at + 1)
        if word in PRONOUNS:
            return [(NounPhrase("pronoun", name=word, plural=word in ("they", "them"), at=at), at + 1)]
        if word in _INDEFINITE or (word in ("no", "every", "any") and after == "one"):
            return self._indefinite(at)
        if word == "those" or (word == "all" and after == "those"):
            here = at + (2 if word == "all" else 1)
            return [
                (NounPhrase("every", Nominal(None, clauses=(clause,), human=True), plural=True, at=at), end)
                for clause, end in self.relative(here, True)
            ]
        if word == "not" and after in ("all", "every", "each"):
            return self._quantified("not every", at + 2, at, after != "all")
        if word in _QUANTIFIERS and not (word == "any" and after == "of"):
            here = at + (3 if (after, self.word(at + 2)) == ("of", "the") else 2 if after == "the" else 1)
            singular = None if word in ("no", "any", "some", "only") else word in ("every", "each")
            return self._quantified(_QUANTIFIERS[word], here, at, singular)
        if word in ("a", "an"):
            return self._quantified("a", at + 1, at, True)
        if word in ("the", "that", "this"):
            return self._definite(at, "the" if word == "the" else "that")
        if word in _NUMBERS or word.isdigit():
            counted = [(NounPhrase("count", noun, word, True, at=at), end) for noun, end in self.nominal(at + 1, True)]
            return counted + (self._name(at) if word.isdigit() else [])
        found = self._name(at)
        if self.is_open(at) and self._is_noun(at) and not self.is_open(at + 1) and word in self.vocabulary.nouns:
            found.append((NounPhrase("bare", Nominal(word), at=at), at + 1))
        if not (self.is_open(at) and self._is_name(at)):
            found += [(NounPhrase("bare", noun, plural=True, at=at), end) for noun, end in self.nominal(at, True)]
        return found

    def _is_name(self, at: int) -> bool:
        """Whether a word with a capital is a name rather than a plural that starts the sentence."""
        word = self.word(at)
        return self.tokens[at].text[0].isupper() and (word in self.vocabulary.names or word in _NAMES_IN_S)

    def _indefinite(self, at: int) -> Parses[NounPhrase]:
        word = self.word(at)
        two = word in ("no", "every", "any")
        kind, human = ({"no": "no", "every": "every", "any": "any"}[word], True) if two else _INDEFINITE[word]
        here = at + 1 + two
        found = []
        for clause, end in self.relative(here, False):
            found.append((NounPhrase(kind, Nominal(None, clauses=(clause,), human=human), at=at), end))
        if self.is_open(here) and self.vocabulary.is_adjective(self.word(here)):
            noun = Nominal(None, (self.word(here),), human=human)
            found.append((NounPhrase(kind, noun, at=at), here + 1))
        found.append((NounPhrase(kind, Nominal(None, human=human), at=at), here))
        return found

    def _quantified(self, kind: str, here: int, at: int, singular: bool | None) -> Parses[NounPhrase]:
        numbers = (False, True) if singular is None else (not singular,)
        if kind == "only" and (self.tokens[here].text[:1].isupper() if here < len(self.tokens) else True):
            numbers = (True,)
        found = []
        for many in numbers:
            found += [(NounPhrase(kind, noun, plural=many, at=at), end) for noun, end in self.nominal(here, many)]
        if kind == "every" and singular is False:
            found += [(NounPhrase(kind, noun, at=at), end) for noun, end in self.nominal(here, False)
                      if noun.head in self.vocabulary.nouns and not noun.clauses]  # fmt: skip
        return found

    def _definite(self, at: int, kind: str) -> Parses[NounPhrase]:
        """`the bald eagle`: one individual, named by its description."""
        end = at + 1
        while self.is_open(end):
            end += 1
        found = []
        for stop in range(end, at + 1, -1):
            words = [token.lower for token in self.tokens[at + 1 : stop]]
            if is_plural_form(words[-1], self.vocabulary.seen) and words[-1] not in self.vocabulary.nouns:
                continue
            found.append((NounPhrase(kind, name=" ".join(words), at=at), stop))
        return found

    def _name(self, at: int) -> Parses[NounPhrase]:
        """A name: words with capitals, a number, or a word that stands where a name does."""
        if not self.is_open(at):
            return []
        first = self.tokens[at]
        if not first.text[0].isupper():
            named = self.word(at) in self.vocabulary.names
            plain = self._is_noun(at) or (self._starts_plural(at) and not named)
            return [] if plain else [(NounPhrase("name", name=self._spelled(at), at=at), at + 1)]
        if self.word(at) == "even" and self.is_open(at + 1):
            return []
        end = at + 1
        while self.is_open(end) and (self.tokens[end].text[0].isupper() or self.tokens[end].text[0].isdigit()):
            end += 1
        names = [NounPhrase("name", name=" ".join(token.text for token in self.tokens[at:stop]), at=at)
                 for stop in range(end, at, -1)]  # fmt: skip
        if end == at + 1:
            names = [NounPhrase("name", name=self._spelled(at), at=at)]
            if self._is_noun(at) or (not self._is_name(at) and self._starts_plural(at)):
                return []
        return list(zip(names, range(end, at, -1), strict=True))

    def _is_noun(self, at: int) -> bool:
        """Whether the passage uses the word, without a capital, as a noun or adjective."""
        word = self.word(at)
        if word in self.vocabulary.names and word not in self.vocabulary.nouns:
            return False
        known = word in self.vocabulary.nouns or self.vocabulary.singular(word) in self.vocabulary.nouns
        return known or self.vocabulary.is_adjective(word) or word in DUMMIES

    def _starts_plural(self, at: int) -> bool:
        """Whether a word with a capital, which the passage never uses as a name, may be a plural."""
        follows = self.word(at + 1) if at + 1 < len(self.tokens) else ""
        return self.vocabulary.singular(self.word(at)) is not None and follows not in ("is", "was", "has", "does", "'s")

    def _spelled(self, at: int) -> str:
        token = self.tokens[at]
        return self.vocabulary.names.get(token.lower, token.text)

    def nominal(self, at: int, plural: bool) -> Parses[Nominal]:
        """A noun of the number asked for, with what stands before and behind it; longer ones first."""
        found = []
        for adjectives, joined, start in self._listed_adjectives(at):
            end = start
            while self.is_open(end):
                end += 1
            for stop in range(end, start, -1):
                noun = self._noun(start, stop, plural, adjectives, joined)
                if noun is not None:
                    found += self._modified(noun, stop, plural)
        return found

    def _noun(self, start: int, stop: int, plural: bool, adjectives: tuple[str, ...], joined: str) -> Nominal | None:
        """The words as one noun; None where the last is no noun of that number."""
        head = self.tokens[stop - 1].lower
        before = self.tokens[start : stop - 1]
        if before and self.word(stop) in PREPOSITIONS and is_participle(head) and head not in self.vocabulary.nouns:
            return None
        if len(before) > 3 or any(self._cannot_modify(token.lower, at) for at, token in enumerate(before)):
            return None
        if plural and before and before[0].lower.isdigit() and len(before[0].lower) < 4:
            return None
        if head in DUMMIES:
            if plural != (head in ("things", "people", "persons", "ones", "individuals")):
                return None
            name = "person" if DUMMIES[head] else "thing"
            kind = name if name in self.vocabulary.kinds else None
            return Nominal(kind, (*adjectives, *(token.lower for token in before)), joined, human=DUMMIES[head])
        if plural:
            single = self.vocabulary.singular(head)
            if single is None:
                return None
        else:
            single = head
            if is_plural_form(head, self.vocabulary.seen) and head not in self.vocabulary.nouns:
                return None
        if adjectives and joined == "or" and before:
            return None
        split = 0
        while split < len(before):
            rest = " ".join([*(token.lower for token in before[split + 1 :]), single])
            if not self.vocabulary.splits(before[split], rest):
                break
            split += 1
        name = " ".join([*(token.lower for token in before[split:]), single])
        return Nominal(name, (*adjectives, *(token.lower for token in before[:split])), joined)

    def _cannot_modify(self, word: str, place: int) -> bool:
        """Whether a word cannot stand before a noun: a plural, or what someone is doing."""
        if word.endswith("ing") and place:
            return True
        return self.vocabulary.singular(word) is not None and word not in _PLURAL_MODIFIERS | self.vocabulary.adjectives

    def _listed_adjectives(self, at: int) -> list[tuple[tuple[str, ...], str, int]]:
        """`red, kind`, `red and kind` before a noun; the plain case first."""
        found: list[tuple[tuple[str, ...], str, int]] = [((), "and", at)]
        words = []
        here = at
        joined = "and"
        while self.is_open(here) and self.vocabulary.singular(self.word(here)) not in self.vocabulary.nouns:
            words.append(self.word(here))
            comma = self.word(here + 1) == ","
            joint = self.word(here + 1 + comma)
            if joint in ("and", "or"):
                joined = joint
                here += 2 + comma
                if self.is_open(here) and self.is_open(here + 1):
                    found.append(((*words, self.word(here)), joined, here + 1))
                return [found[-1]] if len(found) > 1 and self._all_adjectives(words) else found
            if not comma:
                return found
            here += 2
            if self.is_open(here) and self.is_open(here + 1):
                found.append((tuple(words), "and", here))
        return found

    def _all_adjectives(self, words: Sequence[str]) -> bool:
        return all(self.vocabulary.is_adjective(word) for word in words)

    def _modified(self, noun: Nominal, at: int, plural: bool) -> Parses[Nominal]:
        """The noun with relative clauses and prepositional phrases, then without."""
        found = []
        for clause, end in self.relative(at, plural):
            found.append((Nominal(noun.head, noun.adjectives, noun.joined, (clause,), noun.human), end))
        for clause, end in self.reduced(at):
            found.append((Nominal(noun.head, noun.adjectives, noun.joined, (clause,), noun.human), end))
        if self.word(at) in PREPOSITIONS and self.word(at) not in ("as", "by"):
            for place, end in self.single(at + 1):
                clause = Relation(f"is {self.word(at)}", (place,))
                found.append((Nominal(noun.head, noun.adjectives, noun.joined, (clause,), noun.human), end))
        found.append((noun, at))
        return found

    def relative(self, at: int, plural: bool) -> Parses[VerbPhrase]:
        """`who likes cats`, `that Bob likes`."""
        comma = self.word(at) == "," and self.word(at + 1) in ("who", "which")
        here = at + comma
        if self.word(here) not in ("who", "that", "which"):
            return []
        found = [
            (phrase, end + (comma and self.word(end) == ",")) for phrase, end in self.verb_phrase(here + 1, plural)
        ]
        for subject, middle in self.single(here + 1):
            if subject.kind == "the" or (subject.kind == "name" and subject.name[0].isupper()):
                found += [(verb(subject), end) for verb, end in self.transitive(middle, subject.plural)]
        return found
