from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.errors import UsageError
from cmrn.training.schedule import check_long_reading, learning_rate_share, routing_temperature


@given(warmup=st.integers(0, 20), steps=st.integers(1, 60), final=st.floats(0, 1))
def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_share(warmup: int, steps: int, final: float) -> None:
    config = TrainingConfig(max_steps=steps, warmup_steps=warmup, final_learning_rate=final)
    shares = [learning_rate_share(step, config) for step in range(steps)]
    assert all(0 <= share <= 1 for share in shares)
    rising, falling = shares[:warmup], shares[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup:
        assert rising[0] == 1 / warmup
    if len(falling) > 1:
        assert falling[0] == 1
    if falling:
        assert falling[-1] == pytest.approx(final)


def test_half_way_down_is_half_the_cosine() -> None:
    config = TrainingConfig(max_steps=21, warmup_steps=0, final_learning_rate=0.2)
    assert learning_rate_share(10, config) == pytest.approx(0.6)
    assert learning_rate_share(5, config) > 0.8


@pytest.mark.parametrize(("schedule", "quarter"), [("constant", 0.5), ("linear", 1.625), ("cosine", 1.78033)])
def test_the_temperature_goes_from_its_initial_value_to_the_models(schedule: str, quarter: float) -> None:
    config = TrainingConfig.model_validate(
        {"max_steps": 9, "routing_temperature_schedule": schedule, "routing_temperature_initial": 2.0}
    )
    values = [routing_temperature(step, config, 0.5) for step in range(9)]
    assert values[0] == (0.5 if schedule == "constant" else 2.0)
    assert values[2] == pytest.approx(quarter, abs=1e-5)
    assert values[-1] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_what_long_reading_needs_is_checked() -> None:
    without, remembers = CMRNConfig(), CMRNConfig(episodic_memory=512)
    check_long_reading(TrainingConfig(), without)
    check_long_reading(TrainingConfig(memory_reach=64, sequence_length=64), remembers)
    check_long_reading(TrainingConfig(memory_reach=65, sequence_length=64, carry_states=True), remembers)
    with pytest.raises(UsageError, match="the model has none"):
        check_long_reading(TrainingConfig(memory_reach=64, sequence_length=64), without)
    with pytest.raises(UsageError, match="65 is more than a row's 64 tokens"):
        check_long_reading(TrainingConfig(memory_reach=65, sequence_length=64), remembers)
