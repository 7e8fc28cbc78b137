"""Made-up records whose vector is a function of their text, so that a torn or foreign one shows by itself."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cmrn.memory.entry import Fingerprint, NewRecord

__all__ = ["DIM", "SOURCES", "Entry", "fingerprint", "key", "make_entry", "to_record", "vector", "vectors"]

DIM = 32
Entry: TypeAlias = list[object]
"""What a record must still say when it is read back: id, namespace, source, text, meta."""

SOURCES = ("almanac", "letters", "ledger", "notes")
WORDS = ("amber", "basalt", "cedar", "delta", "ember", "fjord", "granite", "harbour", "iris", "juniper", "knot", "lime")


def vector(text: str, dim: int = DIM) -> npt.NDArray[np.float32]:
    """A unit vector (dim,) that only this text has."""
    seed = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    drawn = np.random.default_rng(seed).standard_normal(dim)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def fingerprint(dim: int = DIM) -> Fingerprint:
    """What says that a store's vectors are made like this."""
    probes = tuple((word, vector(word, dim)) for word in WORDS[:4])
    return Fingerprint("stand-in", "1", hashlib.blake2b(b"stand-in").hexdigest(), "none", True, dim, probes)


def vectors(texts: Sequence[str], dim: int = DIM) -> npt.NDArray[np.float32]:
    """The vectors of the texts, (N, D) float32 unit rows."""
    return np.stack([vector(text, dim) for text in texts]) if texts else np.empty((0, dim), np.float32)


def make_entry(draw: random.Random, number: int) -> Entry:
    """An entry with a text that no other number has; half of them with an id of their own."""
    words = " ".join(draw.choices(WORDS, k=draw.randint(2, 30)))
    identity = f"id-{number}" if draw.random() < 0.5 else None
    meta = {"number": number, "kind": draw.choice(WORDS)}
    return [identity, draw.choice(("default", "other")), draw.choice(SOURCES), f"{number} {words}", meta]


def key(entry: Entry) -> tuple[object, ...]:
    """What tells two records apart: (namespace, source, id), or namespace and text where there is no id."""
    identity, namespace, source, text, _ = entry
    return (namespace, source, identity) if identity is not None else (namespace, text)


def to_record(entry: Entry) -> NewRecord:
    """The record to be added, its vector included."""
    identity, namespace, source, text, meta = entry
    return NewRecord(str(text), vector(str(text)), id=identity, namespace=namespace, source=source, meta=meta)  # type: ignore[arg-type]
