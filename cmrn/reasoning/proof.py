"""Steps of a proof, and a checker of them that knows nothing of how they were found.

A step concludes a formula from premises: ids of statements, of assumptions, or of earlier steps. Operations:
  "suppose"        any formula, for the sake of argument;
  "contradiction"  premises (what was supposed, ids that cannot all hold…): it does not hold, and is supposed no longer;
  "closed world"   an atom that no rule gives does not hold (only where the world is closed);
  "example"        "some x is …" from one that is, or "not every x is …" from one that is not;
  "all cases"      what holds of all individuals of a closed world, case by case;
  all others       what the premises entail, a premise with variables taken at `instance`, one of its instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal as Either

from cmrn.errors import CMRNError
from cmrn.reasoning.closed import Closed, over_individuals
from cmrn.reasoning.formulas import atoms, children, constants, expand_equivalences, has_quantifier, prenex
from cmrn.reasoning.normal import conjuncts
from cmrn.reasoning.theory import (
    And,
    Constant,
    Exists,
    ForAll,
    Formula,
    Iff,
    Implies,
    Literal,
    Not,
    Or,
    Statement,
    Term,
    Variable,
    Xor,
)

__all__ = ["Answer", "Contradiction", "ProofError", "Revision", "Step", "check", "entails", "matches"]


@dataclass(frozen=True)
class Step:
    """One inference; `conclusion` is `formula` in English, `instance` the case of a general premise that was used."""

    id: str
    operation: str
    premises: tuple[str, ...]
    conclusion: str
    degree: float
    formula: Formula
    instance: Formula | None = None


class ProofError(CMRNError):
    """A step does not follow; `where` is its id."""


def check(
    steps: Sequence[Step],
    given: Mapping[str, tuple[Formula, float]],
    asked: Sequence[Formula] = (),
    closed: Closed | None = None,
) -> None:
    """Return quietly only if every step follows from statements given (with degrees) and from earlier steps.

    `asked` are the questions' formulas: what they name is no witness. `closed` is what holds where the world is
    closed. The last step rests on no supposition.

    Raises:
        ProofError: a step does not follow; names it.
    """
    known = {name: (formula, degree, frozenset[str]()) for name, (formula, degree) in given.items()}
    named = {constant for formula in (*asked, *(f for f, _ in given.values())) for constant in constants(formula)}
    witnesses: dict[Constant, object] = {}
    resting: frozenset[str] = frozenset()
    for step in steps:
        if step.id in known or not set(step.premises) <= known.keys():
            raise ProofError(f"{step.id} rests on what is not known before it", where=step.id)
        cited = [known[name] for name in step.premises]
        resting = frozenset[str]().union(*(entry[2] for entry in cited))
        formulas: list[Formula] = [entry[0] for entry in cited]
        degree = min((entry[1] for entry in cited), default=1.0)
        if step.instance is not None:
            general = [name for name in step.premises if has_quantifier(known[name][0])]
            if not any(matches(known[name][0], step.instance, name, named, witnesses) for name in general):
                raise ProofError(f"{step.id}: {step.instance} is no instance of its premise", where=step.id)
            formulas.append(step.instance)
        if step.operation == "suppose":
            good, resting = not cited, frozenset((step.id,))
            if has_quantifier(step.formula):
                good = good and witnesses.keys().isdisjoint(constants(step.formula))
                named.update(constants(step.formula))
        elif step.operation == "closed world":
            absent = closed is not None and isinstance(step.formula, Literal) and not step.formula.positive
            good = absent and closed is not None and set(atoms(step.formula)).isdisjoint(closed.holding)
        elif step.operation == "contradiction":
            supposed, resting = step.premises[0], resting - {step.premises[0]}
            good = known[supposed][2] == {supposed} and step.formula in _negations(formulas[0])
            good = good and entails(formulas, Or(()))
        elif step.operation == "example":
            individuals = tuple(dict.fromkeys(constant for formula in formulas for constant in constants(formula)))
            good = not prenex(step.formula).universals
            good = good and entails(formulas, over_individuals(step.formula, individuals))
        elif step.operation == "all cases":
            good = closed is not None and entails(formulas, over_individuals(step.formula, closed.individuals))
        else:
            good = entails(formulas, step.formula)
        if not good or step.degree > degree:
            raise ProofError(f"{step.id} ({step.operation}) does not follow: {step.formula}", where=step.id)
        known[step.id] = (step.formula, step.degree, resting)
    if resting:
        raise ProofError(f"the last step rests on suppositions: {', '.join(sorted(resting))}", where=steps[-1].id)


def entails(premises: Iterable[Formula], conclusion: Formula) -> bool:
    """Whether the conclusion holds in every row of the truth table where the premises do; quantifiers are opaque."""
    parts = (Not(conclusion), *premises)
    return not _satisfiable(And(tuple(sorted(parts, key=lambda part: not isinstance(part, Literal)))), {})


def _satisfiable(formula: Formula, row: dict[Formula, bool]) -> bool:
    value = _value(formula, row)
    if isinstance(value, bool):
        return value
    return any(_satisfiable(formula, {**row, value: choice}) for choice in (True, False))


def _value(formula: Formula, row: Mapping[Formula, bool]) -> bool | Formula:
    """The formula's truth in a partial row, or an atom on which it still depends."""
    if isinstance(formula, Literal):
        atom = Literal(formula.atom)
        return row[atom] == formula.positive if atom in row else atom
    if isinstance(formula, ForAll | Exists):
        return row.get(formula, formula)
    values = [_value(part, row) for part in children(formula)]
    if isinstance(formula, Implies):
        values[0] = not values[0] if isinstance(values[0], bool) else values[0]
    stop = {And: False, Or: True, Implies: True}.get(type(formula))
    if stop is not None and any(value is stop for value in values):
        return stop
    open_values = [value for value in values if not isinstance(value, bool)]
    if open_values:
        return open_values[0]
    match formula:
        case Not():
            return not values[0]
        case Xor():
            return values.count(True) == 1
        case Iff():
            return values[0] == values[1]
    return stop is False


