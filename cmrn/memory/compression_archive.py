"""Where entries go that leave a full episodic memory: compressed, on the host, and back when a query is near to them.

Letters: N entries of the archive, M entries brought back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmrn.errors import UsageError
from cmrn.memory.compression import CompressionLoss
from cmrn.memory.compression_table import CompressedEntries, CompressionStats
from cmrn.memory.entries import Entries
from cmrn.memory.episodic import EpisodicMemory

__all__ = ["Archive"]

COLUMNS = ("salience", "when", "document", "place", "namespace", "record")
TYPES = (torch.float16, torch.int64, torch.int32, torch.int32, torch.int16, torch.int32)


class _Shelf:
    """The archived entries of one memory block, oldest first, and what tells them apart."""

    def __init__(self, code_bytes: int | None) -> None:
        self.table = CompressedEntries(code_bytes)
        self._columns: list[tuple[Tensor, ...]] = []

    def add(self, entries: Entries) -> None:
        """Take in the entries of a row that are some, and are not here yet."""
        new_M = (entries.when_BN[0] >= 0) & ~torch.isin(entries.when_BN[0], self.column(1).to(entries.when_BN.device))
        if not bool(new_M.any()):
            return
        keys, values, *columns = (each[0] for each in vars(entries).values())
        self.table.write(*(each[:, new_M].transpose(0, 1).float().cpu() for each in (keys, values)))
        kept = zip(columns, TYPES, strict=True)
        self._columns.append(tuple(each[new_M].to("cpu", dtype) for each, dtype in kept))

    def column(self, number: int) -> Tensor:
        """One of COLUMNS, of every entry."""
        if len(self._columns) > 1:
            self._columns = [tuple(torch.cat(each) for each in zip(*self._columns, strict=True))]
        return self._columns[0][number] if self._columns else torch.zeros(0, dtype=TYPES[number])

    @property
    def column_bytes(self) -> int:
        """Bytes of the columns."""
        return sum(each.nbytes for columns in self._columns for each in columns)

    def scores(self, q_BTHC: Tensor) -> Tensor:
        """(N,) the largest score of each entry for any token and head."""
        best = [_best(q_BTHC, keys) for _, keys, _ in self.table.blocks()]
        return torch.cat(best) + self.column(0).float()

    def entries(self, numbers_M: Tensor) -> Entries:
        """Entries, decoded, of one row."""
        keys, values = (each.transpose(0, 1)[None] for each in self.table.read(numbers_M))
        salience, *others = (self.column(place)[numbers_M][None] for place in range(len(COLUMNS)))
        return Entries(keys, values, salience.float(), *(each.long() for each in others))


def _best(q_BTHC: Tensor, keys_NHC: Tensor) -> Tensor:
    """(N,) the largest inner product of each key with a query of its head, float32 on the CPU."""
    queries_QHC = q_BTHC.flatten(0, 1).float().cpu()
    return torch.einsum("qhc,nhc->qhn", queries_QHC, keys_NHC.float().cpu()).amax((0, 1))


class Archive:
    """Takes in what leaves an episodic memory of one row, an eighth or less of its bytes each; forgets nothing.

    code_bytes: of a head's key and value, by default 7/8 of a byte a number of the key: with what tells an entry apart,
    an eighth of the entry in float32. It becomes the memory's `evicted`, which must be free.

    Raises:
        UsageError: something else takes what leaves the memory.
    """

    def __init__(self, memory: EpisodicMemory, code_bytes: int | None = None) -> None:
        if memory.evicted is not None:
            raise UsageError("something takes in already what leaves this memory")
        width = memory.config.memory_dim // memory.config.memory_heads
        self._memory, self._code_bytes = memory, code_bytes or max(1, width - width // 8)
        self.clear()
        memory.evicted, memory.archive = self._take, self

    def __len__(self) -> int:
        return sum(len(shelf.table) for shelf in self._shelves.values())

    def clear(self) -> None:
        """Forget everything, as the memory's `reset` does."""
        self._shelves: dict[int, _Shelf] = {}

    def bring_back(self, index: int, q_BTHC: Tensor, most: int = 256) -> int:
        """Put back into a block's memory what of its `most` best entries for the queries is archived; how many.

        They take the place of the least salient of the others. Entries that reads are not allowed stay.
        """
        shelf, block = self._shelves.get(index), self._memory.blocks[index]
        if shelf is None or block.held is None:
            return 0
        held = block.entries()
        known_N = torch.isin(shelf.column(1), held.when_BN[0].cpu())
        allowed_N = self._readable(shelf.column(4)) & ~known_N
        archived_N = shelf.scores(q_BTHC).masked_fill(~allowed_N, -torch.inf)
        held_N = _best(q_BTHC, held.keys_BHNC[0].transpose(0, 1)) + held.salience_BN[0].float().cpu()
        best = torch.cat([held_N, archived_N]).topk(min(most, block.count)).indices
        numbers_M = best[best >= block.count] - block.count
        numbers_M = numbers_M[allowed_N[numbers_M]]
        if not len(numbers_M):
            return 0
        found = shelf.entries(numbers_M)
        worth_BN = held.salience_BN.clone()
        worth_BN[:, best[best < block.count].to(worth_BN.device)] = torch.inf
        slots_BM = worth_BN.topk(len(numbers_M), largest=False).indices
        left = held.pick(slots_BM)
        heads, width = held.keys_BHNC.shape[1], held.keys_BHNC.shape[3]
        wide = slots_BM[:, None, :, None].expand(-1, heads, -1, width)
        for own, value in zip(vars(held).values(), vars(found).values(), strict=True):
            own.scatter_(*((2, wide) if own.dim() == 4 else (1, slots_BM)), value.to(own))
        self._take(index, left)
        return len(numbers_M)

    def sizes(self) -> tuple[int, int, float, float]:
        """(entries, bytes, bytes an entry, share of the squared keys and values that is lost)."""
        stats = self.stats()
        return stats.entries, stats.bytes, stats.bytes_per_entry, (stats.loss.keys + stats.loss.values) / 2

    def stats(self) -> CompressionStats:
        """How many entries are kept in how many bytes, with what tells them apart, and at what loss."""
        shelves = list(self._shelves.values())
        each = [shelf.table.stats() for shelf in shelves]
        columns = sum(shelf.column_bytes for shelf in shelves)
        encoded = sum(one.entries - one.waiting for one in each)
        coded = sum(one.bytes_per_entry * (one.entries - one.waiting) for one in each)
        count = sum(one.entries for one in each)
        bytes_each = coded / encoded + columns / count if encoded else 0.0
        config = self._memory.config
        whole = 2 * 4 * config.memory_dim + sum(torch.empty(0, dtype=dtype).element_size() for dtype in TYPES)
        return CompressionStats(
            entries=count,
            waiting=count - encoded,
            bytes=sum(one.bytes for one in each) + columns,
            bytes_per_entry=bytes_each,
            ratio=whole / bytes_each if encoded else 1.0,
            loss=CompressionLoss(
                *(
                    sum(getattr(one.loss, part) * (one.entries - one.waiting) for one in each) / max(1, encoded)
                    for part in ("keys", "values")
                )
            ),
            codecs=tuple(version for one in each for version in one.codecs),
            hits=sum(one.hits for one in each),
            misses=sum(one.misses for one in each),
        )

    def _take(self, index: int, entries: Entries) -> None:
        if len(entries.when_BN) != 1:
            raise UsageError(
                "an archive is of a memory of one row", hint="model.reset_memory(), then one text at a time"
            )
        self._shelves.setdefault(index, _Shelf(self._code_bytes)).add(entries)

    def _readable(self, namespace_N: Tensor) -> Tensor:
        """What `EpisodicMemory.may_read` says of archived entries."""
        if self._memory.readable is None:
            return torch.ones_like(namespace_N, dtype=torch.bool)
        names = self._memory.namespaces
        allowed = [place for place, name in enumerate(names) if place == 0 or name in self._memory.readable]
        return torch.isin(namespace_N, torch.tensor(allowed, dtype=namespace_N.dtype))
