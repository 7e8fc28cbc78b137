from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.data.packing import Batch
from cmrn.errors import GuaranteeError, ResourceError
from cmrn.model import CMRN
from cmrn.training import loop
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.step import PlainStep, StepResult, training_step
from tests.training.small_run import Recorder, model_config, train, training_config
from tests.training.test_kill import metrics, weights


def batch(rows: int = 4, length: int = 24, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 280, (rows, length), generator=draw)
    documents = (torch.rand(rows, length, generator=draw) < 0.1).cumsum(1)
    return Batch(ids, documents, torch.zeros_like(ids), ids.clone())


def make_step(model: nn.Module, **changes: object) -> PlainStep:
    config = training_config(**changes)
    step = training_step(model, OptimizerSet(parameter_groups(model, config)), 1.0, "float32")
    assert isinstance(step, PlainStep)
    return step


def small_llama() -> Llama:
    return Llama(LlamaConfig(vocab_size=280, d_model=16, layers=2, hidden=32, head_dim=8))


def test_steps_lower_the_loss_and_tell_the_load() -> None:
    torch.manual_seed(0)
    step = make_step(CMRN(model_config()).train())
    results = [step(batch(), 4, 1.0)() for _ in range(8)]
    assert results[-1].loss < results[0].loss - 0.15
    assert all(result.finite and result.norm > 0 for result in results)
    assert sum(results[0].load) == pytest.approx(1)
    assert len(results[0].load) == 3


def test_a_model_that_does_not_route_trains_with_it() -> None:
    torch.manual_seed(0)
    step = make_step(small_llama().train())
    results = [step(batch(), 2, 1.0)() for _ in range(8)]
    assert results[-1].loss < results[0].loss - 0.15
    assert results[0].load == ()


def test_want_of_memory_in_the_optimizers_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step(small_llama().train())

    def fail(_share: float) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(step.optimizers, "step", fail)
    with pytest.raises(ResourceError, match="optimizers' state"):
        step(batch(), 4, 1.0)


class LateStep:
    """A step whose result is asked for late, as a device's is."""

    def __init__(self, *arguments: object, capture: bool, carry: bool) -> None:
        self.step, self.asked = PlainStep(*arguments, carry=carry), 0  # type: ignore[arg-type]
        self.carried = self.step.carried

    def __call__(self, rows: Batch, micro_batch: int, share: float) -> Callable[[], StepResult]:
        result = self.step(rows, micro_batch, share)
        return lambda: result()


def test_a_run_that_is_told_late_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = Recorder()
    train(tmp_path / "soon", reporter=soon)
    monkeypatch.setattr(loop, "training_step", LateStep)
    late = Recorder()
    train(tmp_path / "late", reporter=late)
    assert [notice.message.split(":")[0] for notice in late.notices] == ["compiling kernels"]
    assert [report.step for report in late.steps] == list(range(1, 9))
    assert [report.loss for report in late.steps] == [report.loss for report in soon.steps]
    assert metrics(tmp_path / "late") == metrics(tmp_path / "soon")
    assert weights(tmp_path / "late") == weights(tmp_path / "soon")


def test_steps_that_are_told_late_still_end_a_broken_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "training_step", LateStep)
    broken = StepResult(float("nan"), 1.0, (0.5, 0.25, 0.25), False)
    monkeypatch.setattr(LateStep, "__call__", lambda *_arguments: lambda: broken)
    with pytest.raises(GuaranteeError, match="3 steps in a row, up to step 3"):
        train(tmp_path, checkpoint_every=100, eval_every=100)
