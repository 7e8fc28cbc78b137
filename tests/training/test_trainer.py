from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmrn.errors import GuaranteeError, InterruptedRunError, LockedError, ResourceError, UsageError
from cmrn.files import verify_folder, writer_lock
from cmrn.model import CMRN
from cmrn.training import loop, step
from cmrn.training.accumulate import StepGradient, accumulate
from cmrn.training.checkpoint import checkpoints_of, newest_whole
from cmrn.training.progress import StepReport
from cmrn.training.trainer import CMRNTrainer
from tests.training.small_run import Recorder, datasets, make_trainer, model_config, tokenizer, train, training_config
from tests.training.test_kill import metrics, weights


class At(Recorder):
    """Calls `action` after step `step`."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        super().__init__()
        self.at, self.action = step, action

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.at:
            self.action()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_training_learns_reports_and_saves(tmp_path: Path) -> None:
    told = Recorder()
    result = train(tmp_path, reporter=told, max_steps=40, checkpoint_every=15, eval_every=20)
    assert [report.step for report in told.steps] == list(range(1, 41))
    assert told.steps[-1].loss < 0.7 * told.steps[0].loss
    assert told.steps[-1].eta_seconds == 0
    assert all(sum(report.expert_load.values()) == pytest.approx(1) for report in told.steps)
    assert told.steps[0].expert_load.keys() == {"zoo", "sum", "rest"}
    assert [(report.step, report.final) for report in told.evaluations] == [(20, False), (40, True)]
    assert told.evaluations[-1].tokens > told.evaluations[0].tokens
    assert result.bits_per_byte == told.evaluations[-1].bits_per_byte
    assert result.checkpoint == tmp_path / "checkpoints" / "step-40"
    assert [step for step, _ in checkpoints_of(tmp_path)] == [40, 30]
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 41))
    assert lines[0]["loss"] == told.steps[0].loss


def test_a_checkpoint_is_the_model_that_was_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    result = trainer.train(*datasets(tokenizer(), trainer.model.config))
    assert result.checkpoint is not None
    loaded = CMRN.from_pretrained(result.checkpoint)
    trained = trainer.model.state_dict()
    assert not trainer.model.training
    assert all(torch.equal(tensor, trained[name]) for name, tensor in loaded.state_dict().items())


def test_the_balance_moves_with_every_step_and_the_metrics_are_durable_before_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        events.append(target.name)
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train(*datasets(tokenizer(), trainer.model.config))
    assert "metrics.jsonl" in events[: events.index("step-1")]
    biases = [bias for name, bias in trainer.model.named_buffers() if name.endswith("bias_E")]
    assert len(biases) == 2
    assert all(float(bias.abs().sum()) > 0 for bias in biases)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(None)
    train_set, _ = datasets(tokenizer(), trainer.model.config)
    result = trainer.train(train_set)
    assert (result.run, result.checkpoint, result.bits_per_byte) == (None, None, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{}, {"precision": "bfloat16", "optimizer": "adamw", "micro_batch_size": 3}])
def test_the_same_seed_gives_the_same_losses_and_weights(changes: dict[str, object], tmp_path: Path) -> None:
    train(tmp_path / "one", **changes)
    train(tmp_path / "two", **changes)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 3), (signal.SIGTERM, 4)])
def test_a_signal_ends_the_step_and_saves_and_the_run_goes_on(number: int, step: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    told = At(step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(InterruptedRunError, match=f"stopped after step {step} of 8, saved in") as caught:
        train(tmp_path / "stopped", reporter=told)
    assert caught.value.signal_number == number
    assert "resume" in str(caught.value.hint)
    assert signal.getsignal(number) == before
    assert newest_whole(tmp_path / "stopped")[0] == tmp_path / "stopped" / "checkpoints" / f"step-{step}"
    train(tmp_path / "stopped", resume=True)
    train(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_a_signal_within_an_evaluation_saves_and_the_evaluation_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.evaluate

    def evaluate(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.raises(InterruptedRunError, match="after step 3"):
        train(tmp_path / "stopped")
    monkeypatch.setattr(loop, "evaluate", real)
    train(tmp_path / "stopped", resume=True)
    train(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_settings_that_alter_no_weight_may_change_on_resuming(tmp_path: Path) -> None:
    told = At(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedRunError):
        train(tmp_path / "one", reporter=told)
    train(tmp_path / "one", resume=True, eval_every=7, checkpoint_every=100, keep_checkpoints=1, eval_tokens=9)
    train(tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    before = weights(tmp_path)
    with pytest.raises(UsageError) as caught:
        train(tmp_path, resume=True, max_steps=4, learning_rate=0.5)
    assert caught.value.exit_code == 2
    assert "training.learning_rate: 0.01 -> 0.5" in str(caught.value)
    assert "training.max_steps: 2 -> 4" in str(caught.value)
    assert weights(tmp_path) == before


def test_other_data_threads_or_provenance_are_refused(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    words, config = tokenizer(), training_config(max_steps=2)
    trainer = CMRNTrainer(
        CMRN(model_config(), words), config, run_dir=tmp_path, seed=3, device="cpu", provenance={"data": {"x": 1}}
    )
    train_set, held_out = datasets(words, model_config())
    train_set.fingerprint = "other"
    torch.set_num_threads(2)
    with pytest.raises(UsageError) as caught:
        trainer.train(train_set, held_out, resume=True)
    message = str(caught.value)
    assert "data: null" in message
    assert "data_fingerprint" in message
    assert "threads: 1 -> 2" in message


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path, max_steps=2)
    before = weights(tmp_path)
    with pytest.raises(UsageError, match="holds a run already"):
        train(tmp_path, max_steps=2)
    assert weights(tmp_path) == before


def test_without_a_checkpoint_resuming_starts_afresh_and_says_so(tmp_path: Path) -> None:
    told = Recorder()
    train(tmp_path / "one", resume=True, reporter=told)
    assert any("starting afresh" in notice.message for notice in told.notices)
    train(tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_a_corrupt_newest_checkpoint_is_passed_over_and_named(tmp_path: Path) -> None:
    train(tmp_path / "one")
    expected, lines = weights(tmp_path / "one"), metrics(tmp_path / "one")
    newest = tmp_path / "one" / "checkpoints" / "step-8"
    spoil(newest / "backbone.safetensors")
    told = Recorder()
    train(tmp_path / "one", resume=True, reporter=told)
    warned = [notice for notice in told.notices if notice.level == "warning"]
    assert len(warned) == 1
    assert str(newest / "backbone.safetensors") in warned[0].message
    assert [report.step for report in told.steps] == [7, 8]
    assert weights(tmp_path / "one") == expected
    assert metrics(tmp_path / "one") == lines


def test_a_finished_run_is_only_evaluated_again(tmp_path: Path) -> None:
    first = train(tmp_path)
    before, told = metrics(tmp_path), Recorder()
    again = train(tmp_path, resume=True, reporter=told)
    assert told.steps == []
    assert again.bits_per_byte == first.bits_per_byte
    assert metrics(tmp_path) == before


def test_two_trainers_cannot_share_a_run(tmp_path: Path) -> None:
    with writer_lock(tmp_path), pytest.raises(LockedError):
        train(tmp_path)


def break_gradients(monkeypatch: pytest.MonkeyPatch, broken: set[int]) -> None:
    """Give the batches of these numbers (from 1) a gradient that is not a number."""
    count = [0]

    def accumulate_broken(model: CMRN, *arguments: object) -> StepGradient:
        result = accumulate(model, *arguments)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] in broken:
            gradient = model.embedding.weight.grad
            assert isinstance(gradient, Tensor)
            gradient[0, 0] = float("nan")
        return result

    monkeypatch.setattr(step, "accumulate", accumulate_broken)


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_gradients(monkeypatch, {2, 3, 5})
    told = Recorder()
    train(tmp_path, reporter=told)
    assert [report.step for report in told.steps if report.skipped] == [2, 3, 5]
    assert len([line for line in metrics(tmp_path) if line["event"] == "skipped"]) == 3
    model = CMRN.from_pretrained(tmp_path / "checkpoints" / "step-8")
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_a_skipped_step_changes_no_weight_and_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    break_gradients(monkeypatch, {1, 2})
    trainer = make_trainer(None, max_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train(*datasets(tokenizer(), trainer.model.config))
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    assert all(float(bias.abs().sum()) == 0 for name, bias in trainer.model.named_buffers() if "bias_E" in name)


def test_three_steps_in_a_row_end_the_run_and_keep_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_gradients(monkeypatch, {2, 4, 5, 6})
    with pytest.raises(GuaranteeError, match="3 steps in a row, up to step 6") as caught:
        train(tmp_path, checkpoint_every=3)
    assert caught.value.exit_code == 8
    assert "step-3" in str(caught.value.hint)
    assert [step for step, _ in checkpoints_of(tmp_path)] == [3]


def test_skips_are_counted_across_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_gradients(monkeypatch, {3, 4, 5})
    with pytest.raises(InterruptedRunError):
        train(tmp_path, reporter=At(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(GuaranteeError, match="up to step 5"):
        train(tmp_path, resume=True)


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1])))
    try:
        with pytest.raises(ResourceError, match="no space") as caught:
            train(tmp_path, reporter=told)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.exit_code == 6
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    verify_folder(tmp_path / "checkpoints" / "step-2")
    train(tmp_path, resume=True)
    assert newest_whole(tmp_path)[0] == tmp_path / "checkpoints" / "step-8"


def fail_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let memory suffice for `rows` rows at once."""

    def accumulate_within(model: CMRN, batch: object, micro_batch: int, *arguments: object) -> StepGradient:
        if micro_batch > rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return accumulate(model, batch, micro_batch, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "accumulate", accumulate_within)


def test_out_of_memory_halves_the_micro_batch_once_then_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Recorder()
    fail_above(2, monkeypatch)
    train(tmp_path / "halved", reporter=told)
    assert [notice.message for notice in told.notices] == ["out of memory: going on with micro-batches of 2"]
    assert len(told.steps) == 8
    fail_above(1, monkeypatch)
    with pytest.raises(ResourceError, match="at 2 sequences at a time") as caught:
        train(tmp_path / "failed")
    assert caught.value.hint == "training.micro_batch_size=1"


def test_another_failure_is_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(step, "accumulate", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(None)


def test_the_temperature_follows_its_schedule_and_ends_at_the_models(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, routing_temperature_initial=3.0)
    trainer.train(*datasets(tokenizer(), trainer.model.config))
    values = [line["routing_temperature"] for line in metrics(tmp_path) if line["event"] == "step"]
    assert (values[0], values[-1]) == (3.0, 1.0)
    assert values == sorted(values, reverse=True)
    assert [float(value) for name, value in trainer.model.named_buffers() if name.endswith("temperature")] == [1.0, 1.0]
