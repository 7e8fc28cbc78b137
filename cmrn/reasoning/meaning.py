"""From trees to formulas: quantifiers, what pronouns refer to, and the world of discourse.

Subjects take scope over what follows them, and `some` over the denial before it. `any` is at least one where something
is denied, asked or limited by it, and every one elsewhere. In `if` clauses an indefinite (`something`, `a cat`, bare
plurals) is any individual, and a pronoun in the other clause is that one. `A bird is …` and `birds are …` speak of
every bird.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cmrn.reasoning.formulas import conjoin, deny, free_variables
from cmrn.reasoning.lexicon import IRREGULAR_VERBS, plural
from cmrn.reasoning.syntax import (
    Clause,
    Conditional,
    Denied,
    Group,
    Joined,
    Kind,
    Negated,
    Nominal,
    NounPhrase,
    Property,
    Relation,
    Simple,
    VerbPhrase,
)
from cmrn.reasoning.theory import (
    And,
    Atom,
    Constant,
    Exists,
    ForAll,
    Formula,
    Iff,
    Implies,
    Literal,
    Or,
    Term,
    Variable,
    Xor,
)
from cmrn.reasoning.vocabulary import Vocabulary

__all__ = ["Meaning", "Referent", "RejectedError"]

_NAMES = ("x", "y", "z", "u", "v", "w")
EITHER = "“either … or” is read as exactly one of them"
EVERYONE = "“people” and “things” without more are whatever is spoken of"
Say = Callable[[Term], Formula]


class RejectedError(Exception):
    """A tree that has no one meaning; at: the index of the word, hint: what would be clear."""

    def __init__(self, at: int, hint: str) -> None:
        super().__init__(hint)
        self.at = at
        self.hint = hint


@dataclass(frozen=True)
class Referent:
    """What a pronoun may stand for. human: None where nothing says so; noun: what it was called."""

    term: Term
    human: bool | None
    noun: str | None
    plural: bool = False


@dataclass
class Meaning:
    """Reads one sentence's tree. earlier: referents of the sentence before; assumptions: what reading it took.

    asks: whether the sentence is a question.
    """

    vocabulary: Vocabulary
    earlier: tuple[Referent, ...] = ()
    assumptions: list[str] = field(default_factory=list)
    spoken: list[Referent] = field(default_factory=list)
    asks: bool = False
    _used: int = 0
    _open: list[tuple[Variable, list[Formula]]] | None = None
    _one: bool = False

    def formula(self, tree: Clause) -> Formula:
        """The formula of a sentence.

        Raises:
            RejectedError: a pronoun has no or several referents, or a phrase has no meaning here.
        """
        with self._any_is_one(self.asks):
            return self._clause(tree)

    @contextmanager
    def _any_is_one(self, one: bool = True) -> Iterator[None]:
        """Within it, `any` is at least one; it stays so where it already was."""
        outer, self._one = self._one, self._one or one
        try:
            yield
        finally:
            self._one = outer

    def _clause(self, tree: Clause) -> Formula:
        if isinstance(tree, Simple):
            return self._simple(tree)
        if isinstance(tree, Denied):
            return deny(self._scoped(tree.part))
        if isinstance(tree, Group):
            parts = tuple(self._clause(part) for part in tree.parts)
            if tree.operator == "xor":
                self._assume(EITHER)
                return Xor(parts)
            return And(parts) if tree.operator == "and" else Or(parts)
        return self._conditional(tree)

    def _scoped(self, tree: Clause) -> Formula:
        """A clause whose indefinites stay inside it."""
        outer, self._open = self._open, None
        try:
            with self._any_is_one():
                return self._clause(tree)
        finally:
            self._open = outer

    def _conditional(self, tree: Conditional) -> Formula:
        if tree.head_first and isinstance(tree.head, Simple) and tree.head.subject.kind in ("some", "a", "any"):
            whole = self._backwards(tree)
            if whole is not None:
                return whole
        return self._implied(tree)

    def _backwards(self, tree: Conditional) -> Formula | None:
        """`Something is red if it is hot`, where the condition speaks of the subject before it; else None."""
        spoken, used, opened = list(self.spoken), self._used, self._open
        self._open = []
        try:
            head = self._clause(tree.head)
            bound, self._open = self._open, None
            body = self._clause(tree.body)
            variables = tuple(variable for variable, _ in bound)
            limits = [limit for _, limits in bound for limit in limits]
            if variables and set(variables) <= set(free_variables(body)):
                return ForAll(variables, Implies(conjoin([*limits, *_flat(body)]), head))
        except RejectedError:
            pass
        finally:
            self._open = opened
        self.spoken, self._used = spoken, used
        return None

    def _implied(self, tree: Conditional) -> Formula:
        outer, self._open = self._open, []
        denied = isinstance(tree.body, Denied)
        body = self._clause(tree.body.part) if isinstance(tree.body, Denied) else self._clause(tree.body)
        bound = self._open
        self._open = None
        head = self._clause(tree.head)
        self._open = outer
        variables = tuple(variable for variable, _ in bound)
        limits = [limit for _, limits in bound for limit in limits]
        if denied:
            body = deny(body)
        whole: Formula
        if tree.both:
            inner: Formula = Iff(body, head)
            whole = Implies(conjoin(limits), inner) if limits else inner
        else:
            whole = Implies(conjoin([*limits, *_flat(body)]), head)
        return ForAll(variables, whole) if variables else whole

    def _simple(self, tree: Simple) -> Formula:
        subject = tree.subject
        if tree.phrase is None:
            if subject.kind == "no":
                with self._any_is_one():
                    return deny(self._quantify("some", subject, lambda term: None))
            return self._quantify("some", subject, lambda term: None)
        phrase = tree.phrase
        if subject.kind == "bare" and self._open is not None:
            return self._about(NounPhrase("some", subject.noun, plural=True, at=subject.at), phrase)
        return self._about(subject, phrase)

    def _about(self, subject: NounPhrase, phrase: VerbPhrase) -> Formula:
        if subject.kind == "a" and self._open is None and not _is_past(phrase):
            subject = NounPhrase("every", subject.noun, plural=subject.plural, at=subject.at)
        return self._apply(subject, lambda term: self._phrase(phrase, term))

    def _apply(self, subject: NounPhrase, say: Say) -> Formula:
        """What is said, of a noun phrase."""
        kind = subject.kind
        if kind in ("and", "or", "xor", "nor"):
            parts = tuple(self._apply(part, say) for part in subject.parts)
            if kind == "nor":
                return And(tuple(deny(part) for part in parts))
            if kind == "xor":
                self._assume(EITHER)
                return Xor(parts)
            return And(parts) if kind == "and" else Or(parts)
        if kind in ("name", "the", "asked"):
            return say(self._named(subject))
        if kind in ("pronoun", "that"):
            return say(self._resolve(subject))
        if kind in ("every", "bare"):
            return self._quantify("every", subject, say)
        if kind == "any":
            return self._quantify("some" if self._open is not None or self._one else "every", subject, say)
        if kind in ("some", "a", "no", "not every", "only"):
            return self._quantify("some" if kind == "a" else kind, subject, say)
        raise RejectedError(subject.at, "a name, or a noun with all, every, some or no")

    def _named(self, subject: NounPhrase) -> Term:
        if subject.kind == "asked":
            return Variable(subject.name)
        if subject.kind == "the":
            bound = [one for one in self.spoken if isinstance(one.term, Variable) and one.noun == subject.name]
            if bound:
                raise RejectedError(subject.at, f"“that {subject.name}” or a pronoun")
            constant = Constant(f"the {subject.name}")
            noun: str | None = subject.name
        else:
            constant = Constant(subject.name)
            noun = None
        self._mention(Referent(constant, None, noun))
        return constant

    def _mention(self, referent: Referent) -> None:
        if all(one.term != referent.term for one in self.spoken):
            self.spoken.append(referent)

    def _resolve(self, subject: NounPhrase) -> Term:
        """The one individual that a pronoun can stand for."""
        things = [one for one in self.earlier if one.noun is not None or subject.name != "it"]
        for among in (self.spoken, things):
            fitting = [one for one in among if _fits(subject, one)]
            bound = [one for one in fitting if isinstance(one.term, Variable)]
            chosen = bound or fitting
            people = [one for one in chosen if one.human]
            if len(people) == 1 and subject.name != "it" and subject.kind == "pronoun":
                chosen = people
            if len({one.term for one in chosen}) == 1:
                return chosen[0].term
            if chosen:
                names = " or ".join(_shown(one) for one in chosen)
                raise RejectedError(subject.at, f"{names}, by name")
        raise RejectedError(subject.at, "a name in place of the pronoun")

    def _quantify(self, kind: str, subject: NounPhrase, say: Callable[[Term], Formula | None]) -> Formula:
        noun = subject.noun
        if noun is None:
            raise RejectedError(subject.at, "a noun")
        variable = Variable(_NAMES[self._used % 6] + ("" if self._used < 6 else str(self._used // 6)))
        self._used += 1
        opened = self._open if kind == "some" else None
        human = noun.human if noun.head in (None, "person", "thing") else None
        referent = Referent(variable, human, noun.head or ("person" if noun.human else "thing"), subject.plural)
        if opened is not None:
            opened.append((variable, []))
            slot = opened[-1][1]
            slot.extend(self._nominal(noun, variable))
            self._mention(referent)
            return say(variable) or conjoin(slot)
        before = list(self.spoken)
        outer, self._open = self._open, None
        self._mention(referent)
        with self._any_is_one(kind in ("every", "no", "not every")):
            limits = self._nominal(noun, variable)
        with self._any_is_one(kind in ("no", "not every", "only")):
            said = say(variable)
        self._open = outer
        self.spoken = [one for one in self.spoken if one in before or isinstance(one.term, Constant)]
        return self._closed(kind, variable, limits, said, noun)

    def _closed(
        self, kind: str, variable: Variable, limits: list[Formula], said: Formula | None, noun: Nominal
    ) -> Formula:
        if not limits and noun.head is None:
            self._assume(EVERYONE)
        if said is None:
            if not limits:
                raise RejectedError(0, "what there is")
            return Exists((variable,), conjoin(limits))
        if kind == "some":
            return Exists((variable,), conjoin([*limits, *_flat(said)]))
        if kind == "only":
            return ForAll((variable,), Implies(said, conjoin(limits)))
        if kind == "no":
            said = deny(said)
        whole = ForAll((variable,), Implies(conjoin(limits), said) if limits else said)
        return deny(whole) if kind == "not every" else whole

    def _nominal(self, noun: Nominal, term: Term) -> list[Formula]:
        """What a noun with its modifiers says of a term."""
        parts: list[Formula] = []
        adjectives: list[Formula] = [Literal(Atom(f"is {word}", (term,))) for word in noun.adjectives]
        parts += [Or(tuple(adjectives))] if noun.joined == "or" and len(adjectives) > 1 else adjectives
        if noun.head is not None:
            parts.append(Literal(Atom(noun.head, (term,))))
        for clause in noun.clauses:
            parts += _flat(self._phrase(clause, term))
        return parts

    def _phrase(self, phrase: VerbPhrase, term: Term) -> Formula:
        if isinstance(phrase, Property):
            return Literal(Atom(phrase.predicate, (term,)))
        if isinstance(phrase, Kind):
            parts = self._nominal(phrase.noun, term)
            if not parts:
                raise RejectedError(0, "a kind of thing")
            return conjoin(parts)
        if isinstance(phrase, Negated):
            return self._denied(phrase.part, term)
        if isinstance(phrase, Joined):
            made = tuple(self._phrase(part, term) for part in phrase.parts)
            if phrase.operator == "xor":
                self._assume(EITHER)
                return Xor(made)
            return And(made) if phrase.operator == "and" else Or(made)
        return self._relation(phrase, term, ())

    def _denied(self, phrase: VerbPhrase, term: Term) -> Formula:
        """`does not like a cat` likes none, `does not like some cat` leaves one out."""
        outer, self._open = self._open, None
        try:
            with self._any_is_one():
                if isinstance(phrase, Relation) and phrase.objects[0].kind == "some":
                    return self._apply(phrase.objects[0], lambda thing: deny(self._relation(phrase, term, (thing,))))
                return deny(self._phrase(phrase, term))
        finally:
            self._open = outer

    def _relation(self, phrase: Relation, subject: Term, filled: tuple[Term, ...]) -> Formula:
        if len(filled) == len(phrase.objects):
            arguments = (*filled, subject) if phrase.passive else (subject, *filled)
            return Literal(Atom(phrase.predicate, arguments))
        thing = phrase.objects[len(filled)]
        if thing.kind in ("and", "or") and any(part.kind == "bare" for part in thing.parts):
            said = []
            for part in thing.parts:
                objects = (*phrase.objects[: len(filled)], part, *phrase.objects[len(filled) + 1 :])
                said.append(self._relation(replace(phrase, objects=objects), subject, filled))
            return And(tuple(said)) if thing.kind == "and" else Or(tuple(said))
        if thing.kind in ("bare", "count"):
            noun = thing.noun
            if noun is None or noun.head is None or noun.clauses:
                raise RejectedError(thing.at, "all, some or no before the noun")
            words = [*filter(None, [thing.name]), *noun.adjectives, plural(noun.head)]
            return self._relation(phrase, subject, (*filled, Constant(" ".join(words))))
        return self._apply(thing, lambda term: self._relation(phrase, subject, (*filled, term)))

    def _assume(self, text: str) -> None:
        if text not in self.assumptions:
            self.assumptions.append(text)


def _flat(formula: Formula) -> list[Formula]:
    return list(formula.parts) if isinstance(formula, And) else [formula]


def _fits(pronoun: NounPhrase, referent: Referent) -> bool:
    word = pronoun.name
    if pronoun.kind == "that":
        return referent.noun == word and isinstance(referent.term, Variable)
    if word in ("it",):
        return referent.human is not True and not referent.plural
    if word in ("he", "she", "him", "her"):
        return referent.human is not False and not referent.plural
    return True


def _shown(referent: Referent) -> str:
    return referent.term.name if isinstance(referent.term, Constant) else f"the {referent.noun}"


def _is_past(phrase: VerbPhrase) -> bool:
    """Whether a phrase tells of one past event, so that `a man` in front of it is some man."""
    if isinstance(phrase, Negated):
        return _is_past(phrase.part)
    if isinstance(phrase, Joined):
        return any(_is_past(part) for part in phrase.parts)
    if isinstance(phrase, Property | Relation):
        verb = phrase.predicate.removeprefix("does ").partition(" ")[0]
        return verb.endswith("ed") or (verb in IRREGULAR_VERBS and not verb.endswith("s"))
    return False
