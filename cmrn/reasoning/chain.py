"""Forward chaining of many theories' worth of evidence at once: gather, conjoin, scatter the greatest.

Letters: L literals (two channels an atom: 2a for, 2a + 1 against, and last a constant that is always 1), R rules,
K premises a rule, B batch. Values are kept as (L,B), so that a rule's gather reads whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as Either

import torch
from torch import Tensor

from cmrn.errors import DataError
from cmrn.reasoning.logic import conjoin_product

__all__ = ["Chained", "Program", "chain", "compile_rules"]

Mode = Either["proof", "train"]


@dataclass(frozen=True)
class Program:
    """Rules as tensors: premises_RK and heads_R number literals (the last is the constant), weights_R in [0, 1]."""

    premises_RK: Tensor
    heads_R: Tensor
    weights_R: Tensor
    literals: int


@dataclass(frozen=True)
class Chained:
    """Evidence after chaining: values_LB in [0, 1], how many steps it took, and whether nothing changes any more.

    Where reasons were asked for: steps_LB is when each literal last grew, 0 for never, and rules_LB the first rule that
    gives it its value, −1 for none. A premise of that rule has a greater value than its head, or the same and from an
    earlier step, so reasons form no cycle.
    """

    values_LB: Tensor
    steps: int
    settled: bool
    rules_LB: Tensor | None = None
    steps_LB: Tensor | None = None


def compile_rules(
    rules: Sequence[tuple[Sequence[int], int]], literals: int, weights: Sequence[float] | None = None
) -> Program:
    """Rules (premises, head) as one Program, shorter bodies padded with the constant.

    Raises:
        DataError: a weight is not a number in [0, 1].

    >>> compile_rules([((0, 2), 4)], literals=6).premises_RK.tolist()
    [[0, 2]]
    """
    wrong = [weight for weight in weights or () if not 0 <= weight <= 1]
    if wrong:
        raise DataError(f"a rule has the weight {wrong[0]}, which is not in [0, 1]")
    width = max((len(premises) for premises, _ in rules), default=1) or 1
    padded = [[*premises, *([literals] * (width - len(premises)))] for premises, _ in rules]
    return Program(
        torch.tensor(padded, dtype=torch.long).reshape(len(rules), width),
        torch.tensor([head for _, head in rules], dtype=torch.long),
        torch.tensor(weights if weights is not None else [1.0] * len(rules)),
        literals,
    )


def chain(
    program: Program,
    evidence_LB: Tensor,
    *,
    mode: Mode = "proof",
    temperature: float | None = None,
    most_steps: int = 10_000,
    epsilon: float = 0.0,
    reasons: bool = False,
) -> Chained:
    """Fire all rules together until no value grows by more than `epsilon`.

    Proof mode conjoins by min, train mode by the product; both take the greatest over rules with one head. All weights
    being at most 1, both reach the least fixpoint above the evidence, in at most L steps in proof mode.
    With a `temperature` the greatest is the smooth one of `logic.soft_maximum`, so that every rule for a head has a
    gradient; it nears the greatest as the temperature falls to 0.
    """
    if reasons and temperature is not None:
        raise AssertionError("a smooth greatest has no one rule as its reason")
    values_LB = torch.cat((evidence_LB, torch.ones_like(evidence_LB[:1])))
    heads_R, weights_R1 = program.heads_R, program.weights_R.to(evidence_LB.dtype)[:, None]
    steps_LB = torch.zeros(values_LB.shape, dtype=torch.int32) if reasons else None
    index_RB = heads_R[:, None].expand(-1, values_LB.shape[1])
    step, settled = 0, False
    for step in range(1, most_steps + 1):
        gained_RB = fire(program.premises_RK, weights_R1, values_LB, mode)
        if temperature is not None:
            gained_RB = _soften(gained_RB, index_RB, values_LB, temperature)
        grown_LB = values_LB.scatter_reduce(0, index_RB, gained_RB, "amax")
        changed_LB = grown_LB > values_LB + epsilon
        if steps_LB is not None:
            steps_LB.masked_fill_(changed_LB, step)
        values_LB = grown_LB
        settled = not bool(changed_LB.any())
        if settled:
            break
    rules_LB = None if steps_LB is None else _reasons(program, weights_R1, values_LB, steps_LB, mode)
    cut_LB = None if steps_LB is None else steps_LB[:-1]
    return Chained(values_LB[:-1], step, settled, rules_LB, cut_LB)


def _reasons(program: Program, weights_R1: Tensor, values_LB: Tensor, steps_LB: Tensor, mode: Mode) -> Tensor:
    """(L,B) the first rule that gives each literal its value from premises that had theirs before, −1 for none.

    What a rule gave its head when that last grew it still gives. A premise that grew since is now above the head, and
    nothing above the head rests on it.
    """
    heads_R, count = program.heads_R, len(program.heads_R)
    value_RB, step_RB = values_LB[heads_R], steps_LB[heads_R]
    good_RB = (fire(program.premises_RK, weights_R1, values_LB, mode) >= value_RB) & (step_RB > 0)
    for k in range(program.premises_RK.shape[1]):
        premise_R = program.premises_RK[:, k]
        good_RB &= (values_LB[premise_R] > value_RB) | (steps_LB[premise_R] < step_RB)
    numbers_RB = torch.arange(count, dtype=torch.int32)[:, None].where(good_RB, count)
    first_LB = torch.full_like(steps_LB, count)
    first_LB.scatter_reduce_(0, heads_R[:, None].expand_as(numbers_RB), numbers_RB, "amin")
    return first_LB.masked_fill(first_LB == count, -1)[:-1]


def _soften(fired_RB: Tensor, index_RB: Tensor, values_LB: Tensor, temperature: float) -> Tensor:
    """For each rule, the smooth greatest over all rules with its head."""
    greatest_LB = torch.zeros_like(values_LB).scatter_reduce(0, index_RB, fired_RB.detach(), "amax")
    powers_RB = ((fired_RB - greatest_LB.gather(0, index_RB)) / temperature).exp()
    sums_LB = torch.zeros_like(values_LB).scatter_add(0, index_RB, powers_RB)
    counts_LB = torch.zeros_like(values_LB).scatter_add(0, index_RB, torch.ones_like(powers_RB))
    means_RB = sums_LB.gather(0, index_RB) / counts_LB.gather(0, index_RB)
    return greatest_LB.gather(0, index_RB) + temperature * means_RB.log()


def fire(premises_RK: Tensor, weights_R1: Tensor, values_LB: Tensor, mode: Mode) -> Tensor:
    """What each rule gives its head: the conjunction of its premises, at most (proof) or times (train) its weight."""
    bodies = [values_LB.index_select(0, premises_RK[:, k]) for k in range(premises_RK.shape[1])]
    if mode == "train":
        return conjoin_product(bodies) * weights_R1
    least = bodies[0]
    for body in bodies[1:]:
        least = torch.minimum(least, body)
    return torch.minimum(least, weights_R1)
