"""The same questions put to z3 and to clingo, by translations that share nothing with ours but the formulas."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from cmrn.errors import MissingExtraError
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
    Theory,
    Variable,
    Xor,
)

__all__ = ["classical_answer", "closed_models", "require", "satisfiable", "to_clingo", "to_z3"]


def require(name: str) -> Any:
    """A solver's module.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{name} is not installed", where=name, hint="pip install 'cmrn[verify]'") from error


def to_z3(formula: Formula, names: dict[Variable | Constant, Any] | None = None) -> Any:
    """The formula over an uninterpreted sort, quantifiers as z3's own."""
    z3 = require("z3")
    thing = z3.DeclareSort("Thing")
    names = names or {}
    match formula:
        case Literal(atom, positive):
            terms = [names[t] if t in names else z3.Const(f"c_{t.name}", thing) for t in atom.arguments]
            value = z3.Function(atom.predicate, *[thing] * len(terms), z3.BoolSort())(*terms)
            return value if positive else z3.Not(value)
        case And(parts):
            return z3.And([to_z3(part, names) for part in parts])
        case Or(parts):
            return z3.Or([to_z3(part, names) for part in parts])
        case Xor(parts):
            # Not z3.PbEq: with it z3 5.4 called one of these theories unsatisfiable that has a model.
            values = [to_z3(part, names) for part in parts]
            others = [values[:i] + values[i + 1 :] for i in range(len(values))]
            return z3.Or([z3.And(value, z3.Not(z3.Or(rest))) for value, rest in zip(values, others, strict=True)])
        case Not(part):
            return z3.Not(to_z3(part, names))
        case Implies(body, head):
            return z3.Implies(to_z3(body, names), to_z3(head, names))
        case Iff(left, right):
            return to_z3(left, names) == to_z3(right, names)
        case ForAll(variables, part) | Exists(variables, part):
            bound: dict[Variable | Constant, Any] = {
                variable: z3.Const(f"v_{variable.name}", thing) for variable in variables
            }
            quantifier = z3.ForAll if isinstance(formula, ForAll) else z3.Exists
            return quantifier(list(bound.values()), to_z3(part, names | bound))
    raise AssertionError(formula)


def satisfiable(formulas: Iterable[Formula]) -> bool:
    """Whether the formulas can all hold, by z3."""
    z3 = require("z3")
    solver = z3.Solver()
    solver.set("timeout", 5000)
    solver.add([to_z3(formula) for formula in formulas])
    found = solver.check()
    assert found != z3.unknown
    return bool(found == z3.sat)


def classical_answer(formulas: Sequence[Formula], query: Formula) -> str:
    """true, false or unknown of a consistent theory; for another, by its maximal consistent parts."""
    if satisfiable(formulas):
        parts = [tuple(formulas)]
    else:
        parts = []
        for size in range(len(formulas) - 1, -1, -1):
            for chosen in itertools.combinations(range(len(formulas)), size):
                if not any(set(chosen) <= set(other) for other in parts) and satisfiable(formulas[i] for i in chosen):
                    parts.append(chosen)  # type: ignore[arg-type]
        parts = [tuple(formulas[i] for i in chosen) for chosen in parts]  # type: ignore[call-overload]
    proved = any(not satisfiable((*part, Not(query))) for part in parts)
    refuted = any(not satisfiable((*part, query)) for part in parts)
    return "both" if proved and refuted else "true" if proved else "false" if refuted else "unknown"


def to_clingo(statements: Iterable[Statement], names: Iterable[Constant]) -> str:
    """Facts and rules as a program in which n_p says that p does not hold."""
    lines = [f"thing({name.name})." for name in names]
    predicates: dict[str, int] = {}

    def said(literal: Literal) -> str:
        atom = literal.atom
        predicates[atom.predicate] = len(atom.arguments)
        terms = ",".join(t.name.upper() if isinstance(t, Variable) else t.name for t in atom.arguments)
        return f"{'' if literal.positive else 'n_'}{atom.predicate}({terms})"

    for statement in statements:
        formula = statement.formula
        if isinstance(formula, ForAll):
            assert isinstance(formula.part, Implies)
            body, head = formula.part.body, formula.part.head
            conditions = body.parts if isinstance(body, And) else (body,)
            assert isinstance(head, Literal)
            parts = [said(part) for part in conditions if isinstance(part, Literal)]
            assert len(parts) == len(conditions)
            parts += [f"thing({variable.name.upper()})" for variable in formula.variables]
            lines.append(f"{said(head)} :- {', '.join(parts)}.")
        else:
            assert isinstance(formula, Literal)
            lines.append(f"{said(formula)}.")
    for predicate, places in predicates.items():
        terms = ",".join(f"X{i}" for i in range(places))
        things = ", ".join(f"thing(X{i})" for i in range(places))
        lines.append(f"a_{predicate}({terms}) :- {things}, not {predicate}({terms}).")
        lines.append(f"n_{predicate}({terms}) :- a_{predicate}({terms}).")
    return "\n".join(lines)


def closed_models(theory: Theory, names: Iterable[Constant]) -> list[set[str]]:
    """The answer sets, at most two, as sets of atoms such as `n_wumpus(ann)`."""
    clingo = require("clingo")
    control = clingo.Control(["--models=2", "--warn=none"])
    control.add("base", [], to_clingo(theory.statements, names))
    control.ground([("base", [])])
    models: list[set[str]] = []
    control.solve(on_model=lambda model: models.append({str(symbol) for symbol in model.symbols(atoms=True)}))
    return models
