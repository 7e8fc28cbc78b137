"""Fuzzy operators: bounded, dual, Boolean on {0, 1}, with gradients that are right."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.reasoning.logic import (
    Evidence,
    both,
    conjoin_product,
    either,
    for_all,
    for_some,
    implication_loss,
    noisy_or,
    soft_maximum,
)

degree = st.floats(0, 1).map(lambda value: torch.tensor(value, dtype=torch.float64))
evidence = st.builds(Evidence, degree, degree)
modes = st.sampled_from(["proof", "train"])


def channels(value: Evidence) -> tuple[float, float]:
    return value.favour.item(), value.against.item()


@given(evidence)
def test_not_is_an_exact_involution(a: Evidence) -> None:
    assert channels(a.negated().negated()) == channels(a)


@given(evidence, evidence, modes)
def test_operators_stay_in_the_unit_interval_and_are_dual(a: Evidence, b: Evidence, mode: str) -> None:
    for value in (a.and_(b, mode), a.or_(b, mode), a.implies(b, mode)):  # type: ignore[arg-type]
        assert all(-1e-12 <= channel <= 1 + 1e-12 for channel in channels(value))
    dual = a.negated().or_(b.negated(), mode).negated()  # type: ignore[arg-type]
    assert channels(a.and_(b, mode)) == channels(dual)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["proof", "train"])
def test_operators_are_boolean_on_sharp_evidence(mode: str) -> None:
    sharp = {
        True: Evidence(torch.tensor(1.0), torch.tensor(0.0)),
        False: Evidence(torch.tensor(0.0), torch.tensor(1.0)),
    }
    for a, b in itertools.product((True, False), repeat=2):
        assert channels(sharp[a].and_(sharp[b], mode)) == channels(sharp[a and b])  # type: ignore[arg-type]
        assert channels(sharp[a].or_(sharp[b], mode)) == channels(sharp[a or b])  # type: ignore[arg-type]
        assert channels(sharp[a].implies(sharp[b], mode)) == channels(sharp[not a or b])  # type: ignore[arg-type]


def test_conflict_and_ignorance_tell_the_four_values_apart() -> None:
    values = {"unknown": (0.0, 0.0), "true": (1.0, 0.0), "false": (0.0, 1.0), "both": (1.0, 1.0)}
    for name, (favour, against) in values.items():
        value = Evidence(torch.tensor(favour), torch.tensor(against))
        assert value.conflict().item() == (name == "both")
        assert value.ignorance().item() == (name == "unknown")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_soft_quantifiers_stay_between_least_and_greatest(values: list[float]) -> None:
    degrees = torch.tensor(values, dtype=torch.float64)
    low, high = degrees.min().item(), degrees.max().item()
    margin = 1e-3
    for power in (2.0, 6.0):
        assert low - margin <= for_all(degrees, power).item() <= high + margin
        assert low - margin <= for_some(degrees, power).item() <= high + 0.02
    assert for_all(degrees).item() == low
    assert for_some(degrees).item() == high
    assert low - 1e-9 <= soft_maximum(degrees, 0.5).item() <= high + 1e-9
    assert soft_maximum(degrees, 1e-3).item() == pytest.approx(high, abs=3e-3)
    assert high - 1e-9 <= noisy_or(degrees).item() <= 1 + 1e-9


def test_gradients() -> None:
    degrees = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for operator in (
        lambda d: both(d[0], d[1]),
        lambda d: either(d[0], d[1]),
        lambda d: conjoin_product(list(d)),
        lambda d: for_all(d, 3.0),
        lambda d: for_some(d, 3.0),
        lambda d: soft_maximum(d, 0.3),
        lambda d: implication_loss(d[0], d[1]),
        lambda d: implication_loss(d[0], d[1], None),
    ):
        assert torch.autograd.gradcheck(operator, (degrees,))


def test_a_kept_implication_costs_nothing_and_a_broken_one_all() -> None:
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    for sharpness in (None, 9.0):
        assert implication_loss(one, zero, sharpness).item() == pytest.approx(1, abs=1e-6)
        for body, head in ((one, one), (zero, one), (zero, zero)):
            assert implication_loss(body, head, sharpness).item() == pytest.approx(0, abs=1e-6)
