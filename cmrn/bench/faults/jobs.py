"""The jobs that can be started in a process of their own, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cmrn.bench.faults.commands import run_command_lines
from cmrn.bench.faults.concurrent import keep_reading, keep_writing
from cmrn.bench.faults.fuzz import take_in
from cmrn.bench.faults.inspection import inspect
from cmrn.bench.faults.poison import plant, uproot
from cmrn.bench.faults.pouring import pour
from cmrn.bench.faults.workload import follow_limited_script, follow_script, operate

__all__ = ["JOBS"]

JOBS: Final[Mapping[str, Callable[..., Any]]] = {
    "command lines": run_command_lines,
    "follow limited script": follow_limited_script,
    "follow script": follow_script,
    "inspect": inspect,
    "keep reading": keep_reading,
    "keep writing": keep_writing,
    "operate": operate,
    "plant": plant,
    "pour": pour,
    "take in": take_in,
    "uproot": uproot,
}
