"""Each fault in its short version; `cmrn bench store` runs them whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cmrn.bench.faults.boundaries import every_call
from cmrn.bench.faults.concurrent import concurrent
from cmrn.bench.faults.corrupt import corrupt
from cmrn.bench.faults.full import full
from cmrn.bench.faults.fuzz import fuzz
from cmrn.bench.faults.hostile import hostile
from cmrn.bench.faults.kills import kill
from cmrn.bench.faults.machine import machine
from cmrn.bench.faults.poison import poison
from cmrn.bench.faults.power import power
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

CASES = [
    (kill, 10),
    (every_call, 3),
    (power, 5),
    (corrupt, 15),
    (full, 3),
    (concurrent, 1),
    (machine, 4),
    (poison, 300),
    (fuzz, 50),
    (hostile, 1),
]


@pytest.mark.parametrize(("case", "rounds"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_nothing_is_lost_torn_or_said_wrongly(case: Callable[[StoreOptions, Progress], Findings], rounds: int) -> None:
    found = case(StoreOptions(rounds=rounds), lambda text: None)
    assert not found.failures, "\n".join(found.failures)
    if found.notes:
        pytest.skip(found.notes[0])
    assert found.rows
