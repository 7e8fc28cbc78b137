"""What is asked: whether something holds, who or what, which of several, and what follows about a premise."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cmrn.reasoning.lexicon import BE, MODALS, PREPOSITIONS, third_person, word_set
from cmrn.reasoning.phrases import Parses
from cmrn.reasoning.segment import Token
from cmrn.reasoning.sentences import Clauses
from cmrn.reasoning.syntax import Clause, Denied, Negated, NounPhrase, Relation, Simple, VerbPhrase
from cmrn.reasoning.verbs import past
from cmrn.reasoning.vocabulary import Vocabulary

__all__ = ["ANY", "Asked", "ask", "lead_words", "preamble"]

ANY = "what"
"""The name that stands for what a value question asks for."""
_PREAMBLE = re.compile(
    r"^(?:based on .*?, |given .*?, )?(?:is|determine (?:if|whether)|decide (?:if|whether)) (?:the )?"
    r"(?:following|this) (?:statement|claim|conclusion|sentence)(?: is)? (?:true|correct)\b.*?$|"
    r"^(?:true|false)(?: ?,)? or (?:false|unknown|uncertain)(?: ?,? or \w+)?$"
)
_LEAD = re.compile(
    r"^(?:(?:based on .*? , |given .*? , )?(?:is )?(?:the )?following "
    r"(?:statement|claim|conclusion|sentence) true .*? [:?]|"
    r"(?:true|false)(?: ,)? (?:or )?(?:false|true)?(?: ,)?(?: or \w+)?(?: \?)? :|"
    r"(?:query|question|conclusion|hypothesis|claim|prove|"
    r"show|statement)(?: that)? :|(?:prove|show|determine whether|determine if|is it true that|is it the case that|"
    r"can we conclude that|does it follow that|do we know that|can we infer that)) "
)
_META = re.compile(
    r"^what (?:can|could|may|do|does|should|must) (?:we|you|i|one|be) ?"
    r"(?:conclude|concluded|infer|inferred|deduce|deduced|say|"
    r"said|derive|derived)?(?: about (.+))?$|^what follows(?: about (.+))?$"
)
_HOLDS = re.compile(
    r"^(?:is|does|can|could) (.+? (?:premise|statement|assumption|claim|rule)) (?:true|correct|hold|be true|valid)$"
)
_NUMBERED = {"initial": 1, "first": 1, "original": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "last": -1,
             "final": -1}  # fmt: skip
_COLORS = word_set("red green blue white black brown yellow orange purple pink gray grey")


@dataclass(frozen=True)
class Asked:
    """A question as a tree. premise: which one a meta question is about, counted from 1, -1 the last, 0 all.

    value: the tree's name `what` is asked for. options: trees among which to choose, each with its words.
    """

    kind: str
    trees: tuple[Clause, ...] = ()
    options: tuple[tuple[str, Clause], ...] = ()
    premise: int = 0
    subject: str | None = None


def preamble(text: str) -> str | None:
    """Whether a sentence only announces what comes: "truth" or "choice"; None where it says something itself."""
    low = re.sub(r"\s+", " ", text.lower().replace(",", ", ").strip())
    low = re.sub(r" ,", ",", re.sub(r"\s+", " ", low))
    if re.match(
        r"^(?:which|what) (?:one )?(?:of the following|of these|statement)\b.*(?:true|correct|follows?|holds?)", low
    ):
        return "choice"
    return "truth" if _PREAMBLE.match(low) else None


def lead_words(tokens: Sequence[Token]) -> int:
    """How many words, such as `true or false:`, stand before a statement that is asked about; 0 where none do."""
    lead = _LEAD.match(" ".join(token.lower for token in tokens) + " ")
    return len(lead[0].split()) if lead else 0


def ask(tokens: Sequence[Token], vocabulary: Vocabulary, marked: bool) -> tuple[Asked | None, int]:
    """The question in the words, and the furthest word read; marked: whether a question mark ends them."""
    text = " ".join(token.lower for token in tokens)
    lead = lead_words(tokens)
    if lead:
        rest = tokens[lead:]
        parser = Clauses(rest, vocabulary)
        trees = parser.sentence() if rest else []
        return (Asked("truth", tuple(trees)) if trees else None), len(tokens) - len(rest) + parser.far
    meta = _META.match(text) or _HOLDS.match(text)
    if meta:
        return _meta(next((group for group in meta.groups() if group), None)), 0
    reader = _Asker(tokens, vocabulary)
    found = reader.question()
    if found is None and marked:
        trees = reader.sentence()
        found = Asked("truth", tuple(trees)) if trees else None
    return found, reader.far


def _meta(about: str | None) -> Asked | None:
    if about is None or about in ("this", "that", "these premises", "the premises", "this situation", "all this"):
        return Asked("meta")
    numbered = re.match(r"(?:the )?(\w+) (?:premise|statement|assumption|claim|rule|sentence)$", about)
    if numbered and numbered[1] in _NUMBERED:
        return Asked("meta", premise=_NUMBERED[numbered[1]])
    counted = re.match(r"(?:premise|statement|rule|claim) (\d+)$", about)
    if counted:
        return Asked("meta", premise=int(counted[1]))
    if len(about.split()) <= 2 and not about.startswith(("the ", "a ", "all ")):
        return Asked("meta", subject=about)
    return None


class _Asker(Clauses):
    """Reads questions, whose verb stands before the subject or whose subject is asked for."""

    def question(self) -> Asked | None:
        """The question, None where the words are none."""
        word = self.word(0)
        if word in ("who", "what", "which", "where"):
            return self._asks_what()
        if word not in BE and word not in MODALS and word not in ("does", "do", "did"):
            return None
        trees = list(self._yes_no(0))
        chosen = self._choice(trees)
        if chosen is not None:
            return chosen
        return Asked("truth", tuple(dict.fromkeys(trees))) if trees else None

    def _yes_no(self, at: int) -> list[Clause]:
        word = self.word(at)
        if word == "is" and self.word(at + 1) == "it":
            denial = self._truth(at + 2)
            if denial is not None:
                here, positive = denial
                return [tree if positive else Denied(tree) for tree, end in self.joined(here) if self._done(end)]
        if word in ("is", "are", "was", "were") and self.word(at + 1) == "there":
            return [Simple(one, None) for one, end in self.single(at + 2) if self._done(end)]
        found: list[Clause] = []
        for subject, middle in self.noun_phrase(at + 1):
            number = {"is": False, "was": False, "does": False, "are": True, "were": True, "do": True}.get(word)
            if number is not None and number != subject.plural and subject.kind not in ("nor", "or", "xor"):
                continue
            rest: Parses[VerbPhrase] = []
            denied = self.word(middle) == "not"
            here = middle + denied
            if word in ("is", "are", "was", "were"):
                rest = self.after_be(here, word in ("are", "were"))
            elif word in ("does", "do", "did"):
                rest = self._done_by(here, past if word == "did" else third_person)
            elif word in MODALS:
                rest = self.after_modal(here, word)
            for phrase, end in rest:
                if self._done(end):
                    found.append(Simple(subject, Negated(phrase) if denied else phrase))
        return found

    def _done_by(self, at: int, form: Callable[[str], str]) -> Parses[VerbPhrase]:
        """What follows `does Bob` or `did Bob`, its verb in the form that a statement has it in."""
        return self.coordinated(at, lambda here: self.verb(here, form))

    def _choice(self, trees: list[Clause]) -> Asked | None:
        """`Is Bob a cat or a dog?` asks which."""
        for tree in trees:
            phrase = tree.phrase if isinstance(tree, Simple) else None
            if phrase is not None and getattr(phrase, "operator", "") == "or" and self.word(0) == "is":
                parts = phrase.parts  # type: ignore[union-attr]
                subject = tree.subject  # type: ignore[union-attr]
                if subject.kind in ("name", "the", "pronoun"):
                    return Asked("choice", (tree,), tuple((_words(part), Simple(subject, part)) for part in parts))
        return None

    def _asks_what(self) -> Asked | None:
        word, after = self.word(0), self.word(1)
        gap = NounPhrase("asked", name=ANY)
        trees: list[Clause] = []
        if word == "where" and after in ("is", "are"):
            trees = [Simple(one, Relation("is in", (gap,))) for one, end in self.single(2) if self._done(end)]
        elif word in ("what", "which") and after in ("color", "colour"):
            return self._asks_color()
        elif after in ("is", "are", "was"):
            trees = [Simple(gap, phrase) for phrase, end in self.after_be(2, False) if self._done(end)]
            trees += self._gap_behind_be(gap)
        elif after in ("does", "do"):
            for subject, middle in self.single(2):
                verb = self.word(middle)
                tail = self.word(middle + 1)
                if self.is_open(middle) and self._done(middle + 1):
                    trees.append(Simple(subject, Relation(third_person(verb), (gap,))))
                elif self.is_open(middle) and tail in PREPOSITIONS and self._done(middle + 2):
                    trees.append(Simple(subject, Relation(f"{third_person(verb)} {tail}", (gap,))))
        elif word in ("who", "what"):
            trees = [Simple(gap, phrase) for phrase, end in self.verb_phrase(1, False) if self._done(end)]
        return Asked("value", tuple(dict.fromkeys(trees))) if trees else None

    def _gap_behind_be(self, gap: NounPhrase) -> list[Clause]:
        """`what is Gertrude afraid of`."""
        found: list[Clause] = []
        for subject, middle in self.single(2):
            if self.is_open(middle) and self.word(middle + 1) in PREPOSITIONS and self._done(middle + 2):
                found.append(Simple(subject, Relation(f"is {self.word(middle)} {self.word(middle + 1)}", (gap,))))
        return found

    def _asks_color(self) -> Asked | None:
        from cmrn.reasoning.syntax import Property

        if self.word(2) not in ("is", "are"):
            return None
        colors = sorted(_COLORS & self.vocabulary.seen)
        for subject, end in self.single(3):
            if self._done(end) and subject.kind in ("name", "the"):
                options = tuple((color, Simple(subject, Property(f"is {color}"))) for color in colors)
                return Asked("color", (), options)
        return None


def _words(phrase: VerbPhrase) -> str:
    predicate = getattr(phrase, "predicate", None)
    if predicate is not None:
        return str(predicate).removeprefix("is ").removeprefix("does ")
    noun = getattr(phrase, "noun", None)
    if noun is not None:
        return " ".join([*noun.adjectives, noun.head or "thing"])
    return "not " + _words(phrase.part) if isinstance(phrase, Negated) else "or"
