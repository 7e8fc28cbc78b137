"""Snapshots of the index: read only by the store they were taken of, and only as they were written.

    index/CURRENT                 what the newest snapshot is, and of what
    index/<seq>-<hash>.faiss      its vectors, records, sources, namespaces, and the cells

The index is derived: a snapshot that is missing, damaged or of something else costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrn.errors import CheckpointError
from cmrn.files import read_json, remove_strays, storage_errors, write_file
from cmrn.memory.cells import Cells, load_cells
from cmrn.memory.entry import Fingerprint
from cmrn.memory.info import METRIC
from cmrn.memory.table import Table

__all__ = ["Snapshot", "load_snapshot", "save_snapshot"]

CURRENT = "CURRENT"
FORMAT = 2
NAME = re.compile(r"\d{1,19}-[0-9a-f]{8}\.faiss")
PIECE = 16 << 20
COLUMNS = (np.int64, np.int64, np.int32, np.bool_)
"""Types of a table's records, sources, namespaces and whether they live."""


@dataclass(frozen=True)
class Snapshot:
    """An index as it was after change `seq` of its store."""

    table: Table
    cells: Cells | None
    seq: int


def save_snapshot(folder: Path, snapshot: Snapshot, uuid: str, fingerprint: Fingerprint) -> None:
    """Make a snapshot the one that `load_snapshot` finds, durably; then remove those before it.

    Raises:
        ResourceError: the disk is full; the snapshot before it stays.
        CheckpointError: the folder cannot be written.
    """
    table = snapshot.table
    cells = snapshot.cells.to_bytes() if snapshot.cells is not None else np.zeros(0, np.uint8)
    arrays: list[NDArray[Any]] = [table.view(), table.records, table.sources, table.spaces, table.live, cells]
    parts = _bytes_of(arrays)
    digest = _digest(parts)
    name = f"{snapshot.seq}-{digest[:8]}.faiss"
    write_file(folder / name, *parts, private=True)
    about = {
        **_identity(uuid, fingerprint),
        "file": name, "blake2b": digest, "seq": snapshot.seq,
        "places": table.places, "cells": len(cells), "namespaces": table.names,
    }  # fmt: skip
    write_file(folder / CURRENT, json.dumps({**about, "check": _check(about)}, indent=1).encode(), private=True)
    with storage_errors(folder):
        for path in folder.iterdir():
            if NAME.fullmatch(path.name) and path.name != name:
                path.unlink(missing_ok=True)
        remove_strays(folder)


def load_snapshot(folder: Path, uuid: str, fingerprint: Fingerprint) -> Snapshot | None:
    """The newest snapshot of this store, None where none was taken.

    Nothing of it is parsed before its hash is found to be the one that was written.

    Raises:
        CheckpointError: it is damaged, or is of another store, encoder or version of FAISS.
    """
    path = folder / CURRENT
    if not path.exists():
        return None
    about = read_json(path)
    if not isinstance(about, dict) or about.pop("check", None) != _check(about):
        raise CheckpointError("is damaged", where=str(path))
    for name, value in _identity(uuid, fingerprint).items():
        if about.get(name) != value:
            raise CheckpointError(f"is of another {name}", where=str(path))
    if not NAME.fullmatch(about["file"]):
        raise CheckpointError("names no snapshot", where=str(path))
    return _read(folder / about["file"], about, fingerprint.dim)


def _read(path: Path, about: dict[str, Any], dim: int) -> Snapshot:
    places = about["places"]
    sizes = [places * dim * 4, *(places * np.dtype(kind).itemsize for kind in COLUMNS), about["cells"]]
    try:
        if path.stat().st_size != sum(sizes):
            raise CheckpointError("is damaged: not as long as it was written", where=str(path))
        table = Table(dim)
        table.vectors.codes.resize(sizes[0])
        table.vectors.ntotal = places
        columns: list[NDArray[Any]] = [np.empty(places, kind) for kind in COLUMNS]
        cells = np.empty(about["cells"], np.uint8)
        parts = _bytes_of([table.view(), *columns, cells])
        with open(path, "rb") as file:
            whole = [file.readinto(part) for part in parts] == [len(part) for part in parts]
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if not whole or _digest(parts) != about["blake2b"]:
        raise CheckpointError("is damaged: not the bytes that were written", where=str(path))
    table.restore(columns[0], columns[1], columns[2], columns[3], about["namespaces"])
    return Snapshot(table, load_cells(cells) if len(cells) else None, about["seq"])


def _identity(uuid: str, fingerprint: Fingerprint) -> dict[str, Any]:
    """What a snapshot must share with the store that reads it, in the words of a message."""
    import faiss

    encoder = [fingerprint.embedder, fingerprint.revision, fingerprint.weights, fingerprint.pooling]
    return {
        "format": FORMAT,
        "store": uuid,
        "width": fingerprint.dim,
        "metric": METRIC,
        "encoder": [*encoder, fingerprint.normalised],
        "FAISS": faiss.__version__,
    }


def _bytes_of(arrays: Sequence[NDArray[Any]]) -> list[memoryview]:
    """The arrays' own memory, none of it copied."""
    return [memoryview(array.reshape(-1).view(np.uint8)) for array in arrays]  # type: ignore[arg-type]


def _digest(parts: Sequence[memoryview]) -> str:
    """BLAKE2b of the BLAKE2b of each piece of each part: so that every core hashes."""
    pieces = [part[start : start + PIECE] for part in parts for start in range(0, len(part), PIECE)]
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda piece: hashlib.blake2b(piece, digest_size=32).digest(), pieces)
        return hashlib.blake2b(b"".join(digests), digest_size=32).hexdigest()


def _check(about: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
