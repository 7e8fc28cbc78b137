"""What every case of `cmrn bench store` is given and gives back: figures, and every promise that was broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cmrn.bench.report import Row

__all__ = ["Findings", "StoreOptions"]


@dataclass(frozen=True)
class StoreOptions:
    """How much to try, and from which seed; `rounds` None is a case's own number.

    cases: their names, none for all. data_root: where the shared data are. device: for cases that search on one.
    indexed: whether faults search, too, and meet the index. package: a folder to import the package under test from,
    where it is not this one.
    """

    cases: tuple[str, ...] = ()
    rounds: int | None = None
    seed: int = 1
    data_root: Path | None = None
    device: str | None = None
    indexed: bool = True
    package: Path | None = None


@dataclass
class Findings:
    """Rows of a table, and what went wrong, a line each; a case with no failures has kept its promises."""

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, name: str, number: float, unit: str = "", limit: float | None = None) -> None:
        """Add a figure; one beyond its limit is a failure."""
        self.rows.append(Row(name, float(number), unit, limit=limit))
        if limit is not None and number > limit:
            self.failures.append(f"{name}: {number:g} {unit}".rstrip() + f", where {limit:g} is the most")

    def fail(self, where: str, problems: Iterable[str]) -> bool:
        """Add failures met at one place; whether there were any."""
        found = [f"{where}: {problem}" for problem in problems]
        self.failures += found
        return bool(found)
