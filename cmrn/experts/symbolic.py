"""The symbolic expert's inner function: a few steps of fuzzy forward chaining inside one token position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["SymbolicLogicUnit", "both", "either"]


def both(a: Tensor, b: Tensor) -> Tensor:
    """AND: the product t-norm, on degrees in [0, 1]."""
    return a * b


def either(a: Tensor, b: Tensor) -> Tensor:
    """OR: the probabilistic sum, dual to `both`."""
    return a + b - a * b


class SymbolicLogicUnit(nn.Module):
    """Chains learned rules over propositions held as two evidence channels, for and against, each in [0, 1].

    The 2F inputs are F propositions' evidence before the sigmoid. Propositions stand in groups of up to 16. Each has
    one rule that speaks for it and one against it: "IF l1 AND/OR l2 THEN p", whose literals l are softly selected among
    the group's propositions and their negations. NOT swaps the channels; IMPLIES adds strength · body to the head's
    channel by OR, so evidence only grows. The output is for − against, in [−1, 1]; all at one token position.
    """

    group_size = 16

    def __init__(self, hidden: int, steps: int = 2) -> None:
        super().__init__()
        self.steps = steps
        self.size = math.gcd(hidden, self.group_size)
        groups, rules = hidden // self.size, 2 * self.size
        self.selection = nn.Parameter(torch.randn(groups, 2 * self.size, 2 * rules))
        self.conjunction = nn.Parameter(torch.zeros(groups, rules))
        self.strength = nn.Parameter(torch.full((groups, rules), -1.0))

    def forward(self, evidence_ME: Tensor) -> tuple[Tensor, None]:
        """(M,2F) to (M,F)."""
        literals = torch.cat([part.unflatten(-1, (-1, self.size)) for part in evidence_ME.sigmoid().chunk(2, -1)], -1)
        literals = literals.transpose(0, 1)
        premises = self.selection.softmax(1).to(literals.dtype)
        conjunctive = self.conjunction.sigmoid().to(literals.dtype)[:, None]
        strength = self.strength.sigmoid().to(literals.dtype)[:, None]
        for _ in range(self.steps):
            first, second = (literals @ premises).chunk(2, -1)
            body = conjunctive * both(first, second) + (1 - conjunctive) * either(first, second)
            literals = either(literals, strength * body)
        supporting, opposing = literals.transpose(0, 1).chunk(2, -1)
        return (supporting - opposing).flatten(1), None
