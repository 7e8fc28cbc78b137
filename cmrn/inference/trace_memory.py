"""What a traced text read of long-term memory, token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from cmrn.model import CMRN
from cmrn.records import MemoryRead

__all__ = ["EntryShare", "entry_shares", "shown_reads"]

LOOKED_AT: Final = 32
"""Entries of each memory block that a token's reading is told of, at least."""

MOST: Final = 8
"""Entries that a token is shown to have read."""


@dataclass(frozen=True)
class EntryShare:
    """A long-term entry that a token read: where it came from, and its share of the softmax.

    record: of the text store, None where it came from none. document: its number among those that the memory read,
    from 0. place: of the entry's token in it. namespace: of the document. weight: mean over memory blocks and heads,
    in [0, 1].
    """

    record: int | None
    document: int
    place: int
    namespace: str
    weight: float

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


@contextmanager
def shown_reads(model: CMRN) -> Iterator[None]:
    """Let outputs of `model` tell what was read of long-term memory, while the block runs."""
    memory = model.episodic
    if memory is None:
        yield
        return
    before = memory.shown
    memory.shown = max(before, LOOKED_AT)
    try:
        yield
    finally:
        memory.shown = before


def entry_shares(blocks: Sequence[MemoryRead], namespaces: Sequence[str]) -> Iterator[tuple[EntryShare, ...]]:
    """For each token of the first row the entries that were read most, largest share first.

    blocks: of one call, one a memory block. namespaces: the memory's, in its order.
    """
    columns = [
        [column[0].tolist() for column in (read.records_BTM, read.documents_BTM, read.places_BTM, read.namespaces_BTM,
                                           read.weights_BTM)]
        for read in blocks
    ]  # fmt: skip
    for of_token in zip(*(zip(*block, strict=True) for block in columns), strict=True):
        shares: dict[tuple[int, int, int, int], float] = defaultdict(float)
        for records, documents, places, spaces, weights in of_token:
            for *entry, weight in zip(records, documents, places, spaces, weights, strict=True):
                if weight > 0:
                    shares[tuple(entry)] += weight / len(blocks)
        ranked = sorted(shares.items(), key=lambda pair: -pair[1])[:MOST]
        yield tuple(
            EntryShare(None if record < 0 else record, document, place, namespaces[space], weight)
            for (record, document, place, space), weight in ranked
        )
