"""Formulas in English, always the same way: what proofs and revisions are written in."""

from __future__ import annotations

from cmrn.reasoning.lexicon import MODALS, indefinite, plural, verb_bases
from cmrn.reasoning.theory import (
    And,
    Atom,
    ForAll,
    Formula,
    Iff,
    Implies,
    Literal,
    Not,
    Or,
    Term,
    Variable,
    Xor,
)

__all__ = ["say"]


def say(formula: Formula) -> str:
    """The formula as one English clause, without a full stop.

    >>> from cmrn.reasoning.theory import Constant
    >>> say(Literal(Atom("can fly", (Constant("Tweety"),)), positive=False))
    'Tweety cannot fly'
    """
    if isinstance(formula, Literal):
        return _literal(formula)
    if isinstance(formula, And):
        return " and ".join(_inner(part) for part in formula.parts)
    if isinstance(formula, Or):
        return " or ".join(_inner(part) for part in formula.parts)
    if isinstance(formula, Xor):
        return "either " + " or ".join(_inner(part) for part in formula.parts) + ", exactly one"
    if isinstance(formula, Not):
        return f"it is not the case that {say(formula.part)}"
    if isinstance(formula, Implies):
        return f"if {say(formula.body)} then {say(formula.head)}"
    if isinstance(formula, Iff):
        return f"{say(formula.left)} if and only if {say(formula.right)}"
    if isinstance(formula, ForAll):
        return _kinds(formula) or f"for all {_list(formula.variables)}, {say(formula.part)}"
    return f"there is {_list(formula.variables)} such that {say(formula.part)}"


def _inner(formula: Formula) -> str:
    text = say(formula)
    return text if isinstance(formula, Literal) else f"({text})"


def _list(variables: tuple[Variable, ...]) -> str:
    return " and ".join(variable.name for variable in variables)


def _term(term: Term) -> str:
    return term.name


def _literal(literal: Literal) -> str:
    atom = literal.atom
    if not atom.arguments:
        return atom.predicate if literal.positive else f"it is not the case that {atom.predicate}"
    subject = _term(atom.arguments[0])
    return f"{subject} {_predicate(atom, literal.positive)}"


def _predicate(atom: Atom, positive: bool, many: bool = False) -> str:
    """What is said of the first argument, with the others filled in."""
    first, _, rest = atom.predicate.partition(" ")
    others = [_term(term) for term in atom.arguments[1:]]
    be = "are" if many else "is"
    if first == "is":
        return _filled(f"{be}{'' if positive else ' not'} {rest}", others)
    if first in MODALS:
        verb = first if positive else "cannot" if first == "can" else f"{first} not"
        return _filled(f"{verb} {rest}", others)
    if first == "does":
        return _verb(rest, positive, many)
    if not others:
        noun = plural(atom.predicate) if many else indefinite(atom.predicate)
        return f"{be}{'' if positive else ' not'} {noun}"
    base = (verb_bases(first) or (first,))[0]
    phrase = f"{base} {rest}".strip()
    if not verb_bases(first):
        return _filled(atom.predicate if positive else f"did not {atom.predicate}", others)
    shown = (phrase if many else atom.predicate) if positive else f"{'do' if many else 'does'} not {phrase}"
    return _filled(shown, others)


def _verb(base: str, positive: bool, many: bool) -> str:
    from cmrn.reasoning.lexicon import third_person

    if base.endswith("ed"):
        return base if positive else f"did not {base}"
    if positive:
        return base if many else third_person(base)
    return f"{'do' if many else 'does'} not {base}"


def _filled(phrase: str, others: list[str]) -> str:
    """The phrase with its further arguments: the first where `_` stands, the rest behind."""
    if "_" in phrase and others:
        phrase = phrase.replace("_", others[0], 1)
        others = others[1:]
    return " ".join([phrase, *others])


def _kinds(formula: ForAll) -> str | None:
    """`all birds can fly` for a rule about one kind, None for any other."""
    rule = formula.part
    if not isinstance(rule, Implies) or len(formula.variables) != 1:
        return None
    body = list(rule.body.parts) if isinstance(rule.body, And) else [rule.body]
    head = rule.head
    if not isinstance(head, Literal) or head.atom.arguments[:1] != formula.variables:
        return None
    variable = formula.variables[0]
    if variable in head.atom.arguments[1:]:
        return None
    nouns, adjectives, excluded = [], [], []
    for part in body:
        if not isinstance(part, Literal) or part.atom.arguments != (variable,):
            return None
        first, _, rest = part.atom.predicate.partition(" ")
        if first == "is" and part.positive:
            adjectives.append(rest)
        elif first in MODALS or first in ("is", "does"):
            return None
        elif part.positive:
            nouns.append(part.atom.predicate)
        else:
            excluded.append(part.atom.predicate)
    if len(nouns) > 1 or (not nouns and not adjectives) or (excluded and not nouns):
        return None
    named = plural(nouns[0]) if nouns else "things"
    whole = " ".join([", ".join(adjectives), named]).strip()
    but = f" except {' and '.join(plural(noun) for noun in excluded)}" if excluded else ""
    return f"all {whole}{but} {_predicate(head.atom, head.positive, many=True)}"
