"""Operations on formulas: what occurs in them, substitution, and the form without quantifiers that solvers ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations

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
    Not,
    Or,
    Term,
    Variable,
    Xor,
)

__all__ = [
    "Prenex",
    "Witness",
    "atoms",
    "children",
    "conjoin",
    "constants",
    "deny",
    "expand_equivalences",
    "free_variables",
    "has_quantifier",
    "negation",
    "prenex",
    "rebuild",
    "substitute",
]


def children(formula: Formula) -> tuple[Formula, ...]:
    """The formulas directly inside one, in order."""
    match formula:
        case And(parts) | Or(parts) | Xor(parts):
            return parts
        case Not(part) | ForAll(_, part) | Exists(_, part):
            return (part,)
        case Implies(left, right) | Iff(left, right):
            return (left, right)
    return ()


def rebuild(formula: Formula, change: Callable[[Formula], Formula]) -> Formula:
    """The same formula with each direct part changed."""
    match formula:
        case And(parts) | Or(parts) | Xor(parts):
            return type(formula)(tuple(map(change, parts)))
        case Not(part):
            return Not(change(part))
        case ForAll(variables, part) | Exists(variables, part):
            return type(formula)(variables, change(part))
        case Implies(left, right) | Iff(left, right):
            return type(formula)(change(left), change(right))
    return formula


def atoms(formula: Formula) -> Iterator[Atom]:
    """Every atom, in the order it is written, with repetitions."""
    if isinstance(formula, Literal):
        yield formula.atom
    for part in children(formula):
        yield from atoms(part)


def constants(formula: Formula) -> Iterator[Constant]:
    """Every constant, in the order it is written, with repetitions."""
    for atom in atoms(formula):
        yield from (term for term in atom.arguments if isinstance(term, Constant))


def free_variables(formula: Formula) -> tuple[Variable, ...]:
    """The variables that no quantifier binds, each once, in the order they are written."""
    if isinstance(formula, Literal):
        found = [term for term in formula.atom.arguments if isinstance(term, Variable)]
    else:
        found = [variable for part in children(formula) for variable in free_variables(part)]
    bound = formula.variables if isinstance(formula, ForAll | Exists) else ()
    return tuple(dict.fromkeys(variable for variable in found if variable not in bound))


def has_quantifier(formula: Formula) -> bool:
    """Whether a quantifier stands anywhere inside."""
    return isinstance(formula, ForAll | Exists) or any(map(has_quantifier, children(formula)))


def conjoin(parts: list[Formula]) -> Formula:
    """All of them; one alone stays itself."""
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def deny(formula: Formula) -> Formula:
    """The formula's negation, pushed inwards."""
    if isinstance(formula, Literal):
        return formula.negated()
    if isinstance(formula, Not):
        return formula.part
    if isinstance(formula, And):
        return Or(tuple(deny(part) for part in formula.parts))
    if isinstance(formula, Or):
        return And(tuple(deny(part) for part in formula.parts))
    if isinstance(formula, Implies):
        return And((formula.body, deny(formula.head)))
    if isinstance(formula, ForAll):
        return Exists(formula.variables, deny(formula.part))
    if isinstance(formula, Exists):
        return ForAll(formula.variables, deny(formula.part))
    return Not(formula)


def negation(formula: Formula) -> Formula:
    """The formula that holds where this one does not, without a double Not."""
    if isinstance(formula, Not):
        return formula.part
    return formula.negated() if isinstance(formula, Literal) else Not(formula)


def substitute(formula: Formula, values: Mapping[Variable, Term]) -> Formula:
    """The formula with its free variables replaced."""
    if not values:
        return formula
    if isinstance(formula, Literal):
        arguments = tuple(values.get(t, t) if isinstance(t, Variable) else t for t in formula.atom.arguments)
        return Literal(Atom(formula.atom.predicate, arguments), formula.positive)
    if isinstance(formula, ForAll | Exists):
        values = {variable: term for variable, term in values.items() if variable not in formula.variables}
    return rebuild(formula, lambda part: substitute(part, values))


def expand_equivalences(formula: Formula) -> Formula:
    """The same without Iff and Xor wherever they hold a quantifier: there a part is both asserted and denied."""
    formula = rebuild(formula, expand_equivalences)
    if not has_quantifier(formula):
        return formula
    match formula:
        case Iff(left, right):
            return And((Implies(left, right), Implies(right, left)))
        case Xor(parts):
            return And((Or(parts), *(Not(And(pair)) for pair in combinations(parts, 2))))
    return formula


@dataclass(frozen=True)
class Witness:
    """An individual that an existential promises: one for each value of the universals in scope."""

    variable: Variable
    scope: tuple[Variable, ...]
    kind: str


@dataclass(frozen=True)
class Prenex:
    """A formula whose universals stand in front and whose existentials have become witnesses."""

    universals: tuple[Variable, ...]
    witnesses: tuple[Witness, ...]
    matrix: Formula


@dataclass
class _Pull:
    """Takes quantifiers out of one formula, renaming variables apart."""

    universals: list[Variable] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)

    def fresh(self, variable: Variable) -> Variable:
        taken = {*self.universals, *(witness.variable for witness in self.witnesses)}
        name, number = variable.name, 2
        while Variable(name) in taken:
            name, number = f"{variable.name}{number}", number + 1
        return Variable(name)

    def pull(self, formula: Formula, positive: bool, scope: tuple[Variable, ...]) -> Formula:
        match formula:
            case Not(part):
                return Not(self.pull(part, not positive, scope))
            case Implies(body, head):
                return Implies(self.pull(body, not positive, scope), self.pull(head, positive, scope))
            case ForAll(variables, part) | Exists(variables, part):
                universal = isinstance(formula, ForAll) == positive
                names: dict[Variable, Term] = {}
                for variable in variables:
                    names[variable] = new = self.fresh(variable)
                    if universal:
                        self.universals.append(new)
                        scope = (*scope, new)
                    else:
                        self.witnesses.append(Witness(new, scope, _kind(part, variable)))
                return self.pull(substitute(part, names), positive, scope)
        return rebuild(formula, lambda part: self.pull(part, positive, scope))


def _kind(formula: Formula, variable: Variable) -> str:
    """What a witness is called after: the first one-place predicate said of it."""
    for atom in atoms(formula):
        if atom.arguments == (variable,):
            return atom.predicate
    return "thing"


def prenex(formula: Formula, positive: bool = True) -> Prenex:
    """The formula (or, if not `positive`, its negation) as universals, witnesses and a matrix without quantifiers."""
    pull = _Pull()
    matrix = pull.pull(expand_equivalences(formula if positive else Not(formula)), True, ())
    return Prenex(tuple(pull.universals), tuple(pull.witnesses), matrix)
