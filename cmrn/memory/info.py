"""What a store says of itself: its uuid, its limits, and the fingerprint of the encoder behind its vectors."""

from __future__ import annotations

import json
import math
import sqlite3
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from cmrn.errors import CheckpointError
from cmrn.memory.entry import Fingerprint, Vector

__all__ = ["METRIC", "Info", "check_same_encoder", "read_info", "update_info", "write_info"]

METRIC: Final = "inner product"
PROBE_COSINE = 0.999


@dataclass(frozen=True)
class Info:
    """A store's own description.

    max_records: most records it may hold, the least recently used making room; None for any number.
    pruned: changes up to this seq are no longer in the log.
    keys_ready: whether the indices that a bulk load does without are in place.
    """

    uuid: str
    fingerprint: Fingerprint
    max_records: int | None = None
    pruned: int = 0
    keys_ready: bool = True


def read_info(connection: sqlite3.Connection) -> Info:
    """The description in a store's file.

    Raises:
        CheckpointError: it is damaged.
    """
    rows = connection.execute("SELECT name, value FROM info").fetchall()
    probes = connection.execute("SELECT text, vec FROM probe ORDER BY rowid").fetchall()
    readable = all(isinstance(part, bytes) for row in [*rows, *probes] for part in row)
    values = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in rows if readable}
    if not readable or values.pop("crc", "") != _checksum(values, probes):
        raise CheckpointError("is damaged: its description is not as it was written")
    fingerprint = Fingerprint(**json.loads(values["fingerprint"]), probes=tuple((t.decode(), v) for t, v in probes))
    return Info(
        uuid=values["uuid"],
        fingerprint=fingerprint,
        max_records=json.loads(values["max_records"]),
        pruned=json.loads(values["pruned"]),
        keys_ready=json.loads(values["keys_ready"]),
    )


def write_info(connection: sqlite3.Connection, info: Info) -> None:
    """Replace the description, within a transaction."""
    print_ = info.fingerprint
    fields = ("embedder", "revision", "weights", "pooling", "normalised", "dim")
    values = {
        "uuid": info.uuid,
        "metric": METRIC,
        "fingerprint": json.dumps({name: getattr(print_, name) for name in fields}, ensure_ascii=False),
        "max_records": json.dumps(info.max_records),
        "pruned": json.dumps(info.pruned),
        "keys_ready": json.dumps(info.keys_ready),
    }
    probes = [(text.encode(), _bytes(vector)) for text, vector in print_.probes]
    connection.execute("DELETE FROM info")
    connection.execute("DELETE FROM probe")
    connection.executemany("INSERT INTO info VALUES (?, ?)", [*values.items(), ("crc", _checksum(values, probes))])
    connection.executemany("INSERT INTO probe VALUES (?, ?)", [(text.decode(), vector) for text, vector in probes])


def update_info(connection: sqlite3.Connection, **changes: Any) -> Info:
    """Change parts of the description, within a transaction; the new one."""
    info = replace(read_info(connection), **changes)
    write_info(connection, info)
    return info


def check_same_encoder(stored: Fingerprint, given: Fingerprint, where: Path) -> None:
    """Refuse an encoder other than the one behind a store's vectors.

    Raises:
        CheckpointError: they differ in name, or the probe texts' vectors have a cosine below 0.999.
    """
    hint = "use the store's own encoder, or embed its texts anew with: cmrn memory reembed"
    if stored != given:
        message = f"its vectors are of {_named(stored)}, and these would be of {_named(given)}"
        raise CheckpointError(message, where=str(where), hint=hint)
    vectors = dict(given.probes)
    for text, vector in stored.probes:
        if text in vectors and _cosine(vector, vectors[text]) < PROBE_COSINE:
            message = f"the encoder {_named(given)} no longer gives the vectors that the store was made with"
            raise CheckpointError(message, where=str(where), hint=hint)


def _named(fingerprint: Fingerprint) -> str:
    normalised = "normalised" if fingerprint.normalised else "not normalised"
    name = f"{fingerprint.embedder} revision {fingerprint.revision or '?'} weights {fingerprint.weights[:12] or '?'}"
    return f"{name} ({fingerprint.pooling} pooling, {normalised}, {fingerprint.dim} numbers)"


def _cosine(first: Vector, second: Vector) -> float:
    a, b = (np.frombuffer(_bytes(vector), np.float32).astype(np.float64) for vector in (first, second))
    return float(a @ b) / (math.sqrt(float(a @ a) * float(b @ b)) or 1.0)


def _checksum(values: dict[str, str], probes: list[tuple[bytes, bytes]]) -> str:
    parts = [f"{name}={value}".encode() for name, value in sorted(values.items())]
    for text, vector in probes:
        parts += [text, vector]
    return f"{zlib.crc32(b''.join(b'%d:%b' % (len(part), part) for part in parts)):08x}"


def _bytes(vector: Vector) -> bytes:
    return vector if isinstance(vector, bytes) else np.ascontiguousarray(vector, np.float32).tobytes()
