"""Figures of the memory cases, one a line in a file, so that several calls and machines may fill one table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmrn.bench.report import Row
from cmrn.errors import DataError

__all__ = ["Figure", "Figures", "rows_of"]


@dataclass(frozen=True)
class Figure:
    """One figure of one model. name: what was measured, the same for all models. key: of the model's run.

    better: whether a larger or a smaller value is better.
    """

    case: str
    name: str
    model: str
    key: str
    value: float
    unit: str
    better: str = "larger"
    detail: dict[str, Any] = field(default_factory=dict)


class Figures:
    """Figures found so far, and the file they are kept in, if any; a newer one takes an older one's place.

    Raises:
        DataError: a line of the file is not a figure.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._found: dict[tuple[str, str], Figure] = {}
        if path is not None and path.is_file():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                try:
                    self._keep(Figure(**json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise DataError(f"not a figure: {error}", where=f"{path}:{number}") from error

    def add(self, figure: Figure) -> None:
        """Keep a figure, on disk first."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(figure)) + "\n")
        self._keep(figure)

    def _keep(self, figure: Figure) -> None:
        self._found[figure.name, figure.model] = figure

    def of(self, cases: Iterable[str]) -> list[Figure]:
        """All figures of these cases, in the order they came."""
        wanted = set(cases)
        return [figure for figure in self._found.values() if figure.case in wanted]


def rows_of(figures: Iterable[Figure], ours: str) -> tuple[Row, ...]:
    """A row for each figure of `ours` beside each other model's of that name; a figure alone stands alone."""
    by_name: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_name.setdefault(figure.name, {})[figure.model] = figure
    rows = []
    for name, found in by_name.items():
        own = found.pop(ours, None)
        for peer in found.values():
            detail: dict[str, Any] = {"peer": peer.detail, **({"ours": own.detail} if own else {})}
            if own and peer.value and own.better == "smaller":
                detail["gap_percent"] = 100 * (own.value / peer.value - 1)
            value = own.value if own else None
            rows.append(Row(name, value, peer.unit, peer.model, peer.value, None, None, detail))
        if own and not found:
            rows.append(Row(name, own.value, own.unit, detail={"ours": own.detail}))
    return tuple(rows)
