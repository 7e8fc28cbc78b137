"""What everyone takes for granted and a text leaves out: that the lion is a lion, that "taller" passes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cmrn.reasoning.formulas import atoms
from cmrn.reasoning.theory import (
    And,
    Atom,
    Constant,
    ForAll,
    Formula,
    Implies,
    Literal,
    Statement,
    Variable,
)

__all__ = ["implied_statements"]

_OPPOSITES = (("taller", "shorter"), ("older", "younger"), ("older", "newer"), ("bigger", "smaller"),
              ("larger", "smaller"), ("heavier", "lighter"), ("faster", "slower"), ("higher", "lower"),
              ("richer", "poorer"), ("stronger", "weaker"), ("better", "worse"), ("longer", "shorter"),
              ("warmer", "colder"), ("hotter", "colder"), ("earlier", "later"), ("happier", "sadder"))  # fmt: skip
_PLACES = (("is to the left of", "is to the right of"), ("is above", "is below"), ("is before", "is after"),
           ("is in front of", "is behind"), ("is to the north of", "is to the south of"),
           ("is to the east of", "is to the west of"), ("is over", "is under"))  # fmt: skip


def implied_statements(
    premises: Sequence[Formula], asked: Sequence[Formula]
) -> tuple[tuple[Statement, ...], tuple[str, ...]]:
    """(statements with ids B1, B2, …, what each assumes in a sentence), for these premises and questions."""
    found = list(dict.fromkeys(atom for formula in (*premises, *asked) for atom in atoms(formula)))
    predicates = {atom.predicate for atom in found}
    made: list[tuple[Formula, str]] = []
    constants = dict.fromkeys(term for atom in found for term in atom.arguments if isinstance(term, Constant))
    for constant in constants:
        kind = constant.name.removeprefix("the ")
        if constant.name.startswith("the ") and kind in predicates:
            made.append((Literal(Atom(kind, (constant,))), f"{constant.name} is a {kind}"))
    made += _comparisons({atom.predicate for atom in found if len(atom.arguments) == 2})
    statements = tuple(
        Statement(f"B{number}", formula, text, 0, 0, "rule" if isinstance(formula, ForAll) else "fact")
        for number, (formula, text) in enumerate(made, 1)
    )
    return statements, tuple(text for _, text in made)


def _comparisons(predicates: set[str]) -> Iterator[tuple[Formula, str]]:
    x, y, z = Variable("x"), Variable("y"), Variable("z")
    pairs = [(f"is {one} than", f"is {other} than") for one, other in _OPPOSITES] + list(_PLACES)
    ordered = {name for name in predicates if name.endswith(" than")} | {
        name for pair in pairs for name in pair if name in predicates
    }
    for name in sorted(ordered):
        first, second, third = (Literal(Atom(name, pair)) for pair in ((x, y), (y, z), (x, z)))
        yield ForAll((x, y, z), Implies(And((first, second)), third)), f"“{name}” passes on from one to the next"
        yield ForAll((x, y), Implies(first, Literal(Atom(name, (y, x)), False))), f"“{name}” holds one way only"
    for one, other in pairs:
        if one in predicates and other in predicates:
            for left, right in ((one, other), (other, one)):
                rule = Implies(Literal(Atom(left, (x, y))), Literal(Atom(right, (y, x))))
                yield ForAll((x, y), rule), f"“{left}” is “{right}” the other way round"
