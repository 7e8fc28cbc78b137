"""Sentences drawn at random with the tag of every word: what the tagger is taught with.

Content words are mostly invented, so that only endings, places and the words around them can tell what they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cmrn.reasoning.lexicon import plural, third_person
from cmrn.reasoning.loose_words import PARTS, VERBS

__all__ = ["Marked", "Teller"]

Marked = list[tuple[str, str]]
"""Words with their tags, of `tagger.TAGS`."""

_ONSETS = ("b", "bl", "br", "c", "cl", "cr", "d", "dr", "f", "fl", "g", "gr", "h", "j", "l", "m", "n", "p", "pl", "pr",
           "r", "s", "sc", "sp", "st", "str", "t", "tr", "v", "w", "th", "ch", "sh")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ai", "ou", "ee")
_CODAS = ("b", "ck", "d", "ft", "g", "l", "m", "nd", "n", "nt", "p", "r", "rk", "st", "t", "ve", "te", "se", "ze", "ne")
_NOUN_ENDS = ("er", "ion", "ity", "ment", "ist", "or", "age", "ance", "et", "ism", "ship", "y", "us", "", "", "")
_ADJECTIVE_ENDS = ("al", "ous", "ic", "ive", "able", "y", "ful", "less", "ish", "ary", "ent", "", "")
_BE, _WAS = {False: "is", True: "are"}, {False: "was", True: "were"}
_PREPOSITIONS = ("in", "on", "at", "from", "of", "for", "with", "by", "about", "into", "near", "under", "to", "during",
                 "than", "before", "after", "against", "over")  # fmt: skip
_SOME = ("some", "many", "several", "other", "two", "three", "more", "all", "various", "most")
_PAST = tuple(sorted(PARTS))
_BASES = tuple(sorted(VERBS - {"have", "do"}))


def _as(tag: str, *words: str) -> Marked:
    return [(word, tag) for text in words for word in text.split()]


def _plain(*words: str) -> Marked:
    return _as("other", *words)


@dataclass
class Teller:
    """Draws sentences from one source of chance.

    >>> words = Teller(random.Random(1)).sentence()
    >>> all(len(pair) == 2 for pair in words)
    True
    """

    rng: random.Random

    def sentence(self) -> Marked:
        """One sentence without its full stop, its first word with a capital."""
        forms = (self.simple, self.conditional, self.fronted, self.joined, self.either)
        words = self.rng.choices(forms, weights=(52, 22, 8, 10, 8))[0]()
        (first, tag), *rest = words
        return [(first[0].upper() + first[1:], tag), *rest]

    # words

    def chance(self, share: float) -> bool:
        """True in that share of draws."""
        return self.rng.random() < share

    def stem(self) -> str:
        """An invented word of one or two syllables."""
        size = self.rng.choice((1, 1, 2))
        return "".join(self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) for _ in range(size - 1)) + (
            self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) + self.rng.choice(_CODAS)
        )

    def noun(self, many: bool) -> str:
        """A noun, now and then of two words, now and then one that is a verb elsewhere."""
        one = self.rng.choice(_BASES) if self.chance(0.12) else self.stem() + self.rng.choice(_NOUN_ENDS)
        if self.chance(0.06):
            one = self.gerund()
        one = plural(one) if many else one
        return f"{self.noun(False)} {one}" if self.chance(0.15) else one

    def adjective(self) -> str:
        """An adjective; some are participles, some have a hyphen."""
        draw = self.rng.random()
        if draw < 0.12:
            return self.past()
        if draw < 0.18:
            return f"{self.stem()}-{self.past()}"
        return self.stem() + self.rng.choice(_ADJECTIVE_ENDS)

    def base(self) -> str:
        """A verb as it stands behind `can`."""
        return self.rng.choice(_BASES) if self.chance(0.45) else self.stem() + self.rng.choice(("", "", "ate", "ise"))

    def past(self) -> str:
        """A past form or participle."""
        return self.rng.choice(_PAST) if self.chance(0.3) else self._with(self.base(), "ed")

    def gerund(self) -> str:
        """A form in -ing."""
        return self._with(self.base(), "ing")

    def _with(self, base: str, ending: str) -> str:
        return (base[:-1] if base.endswith("e") and not base.endswith("ee") else base) + ending

    def adverb(self) -> str:
        """An adverb of manner or time."""
        often = ("often", "always", "also", "never", "regularly", "once", "usually", "just", "still")
        return self.rng.choice(often) if self.chance(0.5) else self.stem() + "ly"

    # nouns

    def proper(self) -> str:
        """A name of one to three words, with a digit now and then, or an initial."""
        words = [(self.stem() + self.rng.choice(("", "", "s", "a", "son", "ia", "er"))).capitalize()
                 for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3)))]  # fmt: skip
        if self.chance(0.07):
            words[-1] = self.rng.choice((f"{self.rng.choice('ABLXK')}-{self.rng.randint(1, 2030)}", "B", "X", "NBA"))
        if len(words) > 1 and self.chance(0.1):
            words.insert(1, self.rng.choice(("of", "of the", "the", "of", "and the")))
        return " ".join(words)

    def object(self, inside: int = 0) -> Marked:
        """What stands behind a verb: a name, a noun with what belongs to it, several of them."""
        draw = self.rng.random()
        if draw < 0.2:
            return _plain(("the " if self.chance(0.3) else "") + self.proper())
        many = self.chance(0.5)
        lead = self.rng.choice(("", "", "the", *_SOME)) if many else self.rng.choice(("a", "the", "the", "his", "a"))
        words = _plain(f"{lead} {self.adjective() + ' ' if self.chance(0.35) else ''}{self.noun(many)}")
        if draw > 0.88:
            words += _plain("and" if self.chance(0.7) else "or", self.noun(many))
        elif draw > 0.84:
            words += _plain(",", self.noun(many), ", and" if self.chance(0.5) else "and", self.noun(many))
        if self.chance(0.22) and not inside:
            words += self.prepositional()
        elif self.chance(0.1) and not inside:
            words += self.relative(many)
        return words

    def prepositional(self) -> Marked:
        """A preposition and its noun."""
        if self.chance(0.15):
            return _plain("in", str(self.rng.randint(1800, 2025)))
        if self.chance(0.15):
            return [*_plain(self.rng.choice(("by", "of", "for", "about", "without", "in")), self.gerund()),
                    *self.object(1)]  # fmt: skip
        return [*_plain(self.rng.choice(_PREPOSITIONS)), *self.object(1)]

    def relative(self, many: bool, past: bool = False) -> Marked:
        """A relative clause, its verb marked as inner."""
        phrase = self.phrase(many, past, depth=1)
        return [*_plain(self.rng.choice(("who", "that", "which"))),
                *((word, "inner verb" if tag == "verb" else "other") for word, tag in phrase)]  # fmt: skip

    def name(self) -> tuple[Marked, bool]:
        """(a subject that is named or definite, whether it is plural)."""
        draw = self.rng.random()
        if draw < 0.55:
            return _as("name", self.proper()), False
        if draw < 0.62:
            return _as("name", self.proper(), "and", self.proper()), True
        if draw < 0.68:
            many = self.chance(0.3)
            return _as("name", self.proper(), "'s", self.noun(many)), many
        if draw < 0.74:
            return _as("name", "the", self.proper()), False
        many = self.chance(0.25)
        lead = "one of the" if many and self.chance(0.3) else "the"
        words, many = (
            _as("name", lead, self.adjective() if self.chance(0.3) else "", self.noun(many)),
            lead == "the" and many,
        )
        if self.chance(0.4):
            words += _as("name", self.rng.choice(("of", "of", "in", "from", "to")), *self._bare(self.object(1)))
        elif self.chance(0.15):
            words += [(word, tag if tag == "inner verb" else "name") for word, tag in self.relative(many)]
        return words, many

    def _bare(self, words: Marked) -> tuple[str, ...]:
        return tuple(word for word, _ in words)

    def kind(self) -> tuple[Marked, bool]:
        """(a subject that is spoken of in general, whether it is plural)."""
        draw = self.rng.random()
        if draw < 0.14:
            who = self.rng.choice(("everyone", "anyone", "no one", "nobody", "someone", "nothing", "everything"))
            words, many = _as("kind", who), False
        elif draw < 0.22:
            words, many = _as("kind", self.rng.choice(("people", "those", "all people", "some people"))), True
        else:
            many = self.chance(0.6)
            leads = ("all", "no", "some", "", "", "all the", "not all") if many else ("every", "each", "any", "a", "no")
            old = self.adjective() if self.chance(0.25) else ""
            words = _as("kind", self.rng.choice(leads), old, self.noun(many))
        draw = self.rng.random()
        if draw < 0.25:
            words += self.relative(many)
        elif draw < 0.4:
            words += _as("kind", *self._bare(self.prepositional()))
        elif draw < 0.48:
            behind = self.prepositional() if self.chance(0.7) else self.object(1)
            words += _as("kind", self.gerund() if self.chance(0.5) else self.past(), *self._bare(behind))
        return [(word, "kind" if tag == "other" and word not in ("who", "that", "which") else tag)
                for word, tag in words], many  # fmt: skip

    # verb phrases

    def phrase(self, many: bool, past: bool | None = None, depth: int = 0) -> Marked:
        """A verb phrase; at depth 0 it may be two, joined."""
        gone = self.chance(0.25) if past is None else past
        if depth or self.chance(0.68):
            return self.single(many, gone)
        draw = self.rng.random()
        if draw < 0.3:
            joint = self.rng.choice(("and", "or", "but", ", and"))
            return [*self.single(many, gone), *_as("joins phrases", joint), *self.single(many, gone)]
        if draw < 0.5:
            frame, joint = self.rng.choice((("either", "or"), ("neither", "nor"), ("both", "and")))
            return [*_plain(frame), *self.single(many, gone), *_as("joins phrases", joint), *self.single(many, gone)]
        be = (_WAS if gone else _BE)[many]
        if draw < 0.8:
            frame, joint = self.rng.choice((("either", "or"), ("neither", "nor"), ("both", "and")))
            return [*_as("verb", be), *_plain(frame), *self.complement(many), *_as("joins phrases", joint),
                    *self.complement(many)]  # fmt: skip
        denied = _plain("not") if self.chance(0.25) else []
        joint = self.rng.choice(("and", "or", "but not"))
        return [*_as("verb", be), *denied, *self.complement(many), *_as("joins phrases", joint),
                *self.complement(many)]  # fmt: skip

    def complement(self, many: bool) -> Marked:
        """What stands behind a form of be."""
        draw = self.rng.random()
        if draw < 0.3:
            words = _plain(self.adjective())
            return words + (self.prepositional() if self.chance(0.3) else [])
        if draw < 0.4:
            return self.prepositional()
        if draw < 0.6:
            return [*_plain(self.past()), *self.prepositional()]
        lead = "" if many else self.rng.choice(("a", "a", "an", "the", "one of the"))
        words = _plain(lead, self.adjective() if self.chance(0.3) else "", self.noun(many))
        if self.chance(0.2):
            words += self.relative(many)
        elif self.chance(0.25):
            words += self.prepositional()
        return words

    def single(self, many: bool, past: bool) -> Marked:
        """One verb phrase: be, can, do not, have, or a verb with its object; what comes behind has no verb of it."""
        draw = self.rng.random()
        before = _plain(self.adverb()) if self.chance(0.1) else []
        if draw < 0.32:
            denied = _plain("not") if self.chance(0.15) else []
            return [*_as("verb", (_WAS if past else _BE)[many]), *before, *denied, *self.complement(many)]
        if draw < 0.44:
            modal = self.rng.choice(("can", "will", "must", "could", "should", "would", "may", "might", "cannot"))
            denied = _plain("not") if self.chance(0.25) else []
            return [*_as("verb", modal), *denied, *before, *_plain(self.base()), *self.behind()]
        if draw < 0.54:
            do = "did" if past else {False: "does", True: "do"}[many]
            return [*_as("verb", do), *_plain("not", self.base()), *self.behind()]
        if draw < 0.64:
            have = "had" if past else {False: "has", True: "have"}[many]
            if self.chance(0.4):
                return [*_as("verb", have), *before, *_plain(self.past()), *self.behind()]
            return [*_as("verb", have), *self.object()]
        base = self.base()
        verb = self.past() if past else base if many else third_person(base)
        return [*before, *_as("verb", verb), *self.behind()]

    def behind(self) -> Marked:
        """What stands behind a full verb: nothing, an object, a place, another verb with `to`."""
        draw = self.rng.random()
        if draw < 0.12:
            return []
        if draw < 0.2:
            return _plain(self.adverb())
        if draw < 0.32:
            return [*_plain("to", self.base()), *(self.object() if self.chance(0.7) else self.prepositional())]
        if draw < 0.4:
            return [*_plain(self.gerund()), *self.object()]
        if draw < 0.6:
            return self.prepositional()
        return [*self.object(), *(self.prepositional() if self.chance(0.25) else [])]

    # sentences

    def simple(self) -> Marked:
        """A subject and its verb phrase."""
        subject, many = self.name() if self.chance(0.5) else self.kind()
        both = _plain("both") if many and self.chance(0.15) and any(word == "and" for word, _ in subject) else []
        if both and self.chance(0.5):
            return [*subject, *_as("verb", "are"), *both, *self.complement(True)]
        return [*subject, *both, *self.phrase(many)]

    def conditional(self) -> Marked:
        """`if … then …`, `… if …`, of a name or of anyone."""
        if self.chance(0.5):
            subject, many = self.name()
            again, plural_ = (subject, many) if self.chance(0.4) else (_as("name", "they" if many else "he"), many)
        else:
            who = ("a person", "someone", "people", f"a {self.noun(False)}", f"{self.noun(True)}", "something", "you")
            word = self.rng.choice(who)
            subject, many = _as("kind", word), word in ("people", "you") or not word.startswith(("a ", "some"))
            known = self.rng.choice(("they", "he", "it", "that person", "the person", "she", "he/she"))
            again, plural_ = _as("name", known), known == "they"
        body, head = [*subject, *self.phrase(many)], [*again, *self.phrase(plural_)]
        opener = self.rng.choice(("if", "if", "if", "when"))
        if self.chance(0.2):
            return [*[*subject, *self.phrase(many)], *_as("joins clauses", "if"), *again, *self.phrase(plural_)]
        joint = self.rng.choice((", then", ", then", ",", "then"))
        return [*_plain(opener), *body, *_as("joins clauses", joint), *head]

    def fronted(self) -> Marked:
        """`In 2016, …`, `At the party, …`, `After …, …`."""
        words = self.prepositional()
        subject, many = self.name() if self.chance(0.7) else self.kind()
        return [*_as("fronted", *self._bare(words), ","), *subject, *self.phrase(many)]

    def joined(self) -> Marked:
        """Two clauses with subjects of their own."""
        first, many = self.name() if self.chance(0.8) else self.kind()
        second, more = (_as("name", "they" if many else "he"), many) if self.chance(0.4) else self.name()
        joint = self.rng.choice((", and", "and", "or", "but", ", but"))
        return [*first, *self.phrase(many, depth=1), *_as("joins clauses", joint), *second, *self.phrase(more, depth=1)]

    def either(self) -> Marked:
        """`Either A or B`, of clauses; `A either P or he Q`."""
        first, many = self.name()
        if self.chance(0.5):
            second, more = self.name()
            return [*_plain("either"), *first, *self.phrase(many, depth=1), *_as("joins clauses", "or"), *second,
                    *self.phrase(more, depth=1)]  # fmt: skip
        again = _as("name", "they" if many else self.rng.choice(("he", "she", "it")))
        return [*first, *_plain("either"), *self.phrase(many, depth=1), *_as("joins phrases", ", or"), *again,
                *self.phrase(many, depth=1)]  # fmt: skip
