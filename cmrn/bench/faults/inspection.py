"""What a store holds after a fault: opened as anyone opens it, read whole, and looked over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.made import vector
from cmrn.bench.faults.workload import begin_cells_at, contents, open_index
from cmrn.memory.store import MemoryStore

__all__ = ["EXPECTED_FILES", "inspect", "search_all"]

EXPECTED_FILES = re.compile(r"memory\.db(-wal|-shm)?|LOCK|RESERVE|format\.json|index(/CURRENT|/\d+-[0-9a-f]+\.\w+)?")
"""What may lie in a store's folder when nobody is writing."""


def inspect(
    events: Events, folder: str, write: bool = True, indexed: bool = True, gone: list[str] | None = None,
    cells_at: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything in a store, by record, and what is wrong with it; `gone` are texts that no search may find.

    Opened as a reader first, then as the writer that recovers it; both must see the same.
    """
    if cells_at is not None:
        begin_cells_at(cells_at)
    place = Path(folder)
    warnings: list[str] = []
    with MemoryStore.open(place, warn=warnings.append) as store:
        found = contents(store)
        verify, problems = ([], []) if write else _look_over(store, found, indexed, gone or [], warnings)
    if write:
        with MemoryStore.open(place, write=True, warn=warnings.append) as store:
            again = contents(store)
            verify, problems = _look_over(store, again, indexed, gone or [], warnings)
        if again != found:
            problems.append(f"a reader saw {len(found)} records, the writer {len(again)}, and not the same")
        problems += [f"left behind: {name}" for name in _strays(place)]
    return {"records": found, "verify": verify, "problems": problems, "warnings": warnings}


def search_all(store: MemoryStore, found: dict[int, Any], gone: list[str], warnings: list[str]) -> list[str]:
    """What is wrong with searches for every record by its own vector, and for texts that are gone."""
    index = open_index(store, warnings.append)
    index.wait()
    problems = []
    if index.records != len(found):
        problems.append(f"the index counts {index.records} records, the store holds {len(found)}")
    records = list(found)
    if records:
        queries = np.stack([vector(str(found[record][3])) for record in records])
        for record, hits in zip(records, index.search(queries, 1), strict=True):
            if [hit.record.record for hit in hits] != [record] or abs(hits[0].score - 1) > 1e-5:
                problems.append(
                    f"a search for record {record} finds {[(hit.record.record, hit.score) for hit in hits]}"
                )
    if gone:
        for text, hits in zip(gone, index.search(np.stack([vector(text) for text in gone]), 3), strict=True):
            if any(hit.record.text == text or hit.record.record not in found for hit in hits):
                problems.append(f"a search finds what is gone: {text[:60]}")
    return problems[:20]


def _look_over(
    store: MemoryStore, found: dict[int, Any], indexed: bool, gone: list[str], warnings: list[str]
) -> tuple[list[str], list[str]]:
    """What the store says is wrong with itself, and what is."""
    verify = [f"verify: {problem.what} ({problem.where})" for problem in store.verify()]
    problems = []
    records = list(found)
    for record, row in zip(records, store.vectors(records), strict=True):
        if not np.array_equal(row, vector(str(found[record][3]))):
            problems.append(f"record {record} has another text's vector")
    if store.stats().records != len(found):
        problems.append(f"stats count {store.stats().records} records, there are {len(found)}")
    if indexed:
        problems += search_all(store, found, gone, warnings)
    return verify, problems


def _strays(folder: Path) -> list[str]:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
    return [name for name in names if not EXPECTED_FILES.fullmatch(name)]
