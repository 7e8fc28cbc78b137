"""One run of a quality benchmark: build, train, measure. The same few lines for every kind of model."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from cmrn.bench.llama import Llama
from cmrn.bench.measure import bits_per_byte, carried_bits_per_byte, overlapping_bits_per_byte
from cmrn.bench.report import Progress, describe_device, versions
from cmrn.bench.runs import Result, RunSpec, code_version
from cmrn.bench.text import TokenisedText
from cmrn.bench.variants import build_model, sizes
from cmrn.config import TrainingConfig
from cmrn.data.packing import Batch
from cmrn.model import CMRN
from cmrn.training.device import Precision, resolve_precision
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.random_state import seed_all
from cmrn.training.schedule import learning_rate_share, long_reading, routing_temperature
from cmrn.training.step import training_step

__all__ = ["make_result", "train_run", "train_steps"]

WARMING_STEPS = 5
"""Steps left out of the timing: compilation, capture and first allocations fall into them."""
CURVE_POINTS = 20


def train_run(spec: RunSpec, text: TokenisedText, device: torch.device, progress: Progress) -> Result:
    """Train one model on the six domains and measure it on their held-out text."""
    config = TrainingConfig.model_validate(spec.training)
    precision = resolve_precision(config.precision, device)
    seed_all(spec.seed)
    model = build_model(spec.model).to(device)
    owned = model.config.domains if isinstance(model, CMRN) else ()
    dataset = text.dataset(config.sequence_length, spec.seed, owned, lanes=config.carry_states)

    def batches() -> Iterator[Batch]:
        cursor = dataset.start()
        while True:
            batch, cursor = dataset.batch(cursor, config.batch_size)
            yield batch

    seconds, curve = train_steps(model, config, precision, batches(), progress)
    figures = bits_per_byte(model, text, config.sequence_length, config.batch_size, precision)
    shape = (config.sequence_length, config.batch_size, precision)
    if isinstance(model, CMRN):
        carried = carried_bits_per_byte(model, text, *shape)
    else:
        carried = overlapping_bits_per_byte(model, text, *shape)
    return make_result(spec, config, device, seconds, curve, figures, carried)


def make_result(
    spec: RunSpec,
    config: TrainingConfig,
    device: torch.device,
    seconds: float,
    curve: tuple[float, ...],
    figures: dict[str, float],
    carried: dict[str, float] | None = None,
) -> Result:
    """The record of a run that ended."""
    tokens = config.max_steps * config.batch_size * config.sequence_length
    settings = {name: spec.training[name] for name in ("batch_size", "sequence_length", "optimizer", "weight_decay")}
    return Result(
        key=spec.key,
        family=spec.family,
        setting=spec.setting,
        variant=spec.variant,
        seed=spec.seed,
        rate=spec.rate,
        tokens=tokens,
        seconds=round(seconds, 3),
        tokens_per_s=round(tokens / seconds, 1),
        figures=figures,
        carried=carried or {},
        sizes=sizes(spec.model),
        curve=curve,
        steps=config.max_steps,
        data=spec.data,
        settings=settings,
        where={"device": describe_device(str(device)), **versions(), **code_version()},
    )


def train_steps(
    model: CMRN | Llama, config: TrainingConfig, precision: Precision, batches: Iterator[Batch], progress: Progress
) -> tuple[float, tuple[float, ...]]:
    """Take max_steps steps, as training does. (seconds they take at the pace of all but the first, losses on the way).

    The step is the trainer's own: on CUDA compiled and captured, for either kind of model.
    """
    device = next(model.parameters()).device
    model.train()
    step = training_step(
        model,
        OptimizerSet(parameter_groups(model, config)),
        config.gradient_clip,
        precision,
        carry=config.carry_states and isinstance(model, CMRN),
    )
    every = max(1, config.max_steps // CURVE_POINTS)
    warm, started, losses = min(WARMING_STEPS, config.max_steps - 1), time.monotonic(), []
    for number in range(config.max_steps):
        if number == warm:
            _wait(device)
            started = time.monotonic()
        if isinstance(model, CMRN):
            model.set_routing_temperature(routing_temperature(number, config, model.config.routing_temperature))
            if config.memory_reach:
                model.set_long_reading(long_reading(number, config, model.config))
        told = step(next(batches), config.batch_size, learning_rate_share(number, config))
        if (number + 1) % every == 0 or number + 1 == config.max_steps:
            losses.append(told().loss)
            if len(losses) % 5 == 0:
                progress(f"step {number + 1} of {config.max_steps}, loss {losses[-1]:.3f}")
    _wait(device)
    seconds = (time.monotonic() - started) * config.max_steps / (config.max_steps - warm)
    if isinstance(model, CMRN):
        model.set_routing_temperature(model.config.routing_temperature)
        if config.memory_reach:
            model.set_long_reading(None)
    return seconds, tuple(round(loss, 4) for loss in losses)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
