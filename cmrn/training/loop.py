"""The steps of a run between its start and its end, with what is saved and said on the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrn.config import TrainingConfig
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.packing import Batch, Cursor, PackedDataset
from cmrn.errors import GuaranteeError, InterruptedRunError, ResourceError
from cmrn.model import CMRN
from cmrn.training.accumulate import out_of_memory
from cmrn.training.checkpoint import TrainingState, prune_checkpoints, save_checkpoint
from cmrn.training.device import Precision
from cmrn.training.metrics import Evaluation, evaluate
from cmrn.training.metrics_log import MetricsLog
from cmrn.training.optim import OptimizerSet
from cmrn.training.progress import EvaluationReport, Notice, Reporter, StepReport
from cmrn.training.random_state import restore_random, save_random
from cmrn.training.schedule import learning_rate_share, long_reading, routing_temperature
from cmrn.training.signals import StopRequest
from cmrn.training.step import PlainStep, StepResult, training_step
from cmrn.unseen import Unseen, measure_unseen

__all__ = ["Progress", "RunSettings", "TrainingLoop"]

MOST_SKIPPED_IN_A_ROW = 3
STEPS_OF_A_RATE = 20


@dataclass
class Progress:
    """Where a run is. checkpoint: the newest saved, of `saved_step`; seconds_before: trained by earlier processes.

    carried: the state that an earlier process's last batch left.
    """

    cursor: Cursor
    step: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0
    seconds_before: float = 0.0
    checkpoint: Path | None = None
    saved_step: int = -1
    carried: dict[str, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_OF_A_RATE))

    @property
    def seconds(self) -> float:
        """Time spent training, by this process and those before it."""
        return self.seconds_before + time.monotonic() - self.started


@dataclass(frozen=True)
class RunSettings:
    """What stays the same for a whole run. identity: what a checkpoint must agree with to be resumed."""

    config: TrainingConfig
    precision: Precision
    run_dir: Path | None
    reporter: Reporter
    identity: dict[str, Any]
    resume_hint: str


@dataclass(frozen=True)
class _Launched:
    """A step whose result may still be computed. number: steps done with it; cursor: where its batch was read from."""

    number: int
    share: float
    temperature: float
    cursor: Cursor
    result: Callable[[], StepResult]


class TrainingLoop:
    """Takes steps until max_steps or a stop. Each is followed by the checkpoint and the evaluation that are due.

    A step's line, checkpoint and evaluation come in this order, so a run killed between any two misses none of them.
    On CUDA a step is reported when the next one has been launched, so that the device never waits for a report;
    whatever saves, evaluates or stops settles the last step first.
    """

    def __init__(
        self,
        model: CMRN,
        optimizers: OptimizerSet,
        settings: RunSettings,
        progress: Progress,
        log: MetricsLog,
        request: StopRequest,
    ) -> None:
        self.model, self.optimizers, self.settings = model, optimizers, settings
        self.config, self.progress, self.log, self.request = settings.config, progress, log, request
        self.micro_batch = min(self.config.micro_batch_size or self.config.batch_size, self.config.batch_size)
        self._take = training_step(
            model,
            optimizers,
            self.config.gradient_clip,
            settings.precision,
            capture=self.config.capture == "auto",
            carry=self.config.carry_states,
        )
        self._take.carried.restore(progress.carried)
        self._launched: _Launched | None = None

    def run(self, dataset: PackedDataset, held_out: EvaluationSet | None) -> Evaluation:
        """Take the steps that are left; return the last evaluation, of all held-out text."""
        progress, config = self.progress, self.config
        if progress.step < config.max_steps and not isinstance(self._take, PlainStep):
            self.settings.reporter.notice(Notice("compiling kernels: about a minute, once for a model on a machine"))
        while True:
            if held_out is not None and self._evaluation_due():
                self._settle()
                self._evaluate(held_out, config.eval_tokens, final=False)
            if progress.step == config.max_steps:
                break
            self._step(dataset)
            if progress.step % config.checkpoint_every == 0 or progress.step == config.max_steps:
                self._settle()
                last = progress.step == config.max_steps and self.settings.run_dir is not None
                self._save(measure_unseen(self.model, held_out) if last and held_out is not None else None)
            self._stop_if_asked()
        self.model.set_routing_temperature(self.model.config.routing_temperature)
        if held_out is None:
            return Evaluation({}, {}, 0)
        return self._evaluate(held_out, None, final=True)

    def _evaluation_due(self) -> bool:
        step = self.progress.step
        within = 0 < step < self.config.max_steps
        return within and step % self.config.eval_every == 0 and not self.log.evaluated(step)

    def _step(self, dataset: PackedDataset) -> None:
        progress, config = self.progress, self.config
        started = time.monotonic()
        batch, cursor = dataset.batch(progress.cursor, config.batch_size)
        temperature = routing_temperature(progress.step, config, self.model.config.routing_temperature)
        share = learning_rate_share(progress.step, config)
        self.model.train()
        self.model.set_routing_temperature(temperature)
        self.model.set_long_reading(long_reading(progress.step, config, self.model.config))
        result = self._launch(batch, share)
        before, self._launched = self._launched, None
        launched = _Launched(progress.step + 1, share, temperature, progress.cursor, result)
        progress.cursor = cursor
        progress.step += 1
        progress.durations.append(time.monotonic() - started)
        if before is not None:
            self._report(before)
        self._launched = launched
        if isinstance(self._take, PlainStep):
            self._settle()

    def _launch(self, batch: Batch, share: float) -> Callable[[], StepResult]:
        """Start the step; once more, with half the micro-batch, where memory did not suffice."""
        document, tensors = save_random()
        try:
            return self._take(batch, self.micro_batch, share)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            cause = error
        self.model.zero_grad(set_to_none=True)
        smaller = max(1, self.micro_batch // 2)
        hint = f"training.micro_batch_size={max(1, smaller // 2)}"
        if smaller == self.micro_batch:
            hint = "a smaller training.sequence_length or model.d_model"
            raise ResourceError("out of memory at one sequence at a time", where="training", hint=hint) from cause
        self.micro_batch = smaller
        self.settings.reporter.notice(Notice(f"out of memory: going on with micro-batches of {smaller}", "warning"))
        restore_random(document, tensors)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return self._take(batch, smaller, share)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory at {smaller} sequences at a time", where="training", hint=hint
            ) from error

    def _settle(self) -> None:
        """Wait for the step that was launched last, if it is not reported yet, and report it."""
        launched, self._launched = self._launched, None
        if launched is not None:
            self._report(launched)

    def _report(self, launched: _Launched) -> None:
        result = launched.result()
        self._report_step(launched, result)
        self._count_skips(launched, result.finite)

    def _report_step(self, launched: _Launched, result: StepResult) -> None:
        progress, config = self.progress, self.config
        mean = sum(progress.durations) / len(progress.durations)
        names = [expert.name for expert in self.model.config.named_experts]
        report = StepReport(
            step=launched.number,
            max_steps=config.max_steps,
            loss=result.loss,
            tokens_per_second=config.batch_size * config.sequence_length / mean,
            eta_seconds=(config.max_steps - launched.number) * mean,
            learning_rate=config.learning_rate * launched.share,
            expert_load=dict(zip(names, result.load, strict=True)),
            gradient_norm=result.norm,
            skipped=not result.finite,
        )
        self.log.append(
            "step",
            report.step,
            loss=_finite(result.loss),
            gradient_norm=_finite(result.norm),
            learning_rate=report.learning_rate,
            routing_temperature=launched.temperature,
            tokens_per_s=round(report.tokens_per_second, 1),
            skipped=report.skipped,
            expert_load={name: round(value, 4) for name, value in report.expert_load.items()},
        )
        self.settings.reporter.step(report)

    def _count_skips(self, launched: _Launched, finite: bool) -> None:
        progress = self.progress
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        progress.skipped += not finite
        if finite:
            return
        self.log.append("skipped", launched.number, cursor=launched.cursor.to_json())
        message = f"step {launched.number} was skipped: its loss or gradient is not finite"
        self.settings.reporter.notice(Notice(message, "warning"))
        if progress.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            last = f"the last good checkpoint is {progress.checkpoint}; " if progress.checkpoint else ""
            raise GuaranteeError(
                f"loss or gradient was not finite {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {launched.number}",
                where=str(self.settings.run_dir) if self.settings.run_dir else None,
                hint=f"{last}lower training.learning_rate, or train with training.precision=float32",
            )

    def _evaluate(self, held_out: EvaluationSet, most_tokens: int | None, *, final: bool) -> Evaluation:
        started = time.monotonic()
        result = evaluate(self.model, held_out, most_tokens, self.settings.precision, self._stop_if_asked)
        seconds = time.monotonic() - started
        tables = {"bits_per_byte": result.bits_per_byte, "routing_purity": result.routing_purity}
        self.log.append("evaluation", self.progress.step, **tables, tokens=result.tokens, final=final)
        report = EvaluationReport(step=self.progress.step, **tables, tokens=result.tokens, seconds=seconds, final=final)
        self.settings.reporter.evaluation(report)
        return result

    def _save(self, unseen: Unseen | None = None) -> None:
        """Save the step just done, then let older checkpoints go. unseen: measured for a run's last checkpoint only."""
        run, progress = self.settings.run_dir, self.progress
        if run is None or progress.saved_step == progress.step:
            return
        random, random_tensors = save_random()
        state = TrainingState(
            step=progress.step,
            cursor=progress.cursor.to_json(),
            skipped_in_a_row=progress.skipped_in_a_row,
            skipped=progress.skipped,
            seconds=progress.seconds,
            identity=self.settings.identity,
            random=random,
            random_tensors=random_tensors,
            optimizer=self.optimizers.tensors(),
            carried=self._take.carried.tensors(),
        )
        self.log.sync()
        tokenizer = self.model.tokenizer
        text = None if tokenizer is None else tokenizer.to_json()
        progress.checkpoint = save_checkpoint(run, self.model.config, self.model, text, state, unseen)
        progress.saved_step = progress.step
        prune_checkpoints(run, progress.step, self.config.keep_checkpoints)

    def _stop_if_asked(self) -> None:
        number = self.request.signal_number
        if number is None:
            return
        self._settle()
        self._save()
        saved = f", saved in {self.progress.checkpoint}" if self.progress.checkpoint else ", nothing was saved"
        raise InterruptedRunError(
            f"stopped after step {self.progress.step} of {self.config.max_steps}{saved}",
            signal_number=number,
            hint=f"to go on: {self.settings.resume_hint}",
        )


def _finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if torch.isfinite(torch.tensor(value)) else None
