"""Fuzzy operators on two channels of evidence, for and against, each in [0, 1].

Unknown is (0, 0), true (1, 0), false (0, 1), both (1, 1). Proof mode takes least and greatest (Gödel), so degrees do
not decay along a chain; train mode takes products, which have a gradient everywhere. On {0, 1} the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as Either

import torch
from torch import Tensor

__all__ = [
    "Evidence",
    "both",
    "conjoin_product",
    "either",
    "for_all",
    "for_some",
    "implication_loss",
    "noisy_or",
    "soft_maximum",
    "stable",
]

Mode = Either["proof", "train"]
MARGIN = 1e-4


def both(a: Tensor, b: Tensor, mode: Mode = "train") -> Tensor:
    """AND of degrees in [0, 1]: the product, or the least in proof mode."""
    return a * b if mode == "train" else torch.minimum(a, b)


def either(a: Tensor, b: Tensor, mode: Mode = "train") -> Tensor:
    """OR of degrees in [0, 1]: the probabilistic sum, or the greatest in proof mode; dual to `both`."""
    return a + b - a * b if mode == "train" else torch.maximum(a, b)


def stable(degrees: Tensor, zero: bool = False) -> Tensor:
    """Degrees kept off 1 (with `zero`, off 0) by 1e-4, for operators whose gradient vanishes or bursts there.

    Badreddine et al., Logic Tensor Networks (2022): π₀(a) = (1 − ε) a + ε and π₁(a) = (1 − ε) a.
    """
    scaled = (1 - MARGIN) * degrees
    return scaled + MARGIN if zero else scaled


def conjoin_product(parts: Sequence[Tensor]) -> Tensor:
    """The product of degrees of one shape, part by part, with an exact gradient where some are 0."""
    product = parts[0]
    for part in parts[1:]:
        product = product * part
    return product


@dataclass(frozen=True)
class Evidence:
    """Degrees for and against propositions, of one shape.

    >>> Evidence(torch.tensor(1.0), torch.tensor(0.0)).negated().against.item()
    1.0
    """

    favour: Tensor
    against: Tensor

    def negated(self) -> Evidence:
        """NOT: the channels change places; twice gives the very same evidence."""
        return Evidence(self.against, self.favour)

    def and_(self, other: Evidence, mode: Mode = "proof") -> Evidence:
        """AND: both in favour, either against."""
        return Evidence(both(self.favour, other.favour, mode), either(self.against, other.against, mode))

    def or_(self, other: Evidence, mode: Mode = "proof") -> Evidence:
        """OR: the dual of AND."""
        return self.negated().and_(other.negated(), mode).negated()

    def implies(self, other: Evidence, mode: Mode = "proof") -> Evidence:
        """IMPLIES as a formula's value: not this, or the other."""
        return self.negated().or_(other, mode)

    def conflict(self) -> Tensor:
        """How far it speaks for and against at once: relu(for + against − 1)."""
        return (self.favour + self.against - 1).relu()

    def ignorance(self) -> Tensor:
        """How far it says nothing: relu(1 − for − against)."""
        return (1 - self.favour - self.against).relu()


def soft_maximum(degrees: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """A smooth greatest, from below: the mean at high temperature, the maximum as it goes to 0. Stays in [0, 1]."""
    size = degrees.shape[dim]
    return temperature * (torch.logsumexp(degrees / temperature, dim) - math.log(size))


def noisy_or(degrees: Tensor, dim: int = -1) -> Tensor:
    """Evidence from independent sources together. Sources must be distinct, or one reinforces itself."""
    return 1 - (1 - degrees).prod(dim)


def for_all(degrees: Tensor, power: float | None = None, dim: int = -1) -> Tensor:
    """FOR ALL: the least; with a power p, 1 − mean((1 − a)^p)^(1/p), which nears the least as p grows."""
    if power is None:
        return degrees.amin(dim)
    return 1 - (1 - stable(degrees)).pow(power).mean(dim).pow(1 / power)


def for_some(degrees: Tensor, power: float | None = None, dim: int = -1) -> Tensor:
    """FOR SOME: the greatest; with a power p, mean(a^p)^(1/p), which nears the greatest as p grows."""
    if power is None:
        return degrees.amax(dim)
    return stable(degrees, zero=True).pow(power).mean(dim).pow(1 / power)


def implication_loss(body: Tensor, head: Tensor, sharpness: float | None = 9.0) -> Tensor:
    """1 − (body → head) by Reichenbach, body · (1 − head); with a sharpness s, its sigmoidal variant.

    van Krieken et al., Analyzing Differentiable Fuzzy Logic Operators (2022).
    """
    value = 1 - body + body * head
    if sharpness is None:
        return 1 - value
    low, high = torch.sigmoid(value.new_tensor([-sharpness / 2, sharpness / 2]))
    scaled: Tensor = ((value - 0.5) * sharpness).sigmoid().sub(low) / (high - low)
    return 1 - scaled
