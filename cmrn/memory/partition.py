"""One namespace of a memory as two files: its records as JSON Lines, their vectors as safetensors.

The lines alone can be read by `cmrn memory populate`, which embeds them anew; with the vectors beside them a store of
the same encoder takes them in as they were. Line n and row n belong together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cmrn.errors import CheckpointError, DataError
from cmrn.memory.entry import AddResult, Fingerprint, NewRecord
from cmrn.memory.exchange import line_of
from cmrn.memory.store import MemoryStore

__all__ = ["Partition", "add_partition", "read_partition", "take_partition"]

VECTORS, PROBES, DESCRIPTION = "vectors_ND", "probes_PD", "memory"
WINDOW = 1_000


@dataclass(frozen=True)
class Partition:
    """Records of one namespace. lines: JSON Lines, one a record; vectors: a safetensors file's bytes."""

    lines: bytes
    vectors: bytes

    @property
    def records(self) -> int:
        """How many."""
        return self.lines.count(b"\n")


def take_partition(store: MemoryStore, namespace: str) -> Partition:
    """Every sound record of a namespace with its vector; bit for bit the same for the same records."""
    lines: list[bytes] = []
    vectors: list[NDArray[np.float32]] = [np.zeros((0, store.dim), np.float32)]
    for block in store.blocks(batch=WINDOW):
        own = [number for number, space in enumerate(block.namespaces) if space == namespace]
        place = {int(block.records[number]): number for number in own}
        records = store.get(list(place))
        lines += [line_of(record) for record in records]
        vectors.append(block.vectors[[place[record.record] for record in records]])
    print_ = store.fingerprint
    named = {each.name: getattr(print_, each.name) for each in fields(print_) if each.name != "probes"}
    probes = np.array([_floats(vector) for _, vector in print_.probes], np.float32).reshape(-1, store.dim)
    # Under one key: safetensors writes several in an order of its own.
    header = {DESCRIPTION: json.dumps({"fingerprint": named, "probes": [text for text, _ in print_.probes]})}
    return Partition(b"".join(lines), save({VECTORS: np.concatenate(vectors), PROBES: probes}, header))


def read_partition(lines: Path, vectors: Path, namespace: str) -> tuple[Fingerprint, list[NewRecord]]:
    """What `take_partition` gave, from files, for a namespace of this name: the encoder, and the records.

    Raises:
        CheckpointError: a file is not what it was written as, or the two do not belong together.
    """
    fingerprint, vectors_ND = _read_vectors(vectors)
    rows = lines.read_bytes().splitlines()
    if len(rows) != len(vectors_ND):
        raise CheckpointError(f"holds {len(vectors_ND)} vectors for {len(rows)} records", where=str(vectors))
    records = []
    for number, (row, vector_D) in enumerate(zip(rows, vectors_ND, strict=True), 1):
        try:
            document = json.loads(row)
            known = {name: document[name] for name in ("text", "id", "source", "meta", "origin", "trust")}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"is not a record: {error}", where=f"{lines}:{number}") from error
        records.append(NewRecord(vector=vector_D, namespace=namespace, **known))
    return fingerprint, records


def add_partition(folder: Path, fingerprint: Fingerprint, records: list[NewRecord]) -> AddResult:
    """Put the records into the store in `folder`, made where there is none: all of them or none.

    Raises:
        CheckpointError: its vectors are another encoder's, or it cannot be opened; or a record cannot be one.
        LockedError: another process is writing to it.
        ResourceError: the disk is full.
    """
    with MemoryStore.ensure(folder, fingerprint) as store:
        try:
            return store.add(records)
        except DataError as error:
            raise CheckpointError(f"holds what is no record: {error.message}", where=error.where) from error


def _read_vectors(path: Path) -> tuple[Fingerprint, NDArray[np.float32]]:
    try:
        with safe_open(path, framework="np") as file:
            header: Mapping[str, str] = file.metadata() or {}
            vectors_ND, probes_PD = file.get_tensor(VECTORS), file.get_tensor(PROBES)
        document = json.loads(header[DESCRIPTION])
        named: dict[str, Any] = document["fingerprint"]
        fingerprint = Fingerprint(**named, probes=tuple(zip(document["probes"], probes_PD, strict=True)))
        known = asdict(Fingerprint(""))
        typed = all(type(getattr(fingerprint, name)) is type(known[name]) for name in named)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"does not hold vectors of a memory: {error}", where=str(path)) from error
    if not typed or vectors_ND.dtype != np.float32 or vectors_ND.shape[1:] != (fingerprint.dim,):
        raise CheckpointError("does not hold vectors of the encoder it names", where=str(path))
    return fingerprint, vectors_ND


def _floats(vector: NDArray[np.float32] | bytes) -> NDArray[np.float32]:
    return np.frombuffer(vector, np.float32) if isinstance(vector, bytes) else vector
