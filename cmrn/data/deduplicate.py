"""What is said twice, found by the 13-word passages that texts share.

A text is the set of its passages: every run of 13 words, case and punctuation aside (a shorter text is one passage).
Passages are counted exactly up to `MOST_PASSAGES`, and through a sample of them, chosen by their hash, beyond.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PASSAGE_WORDS", "Passages", "unseen_paragraphs"]

PASSAGE_WORDS = 13
MOST_PASSAGES = 1 << 26
WORDS = re.compile(r"\w+")
MULTIPLIER = 0x9E3779B97F4A7C15

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


class _WordHashes:
    """64-bit hashes of words, each computed once."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, text: str) -> Hashes:
        known = self._known
        words = WORDS.findall(text.lower())
        for word in {word for word in words if word not in known}:
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))


def _passage_hashes(words: Hashes) -> Hashes:
    """The distinct passages of a text, by hash: a polynomial in its words' hashes, modulo 2**64."""
    length = min(PASSAGE_WORDS, len(words))
    if not length:
        return words
    hashes = np.zeros(len(words) - length + 1, dtype=np.uint64)
    for offset in range(length):
        hashes = hashes * np.uint64(MULTIPLIER) + words[offset : offset + len(hashes)]
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes)


@dataclass(frozen=True)
class Passages:
    """The passages of several texts: text i holds passages `numbers[bounds[i]:bounds[i + 1]]`, 0 … count - 1."""

    numbers: Indices
    bounds: Indices
    count: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Passages:
        """Number the passages of every text."""
        words = _WordHashes()
        estimate = sum(map(len, texts)) // 6
        step = np.uint64(1 + estimate // MOST_PASSAGES)
        hashes = []
        for text in texts:
            found = _passage_hashes(words.of(text))
            sample = found[found % step == 0] if step > 1 else found
            hashes.append(sample if len(sample) else found[:1])
        bounds = np.cumsum([0, *map(len, hashes)])
        distinct, numbers = np.unique(np.concatenate([*hashes, np.zeros(0, np.uint64)]), return_inverse=True)
        return cls(numbers.astype(np.int64), bounds.astype(np.int64), len(distinct))

    def __getitem__(self, text: int) -> Indices:
        return self.numbers[self.bounds[text] : self.bounds[text + 1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def subset(self, texts: Sequence[int]) -> Passages:
        """The passages of some of the texts, in that order; their numbers stay."""
        chosen = [self[text] for text in texts]
        bounds = np.cumsum([0, *map(len, chosen)]).astype(np.int64)
        return Passages(np.concatenate([*chosen, np.zeros(0, np.int64)]), bounds, self.count)

    def texts_holding(self) -> Indices:
        """In how many of the texts each passage occurs, (count,)."""
        return np.bincount(self.numbers, minlength=self.count).astype(np.int64)

    def novel(self, order: Iterable[int], most_repeated: float) -> list[int]:
        """The texts, taken in `order`, of which at most the share `most_repeated` was said by those taken before."""
        seen = np.zeros(self.count, dtype=bool)
        kept = []
        for text in order:
            numbers = self[text]
            if len(numbers) and seen[numbers].mean() <= most_repeated:
                seen[numbers] = True
                kept.append(text)
        return kept


def unseen_paragraphs(parts: Iterable[tuple[list[str], str]], most_repeated: float = 0.3) -> Iterator[tuple[str, str]]:
    """(text, source) of each part, without paragraphs most of which an earlier paragraph already said."""
    listed = list(parts)
    paragraphs = [paragraph for part, _ in listed for paragraph in part]
    passages = Passages.of(paragraphs)
    kept = set(passages.novel(range(len(paragraphs)), most_repeated))
    first = 0
    for part, source in listed:
        yield "\n\n".join(text for i, text in enumerate(part, start=first) if i in kept), source
        first += len(part)
