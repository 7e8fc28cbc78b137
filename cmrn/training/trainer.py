"""The training loop: batches in, checkpoints and metrics out, and the same weights however often it was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from cmrn.config import ExpertConfig, TrainingConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import Cursor, PackedDataset
from cmrn.errors import UsageError
from cmrn.files import remove_strays, writer_lock
from cmrn.model import CMRN
from cmrn.training.checkpoint import CHECKPOINTS, checkpoints_of, difference, load_checkpoint, newest_whole, read_state
from cmrn.training.device import deterministic, keep_freed_memory, resolve_device, resolve_precision
from cmrn.training.loop import Progress, RunSettings, TrainingLoop
from cmrn.training.metrics_log import MetricsLog
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.progress import Notice, Reporter, SilentReporter
from cmrn.training.random_state import restore_random, seed_all
from cmrn.training.schedule import check_long_reading
from cmrn.training.signals import stop_signals

if TYPE_CHECKING:
    from cmrn.training.continual import DomainResult

__all__ = ["CMRNTrainer", "TrainingResult"]

FREE_ON_RESUME = {"eval_every", "eval_tokens", "checkpoint_every", "keep_checkpoints", "precision"}
"""Settings that alter no weight; `precision` is compared as resolved."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run ended with. run and checkpoint are None where nothing was written; seconds: time spent training."""

    run: Path | None
    checkpoint: Path | None
    bits_per_byte: dict[str, float]
    routing_purity: dict[str, float]
    seconds: float


