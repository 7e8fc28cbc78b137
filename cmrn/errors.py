"""Every failure a user can meet, and the exit code each one ends with.

    CMRNError                   1    a bug, or a failure with no better name
    ├── UsageError              2    bad flag, missing file argument, a domain the data does not hold
    │   └── ConfigError         2    an invalid recipe or configuration; lists every problem at once
    ├── DataError               3    input data rejected: empty, undecodable, bad lines
    ├── CheckpointError         4    missing, corrupt or incompatible checkpoint or store
    ├── LockedError             5    another process is writing
    ├── ResourceError           6    out of memory or disk
    ├── MissingExtraError       7    an optional dependency is not installed
    ├── GuaranteeError          8    a stated guarantee failed, such as a loss that stays not a number
    └── InterruptedRunError     130  interrupted (143 for SIGTERM), state saved

A message says what went wrong; `where` names the place (`recipe.yaml:14`, a record, a file); `hint` is the next thing
to type. The command line prints the three and exits with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "CMRNError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GuaranteeError",
    "InterruptedRunError",
    "LockedError",
    "MissingExtraError",
    "Problem",
    "ResourceError",
    "UsageError",
]


class CMRNError(Exception):
    """A failure the user can act on: what, where, and what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n\nhint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{advice}"


class UsageError(CMRNError):
    """The call itself is wrong: a flag, a path, a name that does not exist."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: its place, the key, what is wrong, and the nearest right thing."""

    where: str
    key: str
    message: str
    hint: str | None = None


class ConfigError(UsageError):
    """A recipe or configuration is invalid; `problems` holds every one found, in file order."""

    def __init__(self, message: str, problems: Sequence[Problem], *, where: str | None = None) -> None:
        super().__init__(message, where=where)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [super().__str__()]
        for problem in self.problems:
            advice = f"; {problem.hint}" if problem.hint else ""
            lines.append(f"  {problem.where}: {problem.key}: {problem.message}{advice}")
        return "\n".join(lines)


class DataError(CMRNError):
    """The input data cannot be used: empty, undecodable, or with lines rejected."""

    exit_code: ClassVar[int] = 3


class CheckpointError(CMRNError):
    """A checkpoint or store is missing, corrupt, or made for something else."""

    exit_code: ClassVar[int] = 4


class LockedError(CMRNError):
    """Another process holds the writer's lock."""

    exit_code: ClassVar[int] = 5


class ResourceError(CMRNError):
    """Memory or disk ran out; what was committed before is whole."""

    exit_code: ClassVar[int] = 6


class MissingExtraError(CMRNError):
    """An optional dependency is not installed; the hint is the command that installs it."""

    exit_code: ClassVar[int] = 7


class GuaranteeError(CMRNError):
    """A stated guarantee failed; the last good state is kept."""

    exit_code: ClassVar[int] = 8


class InterruptedRunError(CMRNError):
    """A signal stopped the run after its state was saved; `signal_number` decides the exit code."""

    exit_code: ClassVar[int] = 130

    def __init__(self, message: str, *, signal_number: int, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, where=where, hint=hint)
        self.signal_number = signal_number
