"""What a benchmark measured, as records: the command line draws them or writes them as JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Progress", "Report", "Row", "describe_device", "versions"]

Progress = Callable[[str], None]
"""Told, in a line each, what is being measured."""


@dataclass(frozen=True)
class Row:
    """One figure beside one peer's.

    ratio: value / peer_value. limit: what the hardware or the definition allows, in the same unit. spread: half the
    distance between the quartiles of the repeats, or the standard deviation over seeds, in the same unit; `detail`
    holds what else belongs to the figure, such as settings, samples and seeds.
    """

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    limit: float | None = None
    spread: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times the peer's figure ours is; None without a peer."""
        if self.value is None or not self.peer_value:
            return None
        return self.value / self.peer_value

    def to_json(self) -> dict[str, Any]:
        """The row of the JSON contract, with spread and detail added."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
            "limit": self.limit,
            "spread": self.spread,
            **({"detail": self.detail} if self.detail else {}),
        }


@dataclass(frozen=True)
class Report:
    """The rows of one benchmark. notes: what a reader must know to judge them, a sentence each."""

    bench: str
    device: str
    rows: tuple[Row, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of the JSON contract."""
        return {
            "schema_version": 1,
            "bench": self.bench,
            "device": self.device,
            "rows": [row.to_json() for row in self.rows],
            "settings": self.settings,
            "notes": list(self.notes),
        }


def describe_device(device: str) -> str:
    """The name of the GPU, or of the processor with the threads torch uses."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python, torch and Triton (where it is installed), as figures must be read with them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "cmrn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
