"""Which documents are held out: whole ones, that share little with what is trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cmrn.data.deduplicate import Indices, Passages
from cmrn.data.documents import Document

__all__ = ["MOST_OVERLAP", "Split", "split_documents"]

MOST_OVERLAP = 0.1
LEAST_BYTES = 40_000
LARGEST_SHARE = 0.2
LINK_SHARE = 0.05
SHORTEST_DIVIDED = 2_000


@dataclass(frozen=True)
class Split:
    """Indices of documents held out and of those withheld from both sides; the rest is trained on.

    Where a domain is one document only, `head_of` holds what is left of it for training and `tails` its end, held out.
    """

    validation: tuple[int, ...]
    withheld: tuple[int, ...]
    head_of: Mapping[int, Document]
    tails: tuple[Document, ...]


def split_documents(documents: Sequence[Document], passages: Passages, fraction: float, seed: int) -> Split:
    """Hold out about `fraction` of the bytes of each domain, at least 40 kB where that is at most a fifth of them.

    At most a tenth of a held-out document's 13-word passages occur in what is trained on: documents that overlap are
    held out together, and what still overlaps is withheld from both.
    """
    groups: dict[str | None, list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        groups[document.domain].append(i)
    clusters = _Clusters(passages)
    chosen: list[int] = []
    head_of: dict[int, Document] = {}
    tails: list[Document] = []
    for members in groups.values():
        sizes = {i: len(documents[i].text.encode()) for i in members}
        target = max(fraction * sum(sizes.values()), min(LEAST_BYTES, LARGEST_SHARE * sum(sizes.values())))
        if len(members) == 1:
            divided = _divided(documents[members[0]], target / max(1, sizes[members[0]]))
            if divided:
                head_of[members[0]] = divided[0]
                tails.append(divided[1])
            continue
        order = sorted(members, key=lambda i: _rank(documents[i].text, seed))
        chosen += _chosen(order, sizes, target, clusters)
    withheld = _overlapping(chosen, passages)
    return Split(tuple(sorted(set(chosen) - set(withheld))), tuple(withheld), head_of, tuple(tails))


def _rank(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, key=seed.to_bytes(8, "little", signed=True)).digest()


class _Clusters:
    """Documents joined, directly or through others, by what they share; computed once."""

    def __init__(self, passages: Passages) -> None:
        repeated = passages.texts_holding() > 1
        self.alone = [
            len(passages[i]) == 0 or repeated[passages[i]].mean() <= MOST_OVERLAP for i in range(len(passages))
        ]
        self._root = list(range(len(passages)))
        for first, second in _linked(passages, repeated):
            self._root[self.root(first)] = self.root(second)

    def root(self, document: int) -> int:
        """The representative of a document's cluster."""
        while self._root[document] != document:
            self._root[document] = self._root[self._root[document]]
            document = self._root[document]
        return document


def _linked(passages: Passages, repeated: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Iterable[tuple[int, int]]:
    """Pairs of documents that share at least 5 % of the passages of one of them."""
    lengths = np.diff(passages.bounds)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    shared = repeated[passages.numbers]
    order = np.lexsort((owners[shared], passages.numbers[shared]))
    numbers, owners = passages.numbers[shared][order], owners[shared][order]
    same = numbers[1:] == numbers[:-1]
    codes = owners[:-1][same] * len(lengths) + owners[1:][same]
    pairs, counts = np.unique(codes, return_counts=True)
    firsts, seconds = pairs // max(1, len(lengths)), pairs % max(1, len(lengths))
    close = counts >= LINK_SHARE * np.minimum(lengths[firsts], lengths[seconds])
    return zip(firsts[close].tolist(), seconds[close].tolist(), strict=True)


def _chosen(order: Sequence[int], sizes: Mapping[int, int], target: float, clusters: _Clusters) -> list[int]:
    """Documents of one domain to hold out: those that overlap nothing first, then whole clusters."""
    grouped: dict[int, list[int]] = defaultdict(list)
    for i in order:
        if not clusters.alone[i]:
            grouped[clusters.root(i)].append(i)
    candidates = [[i] for i in order if clusters.alone[i]] + list(grouped.values())
    chosen: list[int] = []
    held = 0
    for candidate in candidates:
        size = sum(sizes[i] for i in candidate)
        if held < target and held + size <= 1.5 * target:
            chosen += candidate
            held += size
    if not chosen and len(candidates) > 1:
        return min(candidates, key=lambda candidate: sum(sizes[i] for i in candidate))
    return chosen


def _overlapping(chosen: Sequence[int], passages: Passages) -> list[int]:
    """Those of `chosen` of which more than a tenth of the passages occur in documents not chosen."""
    outside = passages.texts_holding()
    for i in chosen:
        outside[passages[i]] -= 1

    def overlap(numbers: Indices) -> float:
        return float((outside[numbers] > 0).mean()) if len(numbers) else 0.0

    return sorted(i for i in chosen if overlap(passages[i]) > MOST_OVERLAP)


def _divided(document: Document, share: float) -> tuple[Document, Document] | None:
    """A document and the last `share` of it, cut between paragraphs, lines or words; None where it is too short."""
    text = document.text
    if len(text) < SHORTEST_DIVIDED:
        return None
    middle = int(len(text) * (1 - share))
    for separator in ("\n\n", "\n", " "):
        cut = text.rfind(separator, len(text) // 2, middle)
        if cut >= 0:
            middle = cut + len(separator)
            break
    return replace(document, text=text[:middle]), replace(document, text=text[middle:])
