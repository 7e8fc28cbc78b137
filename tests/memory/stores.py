"""Small stores for tests: records whose vector, text and source follow from a number."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrn.memory.entry import Fingerprint, NewRecord
from cmrn.memory.store import MemoryStore

DIM = 8
PRINT = Fingerprint("test", revision="1", weights="abcd", dim=DIM)


def vector(number: int) -> NDArray[np.float32]:
    """A unit vector that follows from the number."""
    drawn = np.random.default_rng(number).standard_normal(DIM).astype(np.float32)
    unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn)
    return unit


def new(number: int, text: str | None = None, **fields: object) -> NewRecord:
    """A record that follows from the number."""
    return NewRecord(f"text {number}" if text is None else text, vector(number), **fields)  # type: ignore[arg-type]


def filled(folder: Path, count: int = 5, **options: object) -> MemoryStore:
    """A new store of `count` records, numbered from 1."""
    store = MemoryStore.create(folder, PRINT, **options)  # type: ignore[arg-type]
    store.add([new(number) for number in range(1, count + 1)])
    return store


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Replace the only occurrence of some bytes in a file."""
    data = path.read_bytes()
    assert data.count(old) == 1, data.count(old)
    path.write_bytes(data.replace(old, new))


def run_sql(folder: Path, statement: str) -> None:
    """Change a closed store's database behind its back."""
    connection = sqlite3.connect(folder / "memory.db")
    with connection:
        connection.execute(statement)
    connection.close()
