"""The steps of a run between its start and its end, with what is saved and said on the way."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from cmrn.config import TrainingConfig
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.packing import Batch, Cursor, PackedDataset
from cmrn.errors import GuaranteeError, InterruptedRunError, ResourceError
from cmrn.model import CMRN
from cmrn.training.accumulate import StepGradient, accumulate, out_of_memory
from cmrn.training.checkpoint import TrainingState, prune_checkpoints, save_checkpoint
from cmrn.training.device import Precision
from cmrn.training.metrics import Evaluation, evaluate
from cmrn.training.metrics_log import MetricsLog
from cmrn.training.optim import OptimizerSet
from cmrn.training.progress import EvaluationReport, Notice, Reporter, StepReport
from cmrn.training.random_state import restore_random, save_random
from cmrn.training.schedule import learning_rate_share, routing_temperature
from cmrn.training.signals import StopRequest

__all__ = ["Progress", "RunSettings", "TrainingLoop"]

MOST_SKIPPED_IN_A_ROW = 3
STEPS_OF_A_RATE = 20


@dataclass
class Progress:
    """Where a run is. checkpoint: the newest saved, of `saved_step`; seconds_before: trained by earlier processes."""

    cursor: Cursor
    step: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0
    seconds_before: float = 0.0
    checkpoint: Path | None = None
    saved_step: int = -1
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


class TrainingLoop:
    """Takes steps until max_steps or a stop. Each is followed by the checkpoint and the evaluation that are due.

    A step's line, checkpoint and evaluation come in this order, so a run killed between any two misses none of them.
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

    def run(self, dataset: PackedDataset, held_out: EvaluationSet | None) -> Evaluation:
        """Take the steps that are left; return the last evaluation, of all held-out text."""
        progress, config = self.progress, self.config
        while True:
            if held_out is not None and self._evaluation_due():
                self._evaluate(held_out, config.eval_tokens, final=False)
            if progress.step == config.max_steps:
                break
            self._step(dataset)
            if progress.step % config.checkpoint_every == 0 or progress.step == config.max_steps:
                self._save()
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
        gradient = self._gradient(batch)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = clip_grad_norm_(parameters, config.gradient_clip)
        loss, size, *load = torch.stack(
            [gradient.loss.float(), norm.float(), *torch.stack(gradient.loads).mean(0).float()]
        ).tolist()
        finite = bool(torch.isfinite(torch.tensor([loss, size])).all())
        if finite:
            self.optimizers.step(share)
            self.model.update_balance(gradient.loads)
        self.model.zero_grad(set_to_none=True)
        read_from, progress.cursor = progress.cursor, cursor
        progress.step += 1
        progress.durations.append(time.monotonic() - started)
        self._report_step(loss, size, share, load, finite, temperature)
        self._count_skips(finite, read_from)

    def _gradient(self, batch: Batch) -> StepGradient:
        """The batch's gradient; once, with half the micro-batch, where memory did not suffice."""
        document, tensors = save_random()
        try:
            return accumulate(self.model, batch, self.micro_batch, self.settings.precision)
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
            return accumulate(self.model, batch, smaller, self.settings.precision)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory at {smaller} sequences at a time", where="training", hint=hint
            ) from error

    def _report_step(
        self, loss: float, norm: float, share: float, load: list[float], finite: bool, temperature: float
    ) -> None:
        progress, config = self.progress, self.config
        mean = sum(progress.durations) / len(progress.durations)
        names = [expert.name for expert in self.model.config.named_experts]
        report = StepReport(
            step=progress.step,
            max_steps=config.max_steps,
            loss=loss,
            tokens_per_second=config.batch_size * config.sequence_length / mean,
            eta_seconds=(config.max_steps - progress.step) * mean,
            learning_rate=config.learning_rate * share,
            expert_load=dict(zip(names, load, strict=True)),
            gradient_norm=norm,
            skipped=not finite,
        )
        self.log.append(
            "step",
            report.step,
            loss=_finite(loss),
            gradient_norm=_finite(norm),
            learning_rate=report.learning_rate,
            routing_temperature=temperature,
            tokens_per_s=round(report.tokens_per_second, 1),
            skipped=report.skipped,
            expert_load={name: round(value, 4) for name, value in report.expert_load.items()},
        )
        self.settings.reporter.step(report)

    def _count_skips(self, finite: bool, read_from: Cursor) -> None:
        progress = self.progress
        progress.skipped_in_a_row = 0 if finite else progress.skipped_in_a_row + 1
        progress.skipped += not finite
        if finite:
            return
        self.log.append("skipped", progress.step, cursor=read_from.to_json())
        message = f"step {progress.step} was skipped: its loss or gradient is not finite"
        self.settings.reporter.notice(Notice(message, "warning"))
        if progress.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            last = f"the last good checkpoint is {progress.checkpoint}; " if progress.checkpoint else ""
            raise GuaranteeError(
                f"loss or gradient was not finite {MOST_SKIPPED_IN_A_ROW} steps in a row, up to step {progress.step}",
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

    def _save(self) -> None:
        """Save the step just done, then let older checkpoints go."""
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
        )
        self.log.sync()
        tokenizer = self.model.tokenizer
        text = None if tokenizer is None else tokenizer.to_json()
        progress.checkpoint = save_checkpoint(run, self.model.config, self.model, text, state)
        progress.saved_step = progress.step
        prune_checkpoints(run, progress.step, self.config.keep_checkpoints)

    def _stop_if_asked(self) -> None:
        number = self.request.signal_number
        if number is None:
            return
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
