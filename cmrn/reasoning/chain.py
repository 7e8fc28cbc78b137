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

    Where reasons were asked for: rules_LB is the rule that first gave each literal its value, −1 for none, and
    steps_LB when. The premises of that rule had their values a step before, so reasons form no cycle.
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

    >>> compile_rules([((0, 2), 4)], literals=6).premises_RK.tolist()
    [[0, 2]]
    """
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
    one = torch.ones_like(evidence_LB[:1])
    values_LB = torch.cat((evidence_LB, one))
    heads_R, weights_R1 = program.heads_R, program.weights_R.to(evidence_LB.dtype)[:, None]
    rules_LB = steps_LB = None
    if reasons:
        rules_LB = torch.full(values_LB.shape, -1, dtype=torch.long)
        steps_LB = torch.zeros(values_LB.shape, dtype=torch.long)
    index_RB = heads_R[:, None].expand(-1, values_LB.shape[1])
    for step in range(1, most_steps + 1):
        fired_RB = fire(program.premises_RK, weights_R1, values_LB, mode)
        gained_RB = fired_RB if temperature is None else _soften(fired_RB, index_RB, values_LB, temperature)
        grown_LB = values_LB.scatter_reduce(0, index_RB, gained_RB, "amax")
        changed_LB = grown_LB > values_LB + epsilon
        if rules_LB is not None and steps_LB is not None:
            gives_RB = (gained_RB == grown_LB[heads_R]) & changed_LB[heads_R]
            numbers_RB = torch.arange(len(heads_R))[:, None].where(gives_RB, len(heads_R))
            first_LB = torch.full_like(rules_LB, len(heads_R)).scatter_reduce(0, index_RB, numbers_RB, "amin")
            rules_LB = torch.where(changed_LB, first_LB, rules_LB)
            steps_LB = torch.where(changed_LB, step, steps_LB)
        values_LB = grown_LB
        if not bool(changed_LB.any()):
            return Chained(values_LB[:-1], step, True, _cut(rules_LB), _cut(steps_LB))
    return Chained(values_LB[:-1], most_steps, False, _cut(rules_LB), _cut(steps_LB))


def _cut(values: Tensor | None) -> Tensor | None:
    return None if values is None else values[:-1]


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
