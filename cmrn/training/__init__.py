"""Training: the trainer, its settings, and the reports it makes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cmrn.config import TrainingConfig
    from cmrn.training.checkpoint import find_checkpoint
    from cmrn.training.metrics import Evaluation, evaluate
    from cmrn.training.progress import EvaluationReport, Notice, Reporter, SilentReporter, StepReport
    from cmrn.training.run import train_recipe
    from cmrn.training.trainer import CMRNTrainer, TrainingResult

__all__ = [
    "CMRNTrainer",
    "Evaluation",
    "EvaluationReport",
    "Notice",
    "Reporter",
    "SilentReporter",
    "StepReport",
    "TrainingConfig",
    "TrainingResult",
    "evaluate",
    "find_checkpoint",
    "train_recipe",
]

_HOMES: Final = {
    "CMRNTrainer": "cmrn.training.trainer",
    "Evaluation": "cmrn.training.metrics",
    "EvaluationReport": "cmrn.training.progress",
    "Notice": "cmrn.training.progress",
    "Reporter": "cmrn.training.progress",
    "SilentReporter": "cmrn.training.progress",
    "StepReport": "cmrn.training.progress",
    "TrainingConfig": "cmrn.config",
    "TrainingResult": "cmrn.training.trainer",
    "evaluate": "cmrn.training.metrics",
    "find_checkpoint": "cmrn.training.checkpoint",
    "train_recipe": "cmrn.training.run",
}


def __getattr__(name: str) -> object:
    """Load an exported name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Exported names, loaded or not."""
    return sorted({*globals(), *__all__})
