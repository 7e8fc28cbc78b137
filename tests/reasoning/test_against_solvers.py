"""Random theories: our answers are z3's and clingo's, every step checks, every conflict set is minimal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrn.bench import agreement
from cmrn.bench.agreement import compare, compare_closed, compare_open
from cmrn.errors import GuaranteeError

QUICK, MANY = 150, 100_000


def test_open_world_agrees_with_z3() -> None:
    assert [each for each in map(compare_open, range(QUICK)) if each.wrong] == []


def test_closed_world_agrees_with_clingo() -> None:
    found = list(map(compare_closed, range(2 * QUICK)))
    assert [each for each in found if each.wrong] == []
    assert sum(each.decided for each in found) > QUICK


@given(st.integers(min_value=10**6, max_value=10**9))
@settings(max_examples=25)
def test_any_seed(seed: int) -> None:
    assert [each for each in compare(seed, 2) if each.wrong] == []


def test_a_theory_that_once_differed() -> None:
    assert compare_closed(10_005_016).wrong is None


def test_a_difference_is_told_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "classical_answer", lambda formulas, query: "both")
    with pytest.raises(GuaranteeError, match=r"theory 1000000\d: answered .*, z3 both"):
        agreement.theory_rows(4, 0, lambda text: None)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, MANY // 2, 5_000))
def test_a_hundred_thousand_theories(first: int) -> None:
    agreement.theory_rows(10_000, first, lambda text: None)
