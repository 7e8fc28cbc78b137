"""What a passage itself shows about its words: which are nouns, adjectives or names, nonce words included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cmrn.reasoning.lexicon import (
    BE,
    CLOSED,
    COMMON_ADJECTIVES,
    PREPOSITIONS,
    PRIVATIVE,
    guessed_singular,
    is_plural_form,
    singulars,
)
from cmrn.reasoning.segment import Token

__all__ = ["DUMMIES", "Vocabulary", "is_open", "learn"]

DUMMIES = {"thing": False, "things": False, "person": True, "people": True, "persons": True, "one": True, "ones": True,
           "individual": True, "individuals": True}  # fmt: skip
_SINGULAR = frozenset({"a", "an", "every", "each"})
_COLLECTIVE = frozenset({"all", "no", "any", "some", "only"})
_STOPS = frozenset({"", ",", "and", "or", "nor", "but", "then", "who", "that", "which", "if", "unless"}) | BE


@dataclass(frozen=True)
class Vocabulary:
    """seen: all words in lower case; nouns: singular; adjectives; names: as written, by their lower case.

    kinds: the dummies, such as person, that the passage uses as a kind of their own. plurals: those that only a place
    shows, with their nouns. alone: nouns that stand without another word before them. capitals: words written with a
    capital inside a sentence.
    """

    seen: frozenset[str]
    nouns: frozenset[str]
    adjectives: frozenset[str]
    names: dict[str, str]
    kinds: frozenset[str]
    plurals: dict[str, str]
    alone: frozenset[str]
    capitals: frozenset[str]
    _singulars: dict[str, str | None] = field(default_factory=dict, compare=False, repr=False)

    def singular(self, word: str) -> str | None:
        """The noun that a plural is of; None where nothing says that it is a plural."""
        if word not in self._singulars:
            self._singulars[word] = self._find_singular(word)
        return self._singulars[word]

    def _find_singular(self, word: str) -> str | None:
        if word in self.plurals:
            return self.plurals[word]
        options = singulars(word, self.seen)
        known = [one for one in options if one in self.nouns]
        return next(iter((*known, *options)), None)

    def is_adjective(self, word: str) -> bool:
        """Whether the passage or common use makes a word an adjective."""
        if word in self.nouns and word not in self.adjectives:
            return False
        return word in self.adjectives or word in COMMON_ADJECTIVES or word.endswith("-legged")

    def splits(self, modifier: Token, head: str) -> bool:
        """Whether `modifier head` says two things of what it names, rather than being a noun of two words."""
        word = modifier.lower
        if word in PRIVATIVE or (word in self.nouns and word not in self.adjectives):
            return False
        if self.is_adjective(word):
            return True
        return head in self.alone and word not in self.capitals


def is_open(token: Token) -> bool:
    """Whether a token is a noun, verb, adjective or name rather than a word of grammar."""
    return (token.text[:1].isalnum()) and token.lower not in CLOSED and token.lower not in PREPOSITIONS


def learn(sentences: Iterable[Sequence[Token]]) -> Vocabulary:
    """The vocabulary of a passage, from where its words stand."""
    known = [tuple(tokens) for tokens in sentences]
    seen = frozenset(token.lower for tokens in known for token in tokens)
    nouns: set[str] = set()
    adjectives: set[str] = set()
    names: dict[str, str] = {}
    kinds: set[str] = set()
    for tokens in known:
        _from_sentence(tokens, seen, nouns, adjectives, names, kinds)
    plurals = {word: guessed_singular(word) for tokens in known for word in _shown_plural(tokens, seen, names)}
    nouns.update(plurals.values())
    capitals = {token.lower for tokens in known for token in tokens[1:] if token.text[:1].isupper()}
    alone = frozenset(_alone(known, seen, nouns))
    return Vocabulary(seen, frozenset(nouns), frozenset(adjectives), names, frozenset(kinds), plurals, alone,
                      frozenset(capitals))  # fmt: skip


def _alone(sentences: Iterable[Sequence[Token]], seen: frozenset[str], nouns: set[str]) -> Iterator[str]:
    """The nouns that somewhere stand with no word of content on either side."""
    for tokens in sentences:
        for at, token in enumerate(tokens):
            before = at > 0 and is_open(tokens[at - 1])
            if is_open(token) and not before and not (at + 1 < len(tokens) and is_open(tokens[at + 1])):
                yield from (one for one in (token.lower, *singulars(token.lower, seen)) if one in nouns)


def _shown_plural(tokens: Sequence[Token], seen: frozenset[str], names: dict[str, str]) -> Iterator[str]:
    """Words without a plural's form that stand where only a plural can: `all lorpi are`, `lorpi are`."""
    for at in range(len(tokens) - 1):
        word, after = tokens[at].lower, tokens[at + 1].lower
        if not is_open(tokens[at]) or word in DUMMIES or singulars(word, seen) or word in names:
            continue
        plural = after in ("are", "were") or (
            after in ("that", "who") and at + 2 < len(tokens) and tokens[at + 2].lower == "are"
        )
        start = at
        while start and is_open(tokens[start - 1]):
            start -= 1
        opener = tokens[start - 1].lower if start else ""
        if (plural and opener in ("", "all", "only", "no", "some") and (opener or start == at)) or (
            opener in ("all", "only") and at + 1 < len(tokens) and after in ("can", "do")
        ):
            yield word