def _negations(formula: Formula) -> tuple[Formula, ...]:
    direct: tuple[Formula, ...] = (Not(formula),)
    if isinstance(formula, Literal):
        direct += (formula.negated(),)
    return (*direct, formula.part) if isinstance(formula, Not) else direct


def matches(
    general: Formula, instance: Formula, source: str, named: set[Constant], witnesses: dict[Constant, object]
) -> bool:
    """Whether `instance` is a conjunct of `general` with individuals for its variables.

    Universals may stand for any individual. An existential's individual is new: it occurs in no statement, and is
    bound to one existential under one choice of the universals around it; `witnesses` keeps these.
    """
    for number, part in enumerate(conjuncts(general)):
        values: dict[Variable, Term] = {}
        promised: list[tuple[Variable, tuple[Variable, ...]]] = []
        if not _walk(expand_equivalences(part), instance, True, (), {}, values, promised):
            continue
        found = [
            (values[v], (source, number, v, tuple(values.get(s) for s in scope)))
            for v, scope in promised
            if v in values
        ]
        keys = {term: key for term, key in found if isinstance(term, Constant)}
        if len(keys) == len(found) and all(w not in named and witnesses.get(w, key) == key for w, key in keys.items()):
            witnesses.update(keys)
            return True
    return False


def _walk(
    general: Formula,
    instance: Formula,
    positive: bool,
    scope: tuple[Variable, ...],
    names: dict[Variable, Variable],
    values: dict[Variable, Term],
    promised: list[tuple[Variable, tuple[Variable, ...]]],
) -> bool:
    """Follow both formulas side by side, binding each quantified variable to the individual in its place."""
    if isinstance(general, ForAll | Exists):
        for variable in general.variables:
            fresh = Variable(f"{len(promised)}.{len(scope)}.{len(names)}.{variable.name}")
            names = {**names, variable: fresh}
            if isinstance(general, ForAll) == positive:
                scope = (*scope, fresh)
            else:
                promised.append((fresh, scope))
        return _walk(general.part, instance, positive, scope, names, values, promised)
    if isinstance(general, Literal) and isinstance(instance, Literal):
        a, b = general.atom, instance.atom
        same = (a.predicate, len(a.arguments), general.positive) == (b.predicate, len(b.arguments), instance.positive)
        return same and all(
            isinstance(y, Constant) and (values.setdefault(names[x], y) == y if isinstance(x, Variable) else x == y)
            for x, y in zip(a.arguments, b.arguments, strict=True)
        )
    left, right = children(general), children(instance)
    if type(general) is not type(instance) or len(left) != len(right):
        return False
    signs = [positive] * len(left)
    if isinstance(general, Not | Implies):
        signs[0] = not positive
    return all(_walk(x, y, sign, scope, names, values, promised) for x, y, sign in zip(left, right, signs, strict=True))


@dataclass(frozen=True)
class Contradiction:
    """Premises that cannot all hold, though they can without any one of them; and what was assumed besides."""

    statements: tuple[str, ...]
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Revision:
    """A change of premises that removes every contradiction, checked; `changes` names each premise and its new form."""

    text: str
    changes: tuple[tuple[str, Formula | None], ...]


@dataclass(frozen=True)
class Answer:
    """What follows: the verdict, its proof and what stands in its way.

    `answer` is of a truth or meta question, `value` of a choice or value question. `steps` prove the verdict: where it
    is "both", for and against. `assumed` are the assumptions that steps cite.
    """

    kind: Either["truth", "choice", "value", "meta"]
    answer: Either["true", "false", "unknown", "both"] | None
    value: str | None = None
    status: Either["ok", "partial", "ambiguous", "inconsistent"] = "ok"
    conclusions: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    assumptions: tuple[str, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    revisions: tuple[Revision, ...] = ()
    degree: float = 1.0
    assumed: tuple[Statement, ...] = ()
