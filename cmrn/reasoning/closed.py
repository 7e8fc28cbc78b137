"""What does not hold under a closed world, found without strata: the oracle that proofs of absence are checked by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cmrn.reasoning.formulas import rebuild, substitute
from cmrn.reasoning.theory import And, Atom, Constant, Exists, ForAll, Formula, Literal, Or

__all__ = ["Closed", "over_individuals", "well_founded"]

GroundRule = tuple[tuple[Literal, ...], Literal]


@dataclass(frozen=True)
class Closed:
    """A closed world: its individuals, and every atom that holds; all others do not."""

    individuals: tuple[Constant, ...]
    holding: frozenset[Atom]


def well_founded(rules: Sequence[GroundRule], individuals: Iterable[Constant]) -> Closed:
    """The atoms true in the well-founded model, by the alternating fixpoint (Van Gelder 1989).

    A negated premise holds if a rule concludes it, or if its atom cannot hold. Where there are strata, this model is
    theirs.
    """
    certain: frozenset[Literal] = frozenset()
    while True:
        possible = _least(rules, certain)
        grown = _least(rules, possible)
        if grown == certain:
            return Closed(tuple(individuals), frozenset(literal.atom for literal in certain if literal.positive))
        certain = grown


def _least(rules: Sequence[GroundRule], absent_unless: frozenset[Literal]) -> frozenset[Literal]:
    """What follows when an atom is taken as absent unless it is in the given set."""
    holding: set[Literal] = set()
    size = -1
    while size < len(holding):
        size = len(holding)
        for body, head in rules:
            if all(p in holding or (not p.positive and p.negated() not in absent_unless) for p in body):
                holding.add(head)
    return frozenset(holding)


def over_individuals(formula: Formula, individuals: Sequence[Constant]) -> Formula:
    """The formula with each quantifier written out over all individuals."""
    if isinstance(formula, ForAll | Exists):
        cases = itertools.product(individuals, repeat=len(formula.variables))
        parts = tuple(
            over_individuals(substitute(formula.part, dict(zip(formula.variables, values, strict=True))), individuals)
            for values in cases
        )
        return And(parts) if isinstance(formula, ForAll) else Or(parts)
    return rebuild(formula, lambda part: over_individuals(part, individuals))
