"""What training says while it runs: frozen reports, and the protocol of whoever shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["EvaluationReport", "Notice", "Reporter", "SilentReporter", "StepReport"]


@dataclass(frozen=True)
class StepReport:
    """One optimizer step that has ended.

    step: steps done, from 1. loss: nats per scored token, language only. tokens_per_second: over the last steps,
    evaluation and saving excluded. expert_load: name -> mean routing weight of the step's tokens, summing to 1.
    skipped: True where the loss or gradient was not finite, so nothing was learned.
    """

    step: int
    max_steps: int
    loss: float
    tokens_per_second: float
    eta_seconds: float
    learning_rate: float
    expert_load: Mapping[str, float]
    gradient_norm: float = 0.0
    skipped: bool = False


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation on held-out text after `step` steps; both tables map a domain, and "mean", to its figure.

    final: True for the last one, which reads all held-out text.
    """

    step: int
    bits_per_byte: Mapping[str, float]
    routing_purity: Mapping[str, float]
    tokens: int
    seconds: float
    final: bool


@dataclass(frozen=True)
class Notice:
    """Something the user should know and need not act on, such as a checkpoint that was passed over."""

    message: str
    level: Literal["info", "warning"] = "info"


class Reporter(Protocol):
    """Whoever shows training's progress; called from the training thread, between steps."""

    def step(self, report: StepReport) -> None:
        """Show a step."""

    def evaluation(self, report: EvaluationReport) -> None:
        """Show an evaluation."""

    def notice(self, notice: Notice) -> None:
        """Show a notice."""


class SilentReporter:
    """A reporter that shows nothing."""

    def step(self, report: StepReport) -> None:
        """Show nothing."""

    def evaluation(self, report: EvaluationReport) -> None:
        """Show nothing."""

    def notice(self, notice: Notice) -> None:
        """Show nothing."""
