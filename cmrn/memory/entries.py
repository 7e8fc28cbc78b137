"""The entries of one block's long-term memory: a bounded table for each row, and what waits for its chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NOTHING", "SHARED", "BlockEntries", "Entries", "EntryHits", "EpisodicStats", "join"]

SHARED = "shared"
"""The namespace that may always be read."""

NOTHING = -1
"""A record, document or time that is none."""


@dataclass(frozen=True)
class Entries:
    """Keys and values of heads, and where they come from.

    salience_BN: at most 0. when_BN: the memory's clock at the token, -1 where there is no entry. place_BN: of
    the token in its document. record_BN: of the text store, -1 for none. namespace_BN: a number; all four int64.
    """

    keys_BHNC: Tensor
    values_BHNC: Tensor
    salience_BN: Tensor
    when_BN: Tensor
    document_BN: Tensor
    place_BN: Tensor
    namespace_BN: Tensor
    record_BN: Tensor

    def pick(self, index_BM: Tensor) -> Entries:
        """Those at some places of each row."""
        heads, width = self.keys_BHNC.shape[1], self.keys_BHNC.shape[3]
        wide = index_BM[:, None, :, None].expand(-1, heads, -1, width)
        keys, values, *columns = vars(self).values()
        return Entries(keys.gather(2, wide), values.gather(2, wide), *(each.gather(1, index_BM) for each in columns))

    def part(self, piece: slice) -> Entries:
        """Those of a range of places."""
        keys, values, *columns = vars(self).values()
        return Entries(keys[:, :, piece], values[:, :, piece], *(each[:, piece] for each in columns))

    def where(self, chosen_BM: Tensor, other: Entries) -> Entries:
        """These where chosen, the other's elsewhere."""
        wide = chosen_BM[:, None, :, None]
        mine, theirs = list(vars(self).values()), list(vars(other).values())
        pairs = zip([wide, wide, *[chosen_BM] * 6], mine, theirs, strict=True)
        return Entries(*(torch.where(choice, a, b.to(a.dtype)) for choice, a, b in pairs))


@dataclass(frozen=True)
class EntryHits:
    """What a search found, best first: inner products, and slots in the block's table, int64."""

    scores_BTHM: Tensor
    slots_BTHM: Tensor


@dataclass(frozen=True)
class EpisodicStats:
    """How full an episodic memory is.

    entries: held, over all rows and blocks; capacity: most there can be; bytes: on the device; tokens: read of each
    row; evicted: entries that left the device or never came to stay.
    """

    entries: int
    capacity: int
    bytes: int
    tokens: int
    documents: int
    evicted: int


def join(parts: Sequence[Entries]) -> Entries:
    """One after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Entries(*(torch.cat(column, 2 if column[0].dim() == 4 else 1) for column in columns))


class BlockEntries:
    """At most `capacity` entries of each row, in slots that are made when the first ones come.

    All rows hold equally many, `count`, in the first slots. lost: entries of a row that did not stay.
    """

    def __init__(self, capacity: int, chunk: int, keep: int) -> None:
        self.capacity, self.chunk, self.keep = capacity, chunk, keep
        self.held: Entries | None = None
        self.count = self.lost = 0
        self._waiting: list[Entries] = []

    @property
    def waiting(self) -> int:
        """Entries of a row whose chunk is not complete."""
        return sum(part.when_BN.shape[1] for part in self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of the slots."""
        return 0 if self.held is None else sum(each.nbytes for each in vars(self.held).values())

    def entries(self) -> Entries:
        """What is held, a view."""
        assert self.held is not None
        return self.held.part(slice(0, self.count))

    def append(self, entries: Entries) -> None:
        """Let entries wait."""
        self._waiting.append(entries)

    def waiting_parts(self) -> list[Entries]:
        """What waits, in order."""
        return list(self._waiting)

    def take_waiting(self) -> list[Entries]:
        """What waits, which then waits no more."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put(self, chunk: Entries, fade: float, clock: int) -> Entries | None:
        """Store the most salient entries of a chunk; what is then not held any more, of the chunk or before.

        The share kept of a chunk is the same for one that is cut short. fade: nats that an entry loses, where it is
        decided which stay, for each e-fold of its age.
        """
        size = chunk.when_BN.shape[1]
        kept = min(size, -(-self.keep * size // self.chunk))
        order_BN = chunk.salience_BN.argsort(dim=1, descending=True, stable=True)
        dropped = chunk.pick(order_BN[:, kept:]) if kept < size else None
        new = chunk.pick(order_BN[:, :kept].sort(1).values)
        free = min(kept, self.capacity - self.count)
        if free:
            self.fill(new.part(slice(0, free)))
        left = [] if dropped is None else [dropped]
        if free < kept:
            left.append(self._replace(new.part(slice(free, kept)), fade, clock))
        self.lost += sum(part.when_BN.shape[1] for part in left)
        return join(left) if left else None

    def fill(self, new: Entries) -> None:
        """Put entries into free slots, of which there are enough."""
        if self.held is None:
            columns = []
            for each in vars(new).values():
                shape = [*each.shape]
                shape[2 if each.dim() == 4 else 1] = self.capacity
                columns.append(each.new_full(shape, NOTHING if each.dtype == torch.int64 else 0))
            self.held = Entries(*columns)
        slots = slice(self.count, self.count + new.when_BN.shape[1])
        for own, value in zip(vars(self.held.part(slots)).values(), vars(new).values(), strict=True):
            own.copy_(value)
        self.count = slots.stop

    def _replace(self, new: Entries, fade: float, clock: int) -> Entries:
        """Of the least worthy held and the new, keep the worthier; the others are returned, as many as are new."""
        assert self.held is not None
        count = new.when_BN.shape[1]
        worth_BN, slots_BM = _worth(self.held, fade, clock).topk(count, largest=False)
        new_BM, order_BM = _worth(new, fade, clock).sort(dim=1, descending=True, stable=True)
        new, old = new.pick(order_BM), self.held.pick(slots_BM)
        better_BM = new_BM > worth_BN
        kept = new.where(better_BM, old)
        heads, width = new.keys_BHNC.shape[1], new.keys_BHNC.shape[3]
        wide = slots_BM[:, None, :, None].expand(-1, heads, -1, width)
        for own, value in zip(vars(self.held).values(), vars(kept).values(), strict=True):
            own.scatter_(*((2, wide) if own.dim() == 4 else (1, slots_BM)), value.to(own.dtype))
        return old.where(better_BM, new)


def _worth(entries: Entries, fade: float, clock: int) -> Tensor:
    """What decides which entries stay, (B,N): salience, less `fade` nats for each e-fold of age."""
    if fade == 0:
        return entries.salience_BN
    return entries.salience_BN - fade * (clock - entries.when_BN).clamp(min=0).float().log1p()
