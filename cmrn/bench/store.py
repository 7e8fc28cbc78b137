"""The durable memory under faults, and beside its peers: one function a case, all of them by `cmrn bench store`."""

from __future__ import annotations

import dataclasses
import platform
import sqlite3
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from cmrn.bench.report import Progress, Report
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.errors import UsageError

__all__ = ["CASES", "StoreOptions", "run"]

CASES: Final[Mapping[str, str]] = {
    "kill": "cmrn.bench.faults.kills:kill",
    "every-call": "cmrn.bench.faults.boundaries:every_call",
    "power": "cmrn.bench.faults.power:power",
    "corrupt": "cmrn.bench.faults.corrupt:corrupt",
    "fuzz": "cmrn.bench.faults.fuzz:fuzz",
    "full": "cmrn.bench.faults.full:full",
    "concurrent": "cmrn.bench.faults.concurrent:concurrent",
    "hostile": "cmrn.bench.faults.hostile:hostile",
    "machine": "cmrn.bench.faults.machine:machine",
    "poison": "cmrn.bench.faults.poison:poison",
    "mutations": "cmrn.bench.faults.mutations:mutations",
    "embed": "cmrn.bench.store_embed:embed",
    "ingest": "cmrn.bench.store_search:ingest",
    "search": "cmrn.bench.store_search:search",
    "gpu-search": "cmrn.bench.store_gpu:gpu_search",
}
"""Where the function of each case is: (StoreOptions, Progress) -> Findings."""

SHOWN = 20
"""Failures told at most of each case."""


def run(options: StoreOptions, progress: Progress) -> Report:
    """Try the cases in turn; `settings["failures"]` counts the promises that were broken, and the notes name them.

    Raises:
        UsageError: there is no case of a name.
    """
    chosen = options.cases or tuple(CASES)
    unknown = [name for name in chosen if name not in CASES]
    if unknown:
        raise UsageError(f"no case {unknown[0]!r}", where="--case", hint=f"there are {', '.join(CASES)}")
    rows, notes, failures = [], [], 0
    for name in chosen:
        found = _function(name)(options, lambda text, name=name: progress(f"{name}: {text}"))  # type: ignore[misc]
        rows += [dataclasses.replace(row, name=f"{name}: {row.name}") for row in found.rows]
        notes += [f"{name}: {note}" for note in [*found.notes, *found.failures[:SHOWN]]]
        failures += len(found.failures)
    settings: dict[str, Any] = {
        "cases": list(chosen), "rounds": options.rounds, "seed": options.seed, "failures": failures,
        "versions": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version},
    }  # fmt: skip
    return Report("store", f"{platform.machine()} CPU", tuple(rows), settings, tuple(notes))


def _function(name: str) -> Callable[[StoreOptions, Progress], Findings]:
    module, _, function = CASES[name].partition(":")
    found: Callable[[StoreOptions, Progress], Findings] = getattr(import_module(module), function)
    return found
