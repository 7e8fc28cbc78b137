"""Episodic memory: what a model remembers of all it has read, a bounded number of entries on its device.

While a text is read, each memory block hands over a key, a value and a salience for every token. A chunk's most
salient entries go in once it is complete; when the memory is full they replace less salient ones, which leave the
device through `evicted`. Nothing here carries gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.errors import UsageError
from cmrn.memory.entries import NOTHING, SHARED, BlockEntries, Entries, EntryHits, EpisodicStats, join
from cmrn.memory.exact import exact_topk

__all__ = ["EpisodicMemory", "Keeper"]


class Keeper(Protocol):
    """Keeps what leaves an episodic memory."""

    def clear(self) -> None:
        """Forget everything."""

    def sizes(self) -> tuple[int, int, float, float]:
        """(entries, bytes, bytes an entry, share of the squared values that is lost)."""


class EpisodicMemory:
    """The long-term entries of every memory block of a model, for each row that was read.

    clock: tokens read, with a gap of working memory's length before each document, so that no other document's entry
    seems to be in it. readable: namespaces that reads are restricted to, `shared` always among them; None for all.
    shown: how many entries a token's reading is to be told of, in `CMRNOutput.memory_hits`. evicted: called with a
    block and the entries that left it, those whose place in time is negative being none. archive: keeps them, and is
    cleared with the memory.

    Raises:
        UsageError: the model has no long-term memory.
    """

    def __init__(self, config: CMRNConfig) -> None:
        if not config.episodic_memory:
            raise UsageError("the model has no long-term memory", hint="set model.episodic_memory and train with it")
        self.config = config
        self.shown = 0
        self.readable: frozenset[str] | None = None
        self.evicted: Callable[[int, Entries], None] | None = None
        self.archive: Keeper | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.namespaces = [SHARED]
        self.clock = self.tokens = self.place = self.rows = 0
        self.document = self._record = NOTHING
        self._namespace, self._announced = 0, False
        self.blocks = {index: self.empty_block() for index in self.config.reading_blocks}
        if self.archive is not None:
            self.archive.clear()

    def empty_block(self) -> BlockEntries:
        """The memory of a block that has read nothing."""
        config = self.config
        return BlockEntries(
            config.episodic_memory, config.episodic_chunk, config.episodic_keep or config.episodic_chunk
        )

    def __len__(self) -> int:
        """Entries, over all blocks and rows."""
        return sum(block.count * self.rows for block in self.blocks.values())

    @property
    def waiting(self) -> int:
        """Tokens of each row whose chunk is not complete."""
        return next(iter(self.blocks.values())).waiting

    def begin(self, namespace: str = SHARED, record: int = NOTHING) -> None:
        """A new document begins, of a namespace and perhaps a record of the text store; the last one is complete."""
        self.flush()
        if namespace not in self.namespaces:
            self.namespaces.append(namespace)
        self._namespace, self._record = self.namespaces.index(namespace), record
        self.clock = self.next_origin if self.tokens else 0
        self.document, self.place, self._announced = self.document + 1, 0, True

    def flush(self) -> None:
        """Take in what waits, as if its chunk were complete."""
        for index, block in self.blocks.items():
            self._commit(index, block)

    def read_on(self, rows: int, place: int | None) -> None:
        """Get ready for more tokens of `rows` rows: of a new document (place None), or from a place in this one.

        Raises:
            UsageError: the memory has entries of another number of rows.
        """
        if self.rows not in (0, rows):
            raise UsageError(
                f"the memory holds what {self.rows} rows read, and this call has {rows}", hint="model.reset_memory()"
            )
        if place is None and not self._announced:
            self.begin()
        elif place is not None and (place != self.place or self.document == NOTHING):
            self.begin()
            self.place = place
        self.rows, self._announced = rows, False

    @property
    def origin(self) -> int:
        """The clock at the document's first token."""
        return self.clock - self.place

    @property
    def next_origin(self) -> int:
        """What the origin of a document would be that began now."""
        return self.clock + self.config.working_memory

    def pieces(self, length: int) -> list[slice]:
        """The next `length` tokens, cut where a chunk is complete."""
        first = -self.place % self.config.episodic_chunk
        edges = sorted({0, length, *range(first, length, self.config.episodic_chunk)})
        return [slice(a, b) for a, b in pairwise(edges)]

    def write(self, index: int, keys_BHTC: Tensor, values_BHTC: Tensor, salience_BT: Tensor, after: int) -> None:
        """Entries of a block for the tokens that lie `after` tokens beyond the memory's clock, within one chunk."""
        block, length = self.blocks[index], keys_BHTC.shape[2]
        shape, device = (len(keys_BHTC), length), keys_BHTC.device
        step_BT = torch.arange(after, after + length, device=device).expand(shape)

        def all_of(number: int) -> Tensor:
            return torch.full(shape, number, device=device)

        block.append(
            Entries(
                keys_BHTC.detach(), values_BHTC.detach(), salience_BT.detach(), step_BT + self.clock,
                all_of(self.document), step_BT + self.place, all_of(self._namespace), all_of(self._record),
            )
        )  # fmt: skip
        if (self.place + after + length) % self.config.episodic_chunk == 0:
            self._commit(index, block)

    def advance(self, length: int) -> None:
        """All blocks have written `length` tokens of each row."""
        self.clock, self.place, self.tokens = self.clock + length, self.place + length, self.tokens + length

    def entries(self, index: int) -> Entries:
        """What a block holds.

        Raises:
            UsageError: it is no memory block, or nothing was written yet.
        """
        if index not in self.blocks or self.blocks[index].held is None:
            raise UsageError(f"block {index} holds no entries", hint=f"memory blocks are {sorted(self.blocks)}")
        return self.blocks[index].entries()

    def may_read(self, entries: Entries) -> Tensor:
        """(B,N) which entries reads are allowed."""
        there_BN = entries.when_BN >= 0
        if self.readable is None:
            return there_BN
        allowed_BN = entries.namespace_BN == 0
        for number, name in enumerate(self.namespaces):
            if name in self.readable:
                allowed_BN = allowed_BN | (entries.namespace_BN == number)
        return there_BN & allowed_BN

    def search(self, index: int, q_BTHC: Tensor, k: int) -> EntryHits:
        """The k entries of a block whose keys have the largest inner products with each query, exactly."""
        held = self.entries(index)
        rows = [
            [exact_topk(q_BTHC[row, :, head], held.keys_BHNC[row if self.rows > 1 else 0, head], k)
             for head in range(q_BTHC.shape[2])]
            for row in range(len(q_BTHC))
        ]  # fmt: skip
        scores, slots = (torch.stack([torch.stack([pair[i] for pair in heads], 1) for heads in rows]) for i in (0, 1))
        return EntryHits(scores, slots)

    def stats(self) -> EpisodicStats:
        """How full it is."""
        blocks = self.blocks.values()
        return EpisodicStats(
            entries=len(self),
            capacity=self.config.episodic_memory * len(self.blocks) * max(1, self.rows),
            bytes=sum(block.nbytes for block in blocks),
            tokens=self.tokens,
            documents=self.document + 1,
            evicted=sum(block.lost * self.rows for block in blocks),
        )

    def save(self, folder: str | Path) -> None:
        """Write everything to a folder, whole or not at all, replacing an earlier memory there.

        Raises:
            ResourceError: the disk is full; what stood there is whole.
        """
        from cmrn.memory.episodic_files import save

        save(self, Path(folder))

    def load(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        """Take everything from a folder that `save` wrote, in place of what is held; or change nothing.

        Raises:
            CheckpointError: it is no such folder, damaged, or of a model of other widths, blocks or chunks.
        """
        from cmrn.memory.episodic_files import load

        load(self, Path(folder), torch.device(device))

    def bookkeeping(self) -> dict[str, Any]:
        """All that is held beside entries, by the names that `take` knows it by."""
        return {
            "clock": self.clock, "tokens": self.tokens, "place": self.place, "document": self.document,
            "rows": self.rows, "namespaces": list(self.namespaces), "namespace": self._namespace,
            "record": self._record, "announced": self._announced,
        }  # fmt: skip

    def take(self, blocks: dict[int, BlockEntries], bookkeeping: dict[str, Any]) -> None:
        """Hold these, in place of what is held."""
        self.blocks = blocks
        self._namespace, self._record = bookkeeping["namespace"], bookkeeping["record"]
        self._announced, self.namespaces = bookkeeping["announced"], list(bookkeeping["namespaces"])
        self.clock, self.tokens, self.place = (bookkeeping[name] for name in ("clock", "tokens", "place"))
        self.document, self.rows = bookkeeping["document"], bookkeeping["rows"]

    def _commit(self, index: int, block: BlockEntries) -> None:
        if block.waiting == 0:
            return
        chunk = join(block.take_waiting())
        left = block.put(chunk, self.config.episodic_fade, self.clock)
        if left is not None and self.evicted is not None:
            self.evicted(index, left)
