"""Premises without variables: every instance over the individuals that matter, counted before it is made.

A variable ranges over the individuals that share its sort: two argument places have one sort when a variable stands in
both. Without equality this loses no consequence; where absence counts, what binds a variable must also name it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cmrn.reasoning.formulas import Prenex, Witness, atoms, constants, prenex, substitute
from cmrn.reasoning.limits import Clock, ExplosionError
from cmrn.reasoning.normal import ClauseForm, clause_forms, conjuncts
from cmrn.reasoning.theory import Atom, Constant, Formula, Literal, Term, Variable

__all__ = ["WITNESS_ROUNDS", "Clause", "Grounding", "Source", "ground"]

WITNESS_ROUNDS = 2
Sort = tuple[str, int]


@dataclass(frozen=True)
class Source:
    """A formula that is held, and the id it is cited by: a premise, or what a proof assumes."""

    id: str
    formula: Formula
    degree: float = 1.0


@dataclass(frozen=True, eq=False)
class Part:
    """One conjunct of a source, ready to be grounded."""

    source: Source
    form: Prenex
    clauses: tuple[ClauseForm, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Clause:
    """A ground disjunction, and the rule it was written as; literals are ±(atom's number + 1)."""

    literals: tuple[int, ...]
    premises: tuple[int, ...]
    heads: tuple[int, ...]
    part: Part
    values: tuple[Constant, ...]

    @property
    def origin(self) -> str:
        """The id of the source."""
        return self.part.source.id

    @property
    def degree(self) -> float:
        """The degree of the source."""
        return self.part.source.degree


@dataclass
class Grounding:
    """Ground clauses, the atoms they number, and the individuals that existentials promised."""

    atoms: list[Atom] = field(default_factory=list)
    numbers: dict[Atom, int] = field(default_factory=dict)
    clauses: list[Clause] = field(default_factory=list)
    witnesses: dict[tuple[int, Variable, tuple[Constant, ...]], Constant] = field(default_factory=dict)
    constants: dict[Constant, None] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    bounded: bool = False

    def number(self, atom: Atom) -> int:
        """The atom's number, from 0; a new one is added."""
        if atom not in self.numbers:
            self.numbers[atom] = len(self.atoms)
            self.atoms.append(atom)
        return self.numbers[atom]

    def code(self, literal: Literal) -> int:
        """The literal as ±(number + 1)."""
        number = self.number(literal.atom) + 1
        return number if literal.positive else -number

    def literal(self, code: int) -> Literal:
        """The literal of a code."""
        return Literal(self.atoms[abs(code) - 1], code > 0)

    def instance(self, clause: Clause) -> Formula:
        """The conjunct that a clause comes from, with individuals for its variables."""
        values = dict(zip(clause.part.form.universals, clause.values, strict=True))
        return substitute(clause.part.form.matrix, self.with_witnesses(clause.part, values))

    def with_witnesses(self, part: Part, values: dict[Variable, Constant]) -> dict[Variable, Term]:
        """The values of the universals and of the witnesses that go with them."""
        number = self.parts.index(part) if part.form.witnesses else 0
        found: dict[Variable, Term] = dict(values)
        for witness in part.form.witnesses:
            key = (number, witness.variable, tuple(values[variable] for variable in witness.scope))
            found[witness.variable] = self.witnesses[key]
        return found


class _Sorts:
    """Which argument places hold individuals of one kind, by union-find, and which individuals there are."""

    def __init__(self, parts: Sequence[Part], others: Iterable[Formula]) -> None:
        self.parent: dict[object, object] = {}
        self.members: dict[object, dict[Constant, None]] = {}
        places: list[tuple[Constant, Sort]] = []
        for number, formula in itertools.chain(
            ((i, p.form.matrix) for i, p in enumerate(parts)), ((-1, f) for f in others)
        ):
            for atom in atoms(formula):
                for place, term in enumerate(atom.arguments):
                    sort = (atom.predicate, place)
                    self.root(sort)
                    if isinstance(term, Variable):
                        self.unite(sort, (number, term))
                    else:
                        places.append((term, sort))
        for constant, sort in places:
            self.add(sort, constant)

    def root(self, key: object) -> object:
        while self.parent.setdefault(key, key) != key:
            key = self.parent[key]
        return key

    def unite(self, a: object, b: object) -> None:
        self.parent[self.root(a)] = self.root(b)

    def add(self, key: object, constant: Constant) -> bool:
        """Make the individual one of the sort's; whether it is new there."""
        members = self.members.setdefault(self.root(key), {})
        new = constant not in members
        members[constant] = None
        return new

    def of(self, part: int, variable: Variable) -> tuple[Constant, ...]:
        return tuple(self.members.get(self.root((part, variable)), ()))


def ground(sources: Sequence[Source], asked: Sequence[Formula], clock: Clock, *, rules: bool = False) -> Grounding:
    """Ground clauses of the sources; individuals come from them and from what is asked.

    Clauses that always hold are left out, unless they are to be used as `rules`: "a if not a" then says something.

    Raises:
        ExplosionError: the estimate of ground rules passes the limit; names the premise that has most.
        OutOfTimeError: the time ran out.
    """
    result = Grounding()
    for source in sources:
        for conjunct in conjuncts(source.formula):
            form = prenex(conjunct)
            result.parts.append(Part(source, form, clause_forms(form.matrix)))
    sorts = _Sorts(result.parts, asked)
    for formula in [*(source.formula for source in sources), *asked]:
        result.constants.update(dict.fromkeys(constants(formula)))
    if rules:
        _widen(result, sorts)
    _add_witnesses(result, sorts, clock, alone=not (rules and result.constants))
    if rules:
        _widen(result, sorts)
    _estimate(result, sorts, clock)
    for number, part in enumerate(result.parts):
        _instances(result, sorts, number, part, rules, clock)
    return result


def _widen(result: Grounding, sorts: _Sorts) -> None:
    """Let a variable that no premise without "not" binds stand for every individual: absence holds of all of them."""
    for number, part in enumerate(result.parts):
        for variable in part.form.universals:
            if not all(_binds(form.premises, variable) for form in part.clauses):
                for constant in result.constants:
                    sorts.add((number, variable), constant)


def _binds(premises: tuple[Literal, ...], variable: Variable) -> bool:
    return any(premise.positive and variable in premise.atom.arguments for premise in premises)


def _add_witnesses(result: Grounding, sorts: _Sorts, clock: Clock, *, alone: bool) -> None:
    """Name the individuals that existentials promise, WITNESS_ROUNDS deep where one leads to the next.

    alone: whether a variable that ranges over nobody named is given somebody. Rules need no such one where there are
    others: what binds a variable then holds of nobody, and under a closed world nobody else exists.
    """
    wanted = [(n, p, w) for n, p in enumerate(result.parts) for w in p.form.witnesses]
    named = [item for item in wanted if not item[2].scope]
    for number, _, witness in named:
        _name(result, sorts, number, witness, ())
    for number, part in enumerate(result.parts):
        for variable in part.form.universals:
            if alone and not sorts.of(number, variable):
                someone = Constant("something")
                result.constants[someone] = None
                sorts.add((number, variable), someone)
    scoped = [item for item in wanted if item[2].scope]
    for last in (*([False] * WITNESS_ROUNDS), True):
        _estimate(result, sorts, clock)
        new = []
        for number, _, witness in scoped:
            clock.look()
            cases = itertools.product(*(sorts.of(number, variable) for variable in witness.scope))
            new += [
                (number, witness, case) for case in cases if (number, witness.variable, case) not in result.witnesses
            ]
        if last:
            result.bounded = bool(new)
            return
        for done, (number, witness, case) in enumerate(new):
            if done % 1024 == 1023:
                clock.look()
            _name(result, sorts, number, witness, case)


def _name(result: Grounding, sorts: _Sorts, part: int, witness: Witness, values: tuple[Constant, ...]) -> None:
    base = f"some {witness.kind}"
    if values:
        base += " for " + " and ".join(value.name for value in values)
    name, number = base, 2
    while Constant(name) in result.constants:
        name, number = f"{base} {number}", number + 1
    constant = Constant(name)
    result.constants[constant] = None
    result.witnesses[part, witness.variable, values] = constant
    sorts.add((part, witness.variable), constant)


def _estimate(result: Grounding, sorts: _Sorts, clock: Clock) -> None:
    counts: dict[str, int] = {}
    for number, part in enumerate(result.parts):
        ranges = [len(sorts.of(number, variable)) for variable in part.form.universals]
        counts[part.source.id] = counts.get(part.source.id, 0) + math.prod(ranges) * len(part.clauses)
    total = sum(counts.values())
    if total > clock.limits.ground_rules:
        worst = max(counts, key=counts.__getitem__)
        message = (
            f"would become {counts[worst]:,} ground rules; all premises together {total:,}, "
            f"the limit is {clock.limits.ground_rules:,}"
        )
        raise ExplosionError(message, where=worst, hint="name fewer individuals, or split the rule into smaller ones")


def _instances(result: Grounding, sorts: _Sorts, number: int, part: Part, rules: bool, clock: Clock) -> None:
    universals = part.form.universals
    for done, values in enumerate(itertools.product(*(sorts.of(number, variable) for variable in universals))):
        if done % 1024 == 1023:
            clock.look()
        names: dict[Variable, Constant] = dict(zip(universals, values, strict=True))
        for witness in part.form.witnesses:
            constant = result.witnesses.get((number, witness.variable, tuple(names[v] for v in witness.scope)))
            if constant is None:
                break
            names[witness.variable] = constant
        else:
            for form in part.clauses:
                premises, heads = _codes(result, form.premises, names), _codes(result, form.heads, names)
                literals = tuple(dict.fromkeys((*(-premise for premise in premises), *heads)))
                if rules or not any(-literal in literals for literal in literals):
                    result.clauses.append(Clause(literals, premises, heads, part, values))


def _codes(result: Grounding, literals: tuple[Literal, ...], names: dict[Variable, Constant]) -> tuple[int, ...]:
    """The ground literals' codes, each once."""
    codes: dict[int, None] = {}
    for literal in literals:
        atom = literal.atom
        arguments = tuple(names[t] if isinstance(t, Variable) else t for t in atom.arguments)
        number = result.number(Atom(atom.predicate, arguments)) + 1
        codes[number if literal.positive else -number] = None
    return tuple(codes)