class CMRNTrainer:
    """Trains a model; `CMRNTrainer(model, TrainingConfig()).train(train_dataset, eval_dataset)`.

    run_dir: where checkpoints and metrics.jsonl go; without it nothing is written. seed: of dropout and routing noise.
    provenance: facts that must not change on resuming, beside the settings. resume_hint: the command that goes on.
    """

    def __init__(
        self,
        model: CMRN,
        config: TrainingConfig,
        *,
        run_dir: Path | None = None,
        seed: int = 1,
        reporter: Reporter | None = None,
        device: str | None = None,
        provenance: Mapping[str, Any] | None = None,
        resume_hint: str = "train again with resume=True",
    ) -> None:
        self.config, self.run_dir, self.seed = config, run_dir, seed
        self.reporter: Reporter = reporter or SilentReporter()
        self.device = resolve_device(device)
        self.precision = resolve_precision(config.precision, self.device)
        self.model = model.to(self.device)
        self._provenance, self._resume_hint = dict(provenance or {}), resume_hint
        self._optimizers = OptimizerSet(parameter_groups(model, config))

    def train(
        self, train_dataset: PackedDataset, eval_dataset: EvaluationSet | None = None, resume: bool = False
    ) -> TrainingResult:
        """Train to max_steps, evaluating and saving on the way, and evaluate on all held-out text at the end.

        resume: go on from the newest whole checkpoint of run_dir, to the weights an unbroken run would have had; where
        there is none, start afresh and say so. Seeds torch, Python and numpy. The model ends in eval mode.

        Raises:
            UsageError: run_dir holds a run and resume is False; a setting, the data or the threads changed; states
                are to be carried, and the data's rows do not read on; or long-term memory that the model does not have
                or rows do not reach is to be read.
            LockedError: another process trains in run_dir.
            ResourceError: out of disk, or of memory with half the micro-batch too; the last checkpoint is whole.
            GuaranteeError: loss or gradient was not finite three times in a row; the last checkpoint is from before.
            InterruptedRunError: SIGINT or SIGTERM; the step was finished and saved.
        """
        check_long_reading(self.config, self.model.config)
        if self.config.carry_states and not isinstance(train_dataset, LaneDataset):
            raise UsageError("training.carry_states needs rows that read on", hint="build the data with LaneDataset")
        with ExitStack() as stack:
            if self.run_dir is not None:
                stack.enter_context(writer_lock(self.run_dir))
                remove_strays(self.run_dir)
                remove_strays(self.run_dir / CHECKPOINTS)
            stack.enter_context(deterministic(self.device))
            request = stack.enter_context(stop_signals())
            keep_freed_memory(self.device)
            identity = self._identity(train_dataset)
            progress = self._begin(train_dataset, identity, resume)
            log = MetricsLog(None if self.run_dir is None else self.run_dir / "metrics.jsonl", progress.step)
            stack.callback(log.close)
            settings = RunSettings(
                self.config, self.precision, self.run_dir, self.reporter, identity, self._resume_hint
            )
            loop = TrainingLoop(self.model, self._optimizers, settings, progress, log, request)
            final = loop.run(train_dataset, eval_dataset)
        self.model.eval()
        return TrainingResult(
            self.run_dir, progress.checkpoint, final.bits_per_byte, final.routing_purity, progress.seconds
        )

    def add_domain_expert(
        self, name: str, expert_config: ExpertConfig | None = None, *, init_from: str | None = None
    ) -> None:
        """Let `self.model` be a model like it with one more expert; the model it was is left as it is.

        expert_config: its type and domains; by default it is general and owns the domain `name`. init_from: the
        expert whose weights it begins with; otherwise they are drawn.

        Raises:
            UsageError: the name is taken or no name, init_from does not exist or is of another type, or the router is
                not learned.
        """
        from cmrn.domain_expert import add_expert

        try:
            given = expert_config or ExpertConfig(name=name)
            expert = ExpertConfig(name=name, type=given.type, domains=given.domains or (name,))
        except ValidationError as error:
            raise UsageError(f"{name!r} cannot be the name of an expert: {error.errors()[0]['msg']}") from error
        self.model = add_expert(self.model, expert, init_from, self.seed)
        self._optimizers = OptimizerSet(parameter_groups(self.model, self.config))

    def continual_train(
        self,
        data: Sequence[Document],
        domain: str,
        freeze_existing_experts: bool = True,
        *,
        replay: Sequence[Document] = (),
        replay_weights: Sequence[float] = (),
        eval_dataset: EvaluationSet | None = None,
        keep_threshold: float = 0.003,
        phrase_share: float = 0.0,
        experts: Sequence[str] = (),
    ) -> DomainResult:
        """Train `experts` on the text of `domain` for max_steps, and nothing else, to the bit.

        experts: by default those that own the domain and were added last, one after the other. replay: text of the old
        domains, what the rows are told apart from and their margin is chosen on, so that none of these domains reads
        worse by more than `keep_threshold`, relative; with the weights of their sources. Without old text the margin is
        a fixed one. Nothing is written. freeze_existing_experts: False trains the whole model, every second row on old
        text, and keeps nothing. phrase_share: as in a recipe's data.

        Raises:
            UsageError: no expert owns the domain, or the model has no tokenizer.
            DataError: there is no text.
            GuaranteeError: what was to stand still has changed, or the loss was not finite three times in a row.
            InterruptedRunError: SIGINT or SIGTERM; nothing was saved.
        """
        from cmrn.training.continual import OldText, continual_train

        return continual_train(
            self,
            data,
            domain,
            OldText(tuple(replay), tuple(replay_weights)),
            freeze=freeze_existing_experts,
            keep_threshold=keep_threshold,
            phrase_share=phrase_share,
            eval_dataset=eval_dataset,
            experts=experts,
        )

    def _identity(self, dataset: PackedDataset) -> dict[str, Any]:
        """What decides the weights, by field."""
        training = self.config.model_dump(mode="json", exclude=FREE_ON_RESUME)
        return {
            "seed": self.seed,
            "model": self.model.config.model_dump(mode="json"),
            "training": training,
            **self._provenance,
            "data_fingerprint": dataset.fingerprint,
            "precision": self.precision,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _begin(self, dataset: PackedDataset, identity: dict[str, Any], resume: bool) -> Progress:
        run = self.run_dir
        if run is not None and resume:
            folder, problems = newest_whole(run)
            for problem in problems:
                self.reporter.notice(Notice(f"passed over a checkpoint that is not whole: {problem}", "warning"))
            if folder is not None:
                return self._resume(folder, identity)
        if run is not None and not resume and checkpoints_of(run):
            raise UsageError("holds a run already", where=str(run), hint="resume it, or write to another folder")
        if resume:
            where = f" in {run}" if run is not None else ""
            self.reporter.notice(Notice(f"no whole checkpoint{where} to go on from: starting afresh"))
        seed_all(self.seed)
        return Progress(dataset.start())

    def _resume(self, folder: Path, identity: dict[str, Any]) -> Progress:
        saved = read_state(folder)
        before, now = dict(saved.identity), dict(identity)
        old, new = before.pop("torch", None), now.pop("torch")
        changes = difference(before, now)
        if changes:
            raise UsageError(
                "this is not the run that was stopped; what changed:\n  " + "\n  ".join(changes),
                where=str(self.run_dir),
                hint=f"undo the change, or start a new run; to go on as it was: {self._resume_hint}",
            )
        if old != new:
            self.reporter.notice(Notice(f"the run began with torch {old}; {new} may round otherwise", "warning"))
        state = load_checkpoint(folder, self.model)
        self._optimizers.load(state.optimizer)
        cursor = Cursor.from_json(state.cursor)
        restore_random(state.random, state.random_tensors)
        self.reporter.notice(Notice(f"going on from step {state.step}: {folder}"))
        return Progress(
            cursor, state.step, state.skipped_in_a_row, state.skipped, state.seconds, folder, saved_step=state.step,
            carried=state.carried,
        )  # fmt: skip
