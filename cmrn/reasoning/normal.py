"""Conjunctive normal form of formulas without quantifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmrn.reasoning.limits import ExplosionError
from cmrn.reasoning.theory import And, Exists, ForAll, Formula, Iff, Implies, Literal, Not, Or, Xor

__all__ = ["ClauseForm", "clause_forms", "conjunctive", "conjuncts"]

Clause = tuple[Literal, ...]
MOST_CLAUSES = 4096


@dataclass(frozen=True)
class ClauseForm:
    """A disjunction of literals, written as a rule: premises that must all hold, and the literals it concludes."""

    premises: Clause
    heads: Clause


def conjuncts(formula: Formula) -> tuple[Formula, ...]:
    """The formulas that a formula asserts side by side: And, and ForAll over And, taken apart."""
    if isinstance(formula, And):
        return tuple(inner for part in formula.parts for inner in conjuncts(part))
    if isinstance(formula, ForAll):
        return tuple(ForAll(formula.variables, part) for part in conjuncts(formula.part))
    return (formula,)


def clause_forms(matrix: Formula) -> tuple[ClauseForm, ...]:
    """The clauses of a formula without quantifiers; those of a rule keep its body apart from its head."""
    match matrix:
        case And(parts):
            return tuple(form for part in parts for form in clause_forms(part))
        case Iff(left, right):
            return clause_forms(Implies(left, right)) + clause_forms(Implies(right, left))
        case Implies(body, head):
            denied = conjunctive(body, False)
            bodies = [tuple(literal.negated() for literal in clause) for clause in denied]
            return tuple(ClauseForm(premises, heads) for heads in conjunctive(head) for premises in bodies)
    return tuple(ClauseForm((), clause) for clause in conjunctive(matrix))


def conjunctive(formula: Formula, positive: bool = True) -> tuple[Clause, ...]:
    """The formula (or its negation) as a conjunction of disjunctions of literals.

    Raises:
        ExplosionError: it has more than 4,096 clauses.
    """
    match formula:
        case Literal():
            return (((formula if positive else formula.negated()),),)
        case Not(part):
            return conjunctive(part, not positive)
        case And(parts) | Or(parts):
            forms = [conjunctive(part, positive) for part in parts]
            return _all(forms) if isinstance(formula, And) == positive else _any(forms)
        case Implies(body, head):
            forms = [conjunctive(body, not positive), conjunctive(head, positive)]
            return _any(forms) if positive else _all(forms)
        case Iff(left, right):
            return conjunctive(Xor((left, right)), not positive)
        case Xor(parts):
            return conjunctive(_exactly_one(parts) if positive else _not_exactly_one(parts))
        case ForAll() | Exists():
            raise AssertionError("normal forms are of formulas without quantifiers")


def _all(forms: Iterable[tuple[Clause, ...]]) -> tuple[Clause, ...]:
    return _reduce(clause for form in forms for clause in form)


def _any(forms: Sequence[tuple[Clause, ...]]) -> tuple[Clause, ...]:
    product: tuple[Clause, ...] = ((),)
    for form in forms:
        if len(product) * len(form) > MOST_CLAUSES:
            raise ExplosionError(f"a premise has more than {MOST_CLAUSES:,} clauses", hint="write it as several rules")
        product = _reduce(left + right for left in product for right in form)
    return product


def _exactly_one(parts: tuple[Formula, ...]) -> Formula:
    pairs = (Or((Not(a), Not(b))) for i, a in enumerate(parts) for b in parts[i + 1 :])
    return And((Or(parts), *pairs))


def _not_exactly_one(parts: tuple[Formula, ...]) -> Formula:
    """None, or with any one some other."""
    return And(tuple(Or((Not(part), *parts[:i], *parts[i + 1 :])) for i, part in enumerate(parts)))


def _reduce(clauses: Iterable[Clause]) -> tuple[Clause, ...]:
    """Repeated literals and repeated clauses go."""
    kept: dict[frozenset[Literal], Clause] = {}
    for clause in clauses:
        unique = tuple(dict.fromkeys(clause))
        kept.setdefault(frozenset(unique), unique)
    return tuple(kept.values())
