"""Rows that go on where the batch before ended, for a model that carries its state from batch to batch.

Row j of every batch belongs to lane j. A lane reads one section after another, each to its end; a section is a
document or, of a long one, a stretch of at most SECTION tokens. Each new section comes from the source that is
furthest behind its share of the tokens, in the order of that source's epoch, so every token occurs once in each epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from cmrn.data.packing import Batch, Cursor, Integers, Lane, PackedDataset, PackedSource
from cmrn.errors import CheckpointError

__all__ = ["SECTION", "LaneDataset"]

SECTION = 16_384
"""Most tokens of one document that a lane reads in one go: longer, and a book would fill a lane for a whole run."""


class LaneDataset(PackedDataset):
    """Batches as a pure function of (seed, cursor), whose rows continue those of the batch before.

    document_ids_BT count a lane's sections from 0, so the id of a row's first token is that of the last one of the
    batch before exactly where it reads on.
    """

    def __init__(self, sources: Sequence[PackedSource], weights: Sequence[float], sequence_length: int, seed: int,
                 fingerprint: str) -> None:  # fmt: skip
        sections = [_cut(source) for source in sources]
        super().__init__(sections, weights, sequence_length, seed, f"{fingerprint}-lanes")

    def start(self) -> Cursor:
        """The cursor of a training that has read nothing."""
        return replace(super().start(), lanes=())

    def batch(self, cursor: Cursor, batch_size: int) -> tuple[Batch, Cursor]:
        """The next row of each of `batch_size` lanes, and the cursor after them.

        Raises:
            CheckpointError: the cursor belongs to other sources, or to another number of lanes.
        """
        self._check(cursor)
        lanes = list(cursor.lanes or (None,) * batch_size)
        if len(lanes) != batch_size:
            raise CheckpointError(f"the data cursor follows {len(lanes)} lanes, the batch has {batch_size} rows")
        drawn = list(cursor.rows)
        table = np.empty((4, batch_size, self.sequence_length), dtype=np.int64)
        after = [self._fill(table[:, row], lane, drawn) for row, lane in enumerate(lanes)]
        ids, documents, domains, labels = (torch.from_numpy(part) for part in table)
        return Batch(ids, documents, domains, labels), Cursor(tuple(drawn), tuple(after))

    def _fill(self, row_4T: Integers, lane: Lane | None, drawn: list[int]) -> Lane:
        """Write one row, (ids, document ids, domain ids, labels), drawing sections as it needs them; the lane after."""
        filled = 0
        while filled < self.sequence_length:
            if lane is None or lane.offset == self._length(lane):
                lane = self._next_section(drawn, 0 if lane is None else lane.number + 1)
            source, (order, _), place = self._sources[lane.source], *self._place(lane.source, lane.section)
            count = min(self._length(lane) - lane.offset, self.sequence_length - filled)
            first = int(source.bounds[order[place]]) + lane.offset
            part = slice(filled, filled + count)
            row_4T[0, part] = source.tokens[first : first + count]
            row_4T[1, part] = lane.number
            row_4T[2, part] = source.domains[order[place]]
            row_4T[3, part] = source.labels(first, count)
            lane = replace(lane, offset=lane.offset + count)
            filled += count
        assert lane is not None
        return lane

    def _next_section(self, drawn: list[int], number: int) -> Lane:
        read = [self._tokens_before(index, count) for index, count in enumerate(drawn)]
        total = sum(read) + 1
        behind = [weight * total - tokens for weight, tokens in zip(self._weights, read, strict=True)]
        source = behind.index(max(behind))
        drawn[source] += 1
        return Lane(source, drawn[source] - 1, 0, number)

    def _place(self, source: int, section: int) -> tuple[tuple[Integers, Integers], int]:
        """The order of the section's epoch, and where in it the section stands."""
        epoch, place = divmod(section, len(self._sources[source].domains))
        return self._order(source, epoch), place

    def _length(self, lane: Lane) -> int:
        (_, starts), place = self._place(lane.source, lane.section)
        return int(starts[place + 1] - starts[place])

    def _tokens_before(self, source: int, section: int) -> int:
        """Tokens of the source's sections before this one, all epochs counted."""
        epoch = section // len(self._sources[source].domains)
        (_, starts), place = self._place(source, section)
        return epoch * self._sources[source].size + int(starts[place])


def _cut(source: PackedSource) -> PackedSource:
    """The source with its long documents cut into sections, each of which counts as a document."""
    bounds, domains = [0], []
    for (first, last), domain in zip(pairwise(source.bounds.tolist()), source.domains.tolist(), strict=True):
        if last == first:
            continue
        bounds.extend([*range(first + SECTION, last, SECTION), last])
        domains.extend([domain] * -(-(last - first) // SECTION))
    return replace(source, bounds=np.array(bounds, dtype=np.int64), domains=np.array(domains, dtype=np.int64))
