"""How much a question may cost, and the errors that say a limit was met."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cmrn.errors import DataError, ResourceError

__all__ = ["Clock", "ExplosionError", "Limits", "OutOfStepsError", "OutOfTimeError", "UnstratifiableError"]


@dataclass(frozen=True)
class Limits:
    """Bounds of one question: ground rules (estimated before grounding), steps of search, and seconds."""

    ground_rules: int = 2_000_000
    steps: int = 10_000
    seconds: float = 10.0


class ExplosionError(ResourceError):
    """A premise would have more ground instances than the limit; the message names it and the estimate."""


class OutOfStepsError(ResourceError):
    """The search took more steps than the limit; no answer is given."""


class OutOfTimeError(ResourceError):
    """The time for a question ran out; no answer is given."""


class UnstratifiableError(DataError):
    """Under a closed world something depends on its own absence; `cycle` lists the atoms in order."""

    def __init__(self, message: str, cycle: tuple[str, ...], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.cycle = cycle


class Clock:
    """Counts steps and seconds against the limits of one question."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps = 0
        self.deadline = time.monotonic() + limits.seconds

    def step(self) -> None:
        """Count one step of search."""
        self.steps += 1
        if self.steps > self.limits.steps:
            message = f"no answer within {self.limits.steps:,} steps of search"
            raise OutOfStepsError(message, hint="ask about fewer premises, or raise the limit of steps")
        self.look()

    def look(self) -> None:
        """Raise OutOfTimeError when the time is up."""
        if time.monotonic() > self.deadline:
            message = f"no answer within {self.limits.seconds:g} seconds"
            raise OutOfTimeError(message, hint="ask about fewer premises, or raise --timeout")
