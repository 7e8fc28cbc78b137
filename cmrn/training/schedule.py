"""What changes from step to step: the learning rate, the router's temperature, and how memory is read."""

from __future__ import annotations

import math

from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.errors import UsageError
from cmrn.records import LongReading

__all__ = ["check_long_reading", "learning_rate_share", "long_reading", "routing_temperature"]


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """The learning rate of step `step` (from 0) as a share of its peak, in [0, 1].

    Rises in a line over `warmup_steps`, whose last one has the peak; then half a cosine down to
    `final_learning_rate`, which the last step has.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = _progress(step - config.warmup_steps, config.max_steps - config.warmup_steps)
    return config.final_learning_rate + (1 - config.final_learning_rate) * _cosine(progress)


def routing_temperature(step: int, config: TrainingConfig, final: float) -> float:
    """The router's temperature at step `step` (from 0): from `routing_temperature_initial` to `final`, the model's.

    The schedule `constant` has `final` throughout.
    """
    progress = _progress(step, config.max_steps)
    match config.routing_temperature_schedule:
        case "constant":
            return final
        case "linear":
            remaining = 1 - progress
        case "cosine":
            remaining = _cosine(progress)
    return final + (config.routing_temperature_initial - final) * remaining


def check_long_reading(config: TrainingConfig, model: CMRNConfig) -> None:
    """Make sure that there is what training is to read of long-term memory.

    Raises:
        UsageError: the model has none; or the reach is longer than a row, and rows do not read on.
    """
    reach, length = config.memory_reach, config.sequence_length
    if reach and not model.episodic_memory:
        raise UsageError("training.memory_reach reads a long-term memory, and the model has none",
                         hint="set model.episodic_memory, or memory_reach to 0")  # fmt: skip
    if reach > length and not config.carry_states:
        raise UsageError(f"training.memory_reach {reach} is more than a row's {length} tokens, and rows do not read on",
                         hint="set training.carry_states")  # fmt: skip


def long_reading(step: int, config: TrainingConfig, model: CMRNConfig) -> LongReading | None:
    """How step `step` (from 0) reads long-term memory: softly at first, from `memory_top_from` on as in use.

    None where the model has none or `memory_reach` is 0.
    """
    if not config.memory_reach or not model.episodic_memory:
        return None
    if config.memory_top_from is None or step < config.memory_top_from:
        return LongReading(config.memory_reach)
    return LongReading(config.memory_reach, model.episodic_keep, model.episodic_reads)


def _progress(step: int, steps: int) -> float:
    """How far `step` (from 0) of `steps` is, in [0, 1]; 1 at the last step."""
    return min(1.0, step / (steps - 1)) if steps > 1 else 1.0


def _cosine(progress: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2
