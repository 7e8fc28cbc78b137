"""Multi-query associative recall with long-term memory: two layers, a window far shorter than the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cmrn.bench import mqar
from cmrn.bench.memory_figures import Figure
from cmrn.bench.report import Progress
from cmrn.bench.runs import RunSpec
from cmrn.bench.train import train_steps
from cmrn.bench.variants import build_model, cmrn_spec
from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.model import CMRN
from cmrn.records import LongReading
from cmrn.training.device import resolve_precision
from cmrn.training.random_state import seed_all

__all__ = ["recall_figures"]

WIDTH, WINDOW = 128, 64
CASE = {True: mqar.TESTED[-1], False: mqar.TESTED[0]}
"""The task that counts, with CUDA and without."""
TRAINING: dict[str, Any] = {"sequence_length": mqar.ROW, "batch_size": 64, "max_steps": 6000, "warmup_steps": 200,
                            "learning_rate": 3e-3, "optimizer": "muon", "weight_decay": 0.1}  # fmt: skip
OURS, OFF = "ours", "ours, memory off"


def recall_figures(
    variants: Sequence[str], steps: int | None, seed: int, device: torch.device, progress: Progress
) -> Iterator[Figure]:
    """Share of the queries answered at 256 pairs in 1,024 tokens, trained on up to 64 pairs in 256.

    variants: `ours`, `windowed Transformer` and others of the memory cases; those without a counterpart here are passed
    over. Ours reads 64 tokens of working memory, and beyond them at most 32 long-term entries.
    """
    fields = {**TRAINING, **({} if steps is None else {"max_steps": steps, "warmup_steps": 1})}
    plain = TrainingConfig.model_validate(fields).model_dump(mode="json")
    known = mqar.recall_specs(WIDTH, plain)
    window = next(name for name in known if name.startswith("attention, window"))
    task = CASE[device.type == "cuda"]
    name = f"MQAR, {task.pairs} pairs in {task.length:,} tokens"
    if OURS in variants:
        base = known["ours, W = 256"].model["config"]
        config = CMRNConfig.model_validate(base)
        ours = cmrn_spec(config, working_memory=WINDOW, episodic_chunk=WINDOW, episodic_memory=1024)
        spec = RunSpec("mqar", OURS, seed, ours, {**plain, "memory_reach": mqar.ROW}, f"mqar-{WIDTH}", "mqar")
        for model_name, figures in _ours(spec, device, progress).items():
            yield _figure(name, model_name, spec, figures[str(task.pairs)])
    if "windowed Transformer" in variants:
        spec = known[window]
        result = mqar.train_run(spec, device, progress)
        yield _figure(name, "windowed Transformer", spec, result.figures[str(task.pairs)], variant=window)


def _ours(spec: RunSpec, device: torch.device, progress: Progress) -> dict[str, dict[str, float]]:
    """Accuracies with long-term memory and without, of the same weights."""
    config = TrainingConfig.model_validate(spec.training)
    precision = resolve_precision(config.precision, device)
    seed_all(spec.seed)
    model = build_model(spec.model).to(device)
    assert isinstance(model, CMRN)
    train_steps(model, config, precision, mqar.batches(spec.seed, config.batch_size), progress)
    count = mqar.TESTS if device.type == "cuda" else mqar.TESTS_ON_CPU
    figures = {OFF: mqar.accuracy(model, count, precision)}
    model.set_long_reading(LongReading(mqar.TESTED[-1].length, 0, model.config.episodic_reads))
    return {OURS: mqar.accuracy(model, count, precision), **figures}


def _figure(name: str, model: str, spec: RunSpec, value: float, **detail: object) -> Figure:
    return Figure("mqar", name, model, spec.key, value, "answered", detail={"seed": spec.seed, **detail})
