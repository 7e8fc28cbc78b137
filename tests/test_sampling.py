from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.errors import GuaranteeError, UsageError
from cmrn.sampling import NOTHING, SamplingConfig, draw, sample
from tests.tolerances import assert_close

DRAWS = 20_000
LOGITS_V = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -math.inf])


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(config: SamplingConfig) -> torch.Tensor:
    ids = sample(LOGITS_V.expand(DRAWS, -1), config, generator())
    return torch.bincount(ids, minlength=len(LOGITS_V)) / DRAWS


def assert_distribution(observed_V: torch.Tensor, expected_V: torch.Tensor) -> None:
    """Every frequency within 4.5 standard errors of its probability; what has none is never drawn."""
    error_V = (expected_V * (1 - expected_V) / DRAWS).sqrt()
    assert ((observed_V - expected_V).abs() <= 4.5 * error_V).all(), (observed_V, expected_V)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    assert_distribution(frequencies(SamplingConfig(temperature)), (LOGITS_V / temperature).softmax(0))


def test_top_k_draws_from_the_k_likeliest_in_proportion() -> None:
    expected_V = torch.cat([LOGITS_V[:3].softmax(0), torch.zeros(3)])
    assert_distribution(frequencies(SamplingConfig(top_k=3)), expected_V)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    p_V = LOGITS_V.softmax(0)
    just_two = float(p_V[0] + p_V[1]) - 1e-4
    expected_V = torch.cat([LOGITS_V[:2].softmax(0), torch.zeros(4)])
    assert_distribution(frequencies(SamplingConfig(top_p=just_two)), expected_V)
    three = frequencies(SamplingConfig(top_p=just_two + 2e-4))
    assert three[2] > 0
    assert three[3:].sum() == 0


def test_top_p_is_taken_among_the_top_k() -> None:
    share = float(LOGITS_V[:2].softmax(0)[0])
    drawn = frequencies(SamplingConfig(top_k=2, top_p=share - 1e-4))
    assert drawn[0] == 1.0


@pytest.mark.parametrize("config", [SamplingConfig(0.0), SamplingConfig(top_k=1), SamplingConfig(top_p=1e-9)])
def test_greedy_takes_the_first_of_equals(config: SamplingConfig) -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    assert sample(logits_BV, config, generator()).tolist() == [1, 0]


def test_ties_at_the_edge_of_top_k_keep_the_lowest_ids() -> None:
    ids = sample(torch.zeros(2_000, 50), SamplingConfig(top_k=3), generator())
    assert set(ids.tolist()) == {0, 1, 2}


@given(
    logits=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=9),
    temperature=st.floats(0.0, 1e6),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(0.0, 1.0, exclude_min=True),
    seed=st.integers(0, 99),
)
def test_any_finite_logits_give_a_token_that_the_rules_allow(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    logits_BV = torch.tensor([logits])
    config = SamplingConfig(temperature, top_k, top_p)
    drawn = sample(logits_BV, config, generator(seed))
    assert drawn.shape == (1,)
    assert drawn.dtype == torch.int64
    larger = int((logits_BV > logits_BV[0, drawn]).sum())
    assert larger < (top_k or len(logits))
    assert torch.equal(drawn, sample(logits_BV, config, generator(seed)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(0.0)])
def test_logits_that_are_not_numbers_are_refused(bad: float, config: SamplingConfig) -> None:
    logits_BV = torch.zeros(2, 4)
    logits_BV[1, 2] = bad
    with pytest.raises(GuaranteeError, match="not numbers"):
        sample(logits_BV, config, generator())


def test_a_row_without_any_possible_token_is_refused() -> None:
    with pytest.raises(GuaranteeError):
        sample(torch.full((1, 4), -math.inf), SamplingConfig(), generator())


def test_logits_are_left_as_they_were() -> None:
    logits_BV = torch.randn(2, 8, dtype=torch.float64, generator=generator())
    before = logits_BV.clone()
    sample(logits_BV, SamplingConfig(0.7, 3, 0.5), generator())
    assert_close(logits_BV, before)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (-0.1, None, None),
        (math.nan, None, None),
        (math.inf, None, None),
        (1.0, 0, None),
        (1.0, None, 0.0),
        (1.0, None, 1.1),
        (1.0, None, math.nan),
    ],
)
def test_settings_out_of_range_are_refused(temperature: float, top_k: int | None, top_p: float | None) -> None:
    with pytest.raises(UsageError):
        SamplingConfig(temperature, top_k, top_p)


def test_draw_says_of_a_broken_row_that_it_has_nothing_and_draws_from_the_others() -> None:
    logits_BV = torch.tensor([[0.0, float("nan")], [3.0, 100.0], [-torch.inf, -torch.inf]])
    for config in (
        SamplingConfig(),
        SamplingConfig(temperature=0.0),
        SamplingConfig(top_k=1),
        SamplingConfig(top_p=0.5),
    ):
        assert draw(logits_BV, config, None).tolist() == [NOTHING, 1, NOTHING]
