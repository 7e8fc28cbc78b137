"""Seeded random theories: formulas of every kind, and rules of stratified programs."""

from __future__ import annotations

import random
from collections.abc import Sequence

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
    Question,
    Statement,
    Term,
    Theory,
    Variable,
    World,
    Xor,
)

__all__ = ["Maker", "ask", "literal", "statement", "theory"]

X, Y = Variable("x"), Variable("y")
NAMES = (Constant("ann"), Constant("bob"), Constant("cy"))
KINDS = ("wumpus", "yumpus", "zumpus", "tumpus", "rompus")


def literal(kind: str, *terms: Term, positive: bool = True) -> Literal:
    """A literal of these terms."""
    return Literal(Atom(kind, terms), positive)


def statement(number: int, formula: Formula, text: str = "") -> Statement:
    """The premise of that number."""
    kind = "rule" if isinstance(formula, ForAll | Implies) else "fact"
    return Statement(f"P{number}", formula, text or f"premise {number}", 0, 0, kind)  # type: ignore[arg-type]


def theory(formulas: Sequence[Formula], world: World = "open") -> Theory:
    """The formulas as premises, numbered from P1 on."""
    return Theory(tuple(statement(number, formula) for number, formula in enumerate(formulas, 1)), world)


def ask(formula: Formula) -> Question:
    """Whether the formula holds."""
    return Question("truth", "?", 0, 1, formula)


class Maker:
    """Draws formulas from one seed; `relation` adds a two-place predicate."""

    def __init__(self, seed: int, kinds: int = 4, names: int = 2, relation: bool = True) -> None:
        self.random = random.Random(seed)
        self.kinds = KINDS[:kinds]
        self.names = NAMES[:names]
        self.relation = relation

    def literal(self, terms: Sequence[Term], negative: float = 0.3) -> Literal:
        """A literal about some of the terms."""
        positive = self.random.random() >= negative
        if self.relation and self.random.random() < 0.25:
            pair = (self.random.choice(terms), self.random.choice(terms))
            return literal("chases", *pair, positive=positive)
        return literal(self.random.choice(self.kinds), self.random.choice(terms), positive=positive)

    def formula(self, terms: Sequence[Term], depth: int = 1) -> Formula:
        """A formula without quantifiers."""
        draw = self.random.random()
        if depth == 0 or draw < 0.4:
            return self.literal(terms)
        parts = tuple(self.formula(terms, depth - 1) for _ in range(self.random.choice((2, 2, 3))))
        if draw < 0.9:
            return self.random.choice((And, Or, Xor))(parts)
        return Iff(parts[0], parts[1]) if draw < 0.95 else Not(parts[0])

    def premise(self) -> Formula:
        """A fact, a rule, or something about somebody."""
        draw = self.random.random()
        if draw < 0.35:
            return self.literal(self.names)
        if draw < 0.5:
            return self.formula(self.names, 1)
        if draw < 0.9:
            two = self.relation and self.random.random() < 0.2
            variables = (X, Y) if two else (X,)
            return ForAll(
                variables, Implies(self.formula(variables, 1), self.formula(variables, self.random.choice((0, 0, 1))))
            )
        if draw < 0.96:
            return Exists((X,), self.formula((X, *self.names[:1]), 1))
        return Not(Exists((X,), self.formula((X,), 1)))

    def query(self) -> Formula:
        """What is asked: mostly a literal."""
        draw = self.random.random()
        if draw < 0.6:
            return self.literal(self.names)
        if draw < 0.75:
            return self.formula(self.names, 1)
        if draw < 0.9:
            return Exists((X,), self.formula((X,), 1))
        return ForAll((X,), self.formula((X,), 1))

    def open_theory(self, premises: int) -> Theory:
        """Premises of every kind, for an open world."""
        return theory([self.premise() for _ in range(premises)])

    def closed_theory(self, premises: int) -> Theory:
        """Facts and rules for a closed world; negation may run through recursion."""
        formulas: list[Formula] = []
        for _ in range(premises):
            if self.random.random() < 0.45:
                formulas.append(self.literal(self.names, 0.15))
                continue
            variables = (X, Y) if self.relation and self.random.random() < 0.25 else (X,)
            body = tuple(self.literal(variables, 0.35) for _ in range(self.random.choice((1, 1, 2, 3))))
            formulas.append(ForAll(variables, Implies(And(body), self.literal(variables, 0.1))))
        return theory(formulas, "closed")