def _from_sentence(
    tokens: Sequence[Token],
    seen: frozenset[str],
    nouns: set[str],
    adjectives: set[str],
    names: dict[str, str],
    kinds: set[str],
) -> None:
    def low(index: int) -> str:
        return tokens[index].lower if 0 <= index < len(tokens) else ""

    for at, token in enumerate(tokens):
        if token.text[:1].isupper() and is_open(token) and at and low(at - 1) not in (*_SINGULAR, *BE, ".", ":"):
            names.setdefault(token.lower, token.text)
        if at == 0 and is_open(token) and low(1) in ("is", "was", "has", "does", "'s"):
            names.setdefault(token.lower, token.text)
        run = at + 1
        while run < len(tokens) and is_open(tokens[run]):
            run += 1
        words, after = tokens[at + 1 : run], low(run)
        if not words:
            continue
        last = words[-1].lower
        if last in DUMMIES:
            adjectives.update(word.lower for word in words[:-1])
            before = low(at - 1) if token.lower in ("a", "an") else token.lower
            if len(words) == 1 and before in (*BE, "not") and after in ("", ",", "and", "or", "then", "but"):
                kinds.add("person" if DUMMIES[last] else "thing")
        elif token.lower in _SINGULAR:
            named = len(words) > 2 and words[-1].text[0].isupper() and words[-2].text[0].islower()
            listed = len(words) == 1 and last in COMMON_ADJECTIVES and after in ("and", "or", ",")
            if not listed and (len(words) == 1 or (after in _STOPS and not named)):
                nouns.add(last)
        elif token.lower in _COLLECTIVE and after in _STOPS and is_plural_form(last, seen):
            nouns.add(singulars(last, seen)[0])
        elif (
            (token.lower in BE or (token.lower == "not" and low(at - 1) in BE)) and after in _STOPS and len(words) == 1
        ):
            if token.lower in ("are", "were", "not") and is_plural_form(last, seen):
                nouns.add(singulars(last, seen)[0])
            elif words[0].text.islower():
                adjectives.add(last)
    start = [index for index in range(len(tokens)) if not is_open(tokens[index])][:1]
    if start and start[0] == 1 and low(1) in ("are", "who", "that") and is_plural_form(low(0), seen):
        nouns.add(singulars(low(0), seen)[0])
    for at in range(1, len(tokens) - 1):
        if low(at) in ("all", "no") and is_open(tokens[at + 1]) and low(at + 2) in ("is", "are"):
            one = singulars(low(at + 1), seen)
            nouns.add(one[0] if one else low(at + 1))
    if low(0) in ("all", "no") and len(tokens) > 2 and is_open(tokens[1]) and low(2) in ("is", "are"):
        one = singulars(low(1), seen)
        if low(1) not in DUMMIES:
            nouns.add(one[0] if one else low(1))
