"""Rules drawn at random and examples of what follows from them, some seen wrongly: what learning is measured on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cmrn.reasoning.chain import chain, compile_rules
from cmrn.reasoning.learn import Examples, Rule

__all__ = ["Hidden", "examples_of", "f1", "hidden_rules", "long_chain", "right_at_depth", "shallow_examples"]


MOST_RULES = 2
"""Rules for one head at most: what nearly always holds tells nothing of why."""


@dataclass(frozen=True)
class Hidden:
    """Rules over literals (two channels an atom), and the atoms that no rule concludes, which are what is given."""

    rules: tuple[Rule, ...]
    atoms: int
    given: tuple[int, ...]


def hidden_rules(seed: int, count: int = 20, atoms: int = 30, given: int = 12, deepest: int = 3) -> Hidden:
    """`count` rules of one or two premises, chains of at most `deepest`, none implied by another with its head.

    No premise follows from the other of its rule: nothing that is seen could tell such a rule from one without it.
    """
    rng = random.Random(seed)
    depth = dict.fromkeys(range(given), 0)
    rules: dict[Rule, None] = {}
    heads = list(range(given, atoms))
    for atom in heads:
        depth[atom] = rng.randint(1, deepest)
    while len(rules) < count:
        head = rng.choice(heads)
        below = [atom for atom in depth if depth[atom] < depth[head]]
        body = tuple(sorted(2 * atom + (rng.random() < 0.3) for atom in rng.sample(below, rng.choice((1, 2, 2)))))
        rule = (body, 2 * head + (rng.random() < 0.3))
        rivals = [set(other) for other, same in rules if same == rule[1]]
        derived = [literal for literal in body if literal // 2 >= given]
        supported = all(any(literal == same for _, same in rules) for literal in derived)
        implied = any(set(body) <= other or other <= set(body) for other in rivals)
        if supported and len(rivals) < MOST_RULES and not implied and _needs_all((*rules, rule)):
            rules[rule] = None
    return Hidden(tuple(rules), atoms, tuple(range(given)))


def _needs_all(rules: Sequence[Rule]) -> bool:
    """Whether no rule has a premise that follows from its other one."""
    return not any(two in _follows(one, rules) for body, _ in rules for one in body for two in body if one != two)


def _follows(literal: int, rules: Sequence[Rule]) -> set[int]:
    """What follows from one literal alone."""
    found = {literal}
    while True:
        fresh = {head for body, head in rules if found.issuperset(body)} - found
        if not fresh:
            return found
        found |= fresh


def examples_of(hidden: Hidden, count: int, flips: float, seed: int) -> Examples:
    """Examples with half of the given atoms true and a third false, and one in ten of all other literals given too.

    Everything that is not given is seen, `flips` of it wrongly.
    """
    generator = torch.Generator().manual_seed(seed)
    literals = 2 * hidden.atoms
    evidence_LN = (torch.rand(literals, count, generator=generator) < 0.1).float()
    draw_AN = torch.rand(len(hidden.given), count, generator=generator)
    for row, atom in enumerate(hidden.given):
        evidence_LN[2 * atom] = (draw_AN[row] < 0.5).float()
        evidence_LN[2 * atom + 1] = (draw_AN[row] > 0.67).float()
    values_LN = chain(compile_rules(hidden.rules, literals), evidence_LN).values_LB
    flipped_LN = torch.rand(values_LN.shape, generator=generator) < flips
    seen_LN = torch.ones_like(values_LN, dtype=torch.bool)
    seen_LN[[2 * atom + side for atom in hidden.given for side in (0, 1)]] = False
    return Examples(evidence_LN, torch.where(flipped_LN, 1 - values_LN, values_LN), seen_LN)


def f1(hidden: Hidden, learned: set[Rule]) -> float:
    """The harmonic mean of the share of hidden rules found and the share of found rules that are hidden ones."""
    return 2 * len(learned & set(hidden.rules)) / (len(learned) + len(hidden.rules))


def long_chain(seed: int, depth: int = 25) -> Hidden:
    """A chain of `depth` rules; two in three of them also need a premise of their own, and a third goes by denials."""
    rng = random.Random(seed)
    given = 1 + depth
    links = [0, *range(given, given + depth)]
    literals = [2 * atom + (rng.random() < 0.3) for atom in links]
    rules: list[Rule] = []
    for at in range(depth):
        side = (2 * (1 + at),) if rng.random() < 0.67 else ()
        rules.append((tuple(sorted((literals[at], *side))), literals[at + 1]))
    return Hidden(tuple(rules), given + depth, tuple(range(given)))


def shallow_examples(hidden: Hidden, count: int, flips: float, seed: int, depth: int = 3) -> Examples:
    """Examples that start somewhere along a chain and are looked at only as far as `depth` steps go."""
    generator = torch.Generator().manual_seed(seed)
    literals = 2 * hidden.atoms
    evidence_LN = torch.zeros(literals, count)
    for atom in hidden.given[1:]:
        evidence_LN[2 * atom] = (torch.rand(count, generator=generator) < 0.6).float()
    starts = [premise for body, _ in hidden.rules for premise in body if premise // 2 not in hidden.given[1:]]
    for example in range(count):
        at = int(torch.randint(len(starts), (1,), generator=generator))
        evidence_LN[starts[at], example] = 1
    program = compile_rules(hidden.rules, literals)
    near_LN = chain(program, evidence_LN, most_steps=depth).values_LB
    seen_LN = near_LN == chain(program, evidence_LN).values_LB
    flipped_LN = torch.rand(near_LN.shape, generator=generator) < flips
    seen_LN[[2 * atom + side for atom in hidden.given for side in (0, 1)]] = False
    return Examples(evidence_LN, torch.where(flipped_LN, 1 - near_LN, near_LN), seen_LN)


def right_at_depth(hidden: Hidden, learned: Sequence[Rule], count: int, seed: int) -> float:
    """The share of questions about the chain's end, from its start, that learned rules answer as the hidden ones do.

    In half of them every premise along the way is given, in the others one at random is not.
    """
    rng = random.Random(seed)
    literals = 2 * hidden.atoms
    evidence_LN = torch.zeros(literals, count)
    evidence_LN[hidden.rules[0][0][0]] = 1
    evidence_LN[[2 * atom for atom in hidden.given[1:]]] = 1
    sides = [premise for body, _ in hidden.rules for premise in body if premise // 2 in hidden.given[1:]]
    for example in range(0, count, 2):
        evidence_LN[rng.choice(sides), example] = 0
    end = hidden.rules[-1][1]
    expected_N = chain(compile_rules(hidden.rules, literals), evidence_LN).values_LB[end]
    found_N = chain(compile_rules(learned, literals), evidence_LN).values_LB[end]
    return float((expected_N == found_N).float().mean())
