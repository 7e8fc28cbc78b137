"""Chaining as tensors: the least fixpoint, the same in both modes on {0, 1}, with reasons that form no cycle."""

from __future__ import annotations

import time
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.reasoning.chain import Program, chain, compile_rules

Rules = list[tuple[tuple[int, ...], int]]
LITERALS = 9
rules_of = st.lists(
    st.tuples(st.lists(st.integers(0, LITERALS - 1), max_size=3).map(tuple), st.integers(0, LITERALS - 1)), max_size=12
)
facts_of = st.sets(st.integers(0, LITERALS - 1), max_size=3)


def slow_fixpoint(rules: Rules, facts: set[int]) -> set[int]:
    known = set(facts)
    while grown := {head for body, head in rules if set(body) <= known} - known:
        known |= grown
    return known


def evidence_of(facts: set[int]) -> Tensor:
    evidence_LB = torch.zeros(LITERALS, 1)
    evidence_LB[list(facts)] = 1
    return evidence_LB


@given(rules_of, facts_of)
def test_both_modes_reach_the_least_fixpoint(rules: Rules, facts: set[int]) -> None:
    program = compile_rules(rules, LITERALS)
    expected = slow_fixpoint(rules, facts)
    for mode in ("proof", "train"):
        done = chain(program, evidence_of(facts), mode=mode)  # type: ignore[arg-type]
        assert done.settled
        assert set(done.values_LB[:, 0].nonzero().flatten().tolist()) == expected
        assert done.steps <= LITERALS + 1


@given(rules_of, facts_of)
def test_reasons_come_before_what_they_support(rules: Rules, facts: set[int]) -> None:
    done = chain(compile_rules(rules, LITERALS), evidence_of(facts), reasons=True)
    assert done.rules_LB is not None
    assert done.steps_LB is not None
    for literal in slow_fixpoint(rules, facts) - facts:
        body, head = rules[int(done.rules_LB[literal, 0])]
        assert head == literal
        assert all(done.steps_LB[premise, 0] < done.steps_LB[literal, 0] for premise in body)


@given(st.integers(0, 10**6), st.sampled_from(["proof", "train"]))
def test_reasons_of_degrees_give_the_value_and_end_at_the_evidence(seed: int, mode: Literal["proof", "train"]) -> None:
    generator = torch.Generator().manual_seed(seed)
    premises_RK = torch.randint(0, 12, (40, 2), generator=generator)
    heads_R = torch.randint(0, 12, (40,), generator=generator)
    weights_R = torch.randint(1, 5, (40,), generator=generator) / 4
    evidence_LB = torch.randint(0, 5, (12, 3), generator=generator) / 4
    done = chain(Program(premises_RK, heads_R, weights_R, 12), evidence_LB, mode=mode, reasons=True)
    assert done.rules_LB is not None
    values = done.values_LB.tolist()
    for column in range(3):
        known = {literal for literal in range(12) if values[literal][column] == evidence_LB[literal, column]}
        assert all((int(done.rules_LB[literal, column]) < 0) == (literal in known) for literal in range(12))
        while len(known) < 12:
            size = len(known)
            for literal in set(range(12)) - known:
                rule = int(done.rules_LB[literal, column])
                body = [values[premise][column] for premise in premises_RK[rule].tolist()]
                given_value = min(body) if mode == "proof" else body[0] * body[1]
                weight = float(weights_R[rule])
                expected = min(given_value, weight) if mode == "proof" else given_value * weight
                assert values[literal][column] == expected
                assert heads_R[rule] == literal
                if known.issuperset(premises_RK[rule].tolist()):
                    known.add(literal)
            assert len(known) > size


def test_least_and_greatest_do_not_decay_and_products_do() -> None:
    rules = [((i,), i + 1) for i in range(10)]
    program = compile_rules(rules, 11, [0.9] * 10)
    evidence_LB = torch.zeros(11, 1)
    evidence_LB[0] = 1
    assert chain(program, evidence_LB).values_LB[10, 0] == pytest.approx(0.9)
    assert chain(program, evidence_LB, mode="train").values_LB[10, 0] == pytest.approx(0.9**10)


def test_a_cycle_supports_nothing() -> None:
    done = chain(compile_rules([((0,), 1), ((1,), 0)], 3), torch.zeros(3, 2), reasons=True)
    assert done.settled
    assert not done.values_LB.any()


def test_the_batch_is_its_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    premises_RK = torch.randint(0, 20, (40, 2), generator=generator)
    program = Program(
        premises_RK, torch.randint(0, 20, (40,), generator=generator), torch.rand(40, generator=generator), 20
    )
    evidence_LB = torch.rand(20, 5, generator=generator)
    whole = chain(program, evidence_LB).values_LB
    for column in range(5):
        assert torch.equal(whole[:, column : column + 1], chain(program, evidence_LB[:, column : column + 1]).values_LB)


def test_steps_are_capped_and_said_to_be() -> None:
    program = compile_rules([((i,), i + 1) for i in range(8)], LITERALS)
    assert not chain(program, evidence_of({0}), most_steps=3).settled


def test_gradients_reach_through_sixteen_steps() -> None:
    weights_R = torch.full((16,), 0.9, requires_grad=True)
    program = Program(torch.arange(16)[:, None], torch.arange(1, 17), weights_R, 17)
    evidence_LB = torch.zeros(17, 1)
    evidence_LB[0] = 1
    chain(program, evidence_LB, mode="train", most_steps=16).values_LB[16].sum().backward()
    assert weights_R.grad is not None
    assert (weights_R.grad > 0.1).all()


def test_a_temperature_gives_every_rule_a_gradient_and_vanishes() -> None:
    evidence_LB = torch.tensor([[1.0], [0.6], [0.0]], dtype=torch.float64)
    weights_R = torch.tensor([0.9, 0.8], dtype=torch.float64, requires_grad=True)
    program = Program(torch.tensor([[0], [1]]), torch.tensor([2, 2]), weights_R, 3)
    soft = chain(program, evidence_LB, mode="train", temperature=0.5, most_steps=1).values_LB[2, 0]
    soft.backward()
    assert weights_R.grad is not None
    assert (weights_R.grad > 0).all()
    assert 0.48 < soft.item() < 0.9
    cold = chain(program, evidence_LB, mode="train", temperature=1e-4, most_steps=1).values_LB[2, 0]
    assert cold.item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
def test_fifty_million_firings_a_second() -> None:
    generator = torch.Generator().manual_seed(0)
    premises_RK = torch.randint(0, 1024, (2048, 2), generator=generator)
    heads_R = torch.randint(0, 1024, (2048,), generator=generator)
    program = Program(premises_RK, heads_R, torch.rand(2048, generator=generator), 1024)
    evidence_LB = torch.rand(1024, 64, generator=generator)

    def rate() -> float:
        start = time.perf_counter()
        done = chain(program, evidence_LB, most_steps=8, reasons=True)
        return 2048 * 64 * done.steps / (time.perf_counter() - start)

    assert max(rate() for _ in range(20)) > 50e6
