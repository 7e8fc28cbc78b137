"""An encoder for tests: texts that share words have like vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmrn.memory.entry import Fingerprint

DIM = 64


class WordEncoder:
    """A word is a random direction that follows from it, a text the unit sum of its words'."""

    def __init__(self, name: str = "words") -> None:
        self.name = name

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, 64) float32."""
        return np.stack([self._vector(text) for text in texts])

    def fingerprint(self) -> Fingerprint:
        """What a store keeps of it."""
        probe = "a probe"
        return Fingerprint(self.name, weights=self.name, dim=DIM, probes=((probe, self._vector(probe)),))

    def _vector(self, text: str) -> NDArray[np.float32]:
        total = np.full(DIM, 1e-3)
        for word in text.lower().split():
            digest = hashlib.blake2b(f"{self.name} {word}".encode(), digest_size=8).digest()
            total = total + np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(DIM)
        unit: NDArray[np.float32] = (total / np.linalg.norm(total)).astype(np.float32)
        return unit
