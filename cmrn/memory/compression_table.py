"""Old memory entries kept as codes: written in blocks, each with the codec that fits it, decoded when read again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cmrn.errors import CheckpointError, UsageError
from cmrn.memory.compression import CompressionLoss, EntryCodec

__all__ = ["BLOCK", "CompressedEntries", "CompressionStats"]

BLOCK = 4096
"""Entries that are encoded together; fewer wait as they are."""

PAGE = 64
"""Entries that are decoded together."""

WORSE = 1.5
"""A block on which the newest codec loses so many times what it lost where it was fitted gets a codec of its own."""


@dataclass(frozen=True)
class CompressionStats:
    """How much is kept, in how much, at what loss.

    entries: all; waiting: those of them not yet encoded. bytes: of codes, codecs and waiting entries, without the cache
    of decoded ones. bytes_per_entry: of an encoded one, codecs included. ratio: bytes of an entry in float32 over that.
    loss: of all encoded entries. codecs: versions in use, oldest first. hits, misses: pages found decoded, and not.
    """

    entries: int
    waiting: int
    bytes: int
    bytes_per_entry: float
    ratio: float
    loss: CompressionLoss
    codecs: tuple[str, ...]
    hits: int
    misses: int


@dataclass(frozen=True)
class _Block:
    codes_NHY: Tensor
    codec: int
    loss: CompressionLoss


class CompressedEntries:
    """Keys and values, (H,C) each, numbered from 0 as they are written, at an eighth of their float32 bytes.

    code_bytes: bytes of a head's code, by default C. decoded_pages: how many pages of 64 decoded entries are kept, the
    least recently used making room. All of it stays on the device of the first entries; nothing carries gradient.

    >>> table = CompressedEntries()
    >>> table.write(torch.randn(5000, 2, 8), torch.randn(5000, 2, 8)).shape
    torch.Size([5000])
    >>> keys, values = table.read(torch.tensor([[0, 4999]]))
    >>> keys.shape, table.stats().waiting
    (torch.Size([1, 2, 2, 8]), 904)
    """

    def __init__(self, code_bytes: int | None = None, decoded_pages: int = 256) -> None:
        if decoded_pages < 1:
            raise UsageError(f"decoded_pages must be 1 or more, and is {decoded_pages}")
        self._code_bytes, self._most_pages = code_bytes, decoded_pages
        self.clear()

    def clear(self) -> None:
        """Forget every entry and codec."""
        self._codecs: list[EntryCodec] = []
        self._fitted: list[float] = []
        self._blocks: list[_Block] = []
        self._waiting: tuple[Tensor, Tensor] | None = None
        self._pages: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._hits = self._misses = 0

    def __len__(self) -> int:
        return len(self._blocks) * BLOCK + (0 if self._waiting is None else len(self._waiting[0]))

    def write(self, keys_NHC: Tensor, values_NHC: Tensor) -> Tensor:
        """Take in entries; their numbers, int64 (N,).

        Raises:
            UsageError: entries of another shape than those before.
            DataError: an entry that is not finite.
        """
        first = len(self)
        new = keys_NHC.detach(), values_NHC.detach()
        if self._waiting is not None:
            if new[0].shape[1:] != self._waiting[0].shape[1:] or new[0].shape != new[1].shape:
                raise UsageError(f"entries have the shape {tuple(keys_NHC.shape)}, "
                                 f"those before (N, {', '.join(map(str, self._waiting[0].shape[1:]))})")  # fmt: skip
            keys, values = (torch.cat([a, b.to(a)]) for a, b in zip(self._waiting, new, strict=True))
        else:
            keys, values = new
        whole = len(keys) // BLOCK * BLOCK
        for begin in range(0, whole, BLOCK):
            self._encode(keys[begin : begin + BLOCK], values[begin : begin + BLOCK])
        self._waiting = keys[whole:].clone(), values[whole:].clone()
        return torch.arange(first, len(self), device=keys.device)

    def read(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of entries, each (…,H,C) where numbers is (…).

        Raises:
            UsageError: a number that was never given.
        """
        flat_N = numbers.flatten()
        if self._waiting is None or (len(flat_N) and not 0 <= int(flat_N.min()) <= int(flat_N.max()) < len(self)):
            raise UsageError(f"entries are numbered 0 to {len(self) - 1}")
        keys, values = (each.new_empty(len(flat_N), *each.shape[1:]) for each in self._waiting)
        page_N = flat_N.div(PAGE, rounding_mode="floor")
        waiting_N = flat_N >= len(self._blocks) * BLOCK
        for into, raw in zip((keys, values), self._waiting, strict=True):
            into[waiting_N] = raw[flat_N[waiting_N] - len(self._blocks) * BLOCK]
        wanted = page_N[~waiting_N].unique().tolist()
        for begin in range(0, len(wanted), self._most_pages):
            pages = wanted[begin : begin + self._most_pages]
            decoded = self._decoded(pages)
            slots = {page: slot for slot, page in enumerate(pages)}
            chosen = ~waiting_N & (page_N >= pages[0]) & (page_N <= pages[-1])
            slot_N = torch.tensor([slots[page] for page in page_N[chosen].tolist()], device=keys.device)
            for into, whole in zip((keys, values), decoded, strict=True):
                into[chosen] = whole[slot_N, flat_N[chosen] % PAGE].to(into)
        return (keys.view(*numbers.shape, *keys.shape[1:]), values.view(*numbers.shape, *values.shape[1:]))

    def blocks(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(number of the first, keys, values) of all entries, a block at a time, for a search through all of them."""
        for number, block in enumerate(self._blocks):
            yield number * BLOCK, *self._codecs[block.codec].decode(block.codes_NHY)
        if self._waiting is not None and len(self._waiting[0]):
            yield len(self._blocks) * BLOCK, *self._waiting

    def stats(self) -> CompressionStats:
        """What is kept, in how many bytes, at what loss."""
        waiting = self._waiting[0] if self._waiting is not None else torch.zeros(0)
        codec_bytes = sum(tensor.nbytes for codec in self._codecs for tensor in codec.tensors().values())
        coded = sum(block.codes_NHY.nbytes for block in self._blocks) + codec_bytes
        count = len(self._blocks) * BLOCK
        each = coded / count if count else 0.0
        full = 2 * 4 * waiting[0].numel() if waiting.dim() == 3 and len(waiting) else self._full_bytes()
        losses = [block.loss for block in self._blocks]
        return CompressionStats(
            entries=len(self),
            waiting=len(waiting),
            bytes=coded + 2 * waiting.nbytes,
            bytes_per_entry=each,
            ratio=full / each if each else 1.0,
            loss=CompressionLoss(_mean([loss.keys for loss in losses]), _mean([loss.values for loss in losses])),
            codecs=tuple(codec.version for codec in self._codecs),
            hits=self._hits,
            misses=self._misses,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All entries and codecs as named tensors, for a safetensors file."""
        found: dict[str, Tensor] = {}
        for number, codec in enumerate(self._codecs):
            found |= {f"codec.{number}.{name}": tensor for name, tensor in codec.tensors().items()}
        if self._blocks:
            found["codes"] = torch.cat([block.codes_NHY for block in self._blocks])
            found["codecs"] = torch.tensor([block.codec for block in self._blocks])
            found["losses"] = torch.tensor([[b.loss.keys, b.loss.values] for b in self._blocks], dtype=torch.float64)
        if self._waiting is not None:
            found |= {"waiting.keys": self._waiting[0], "waiting.values": self._waiting[1]}
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], decoded_pages: int = 256, where: str | None = None) -> Self:
        """The entries that `tensors` described.

        Raises:
            CheckpointError: a tensor is missing, or they do not fit one another.
        """
        table = cls(None, decoded_pages)
        if not tensors:
            return table
        try:
            table._waiting = tensors["waiting.keys"], tensors["waiting.values"]
            codes, owners = tensors.get("codes"), tensors.get("codecs", torch.zeros(0, dtype=torch.int64)).tolist()
            losses = [CompressionLoss(*pair) for pair in tensors["losses"].tolist()] if owners else []
            for number in range(max(owners, default=-1) + 1):
                part = {name.split(".", 2)[2]: t for name, t in tensors.items() if name.startswith(f"codec.{number}.")}
                table._codecs.append(EntryCodec.from_tensors(part, where))
            pieces = codes.split(BLOCK) if codes is not None else ()
            for piece, owner, loss in zip(pieces, owners, losses, strict=True):
                if piece.shape != (BLOCK, table._codecs[owner].heads, table._codecs[owner].code_bytes):
                    raise ValueError(f"codes of the shape {tuple(piece.shape)}")
                table._blocks.append(_Block(piece, owner, loss))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"its compressed entries cannot be read: {error}", where=where) from error
        fitted = {block.codec: block.loss for block in reversed(table._blocks)}
        table._fitted = [fitted[number].keys + fitted[number].values for number in range(len(table._codecs))]
        table._code_bytes = table._codecs[0].code_bytes if table._codecs else None
        return table

    def _encode(self, keys_NHC: Tensor, values_NHC: Tensor) -> None:
        """Take a whole block in, with the newest codec if that still fits."""
        if self._codecs:
            codes_NHY = self._codecs[-1].encode(keys_NHC, values_NHC)
            loss = self._codecs[-1].loss(keys_NHC, values_NHC, codes_NHY)
        if not self._codecs or loss.keys + loss.values > WORSE * self._fitted[-1]:
            codec = EntryCodec.fit(keys_NHC, values_NHC, self._code_bytes)
            codes_NHY = codec.encode(keys_NHC, values_NHC)
            loss = codec.loss(keys_NHC, values_NHC, codes_NHY)
            self._codecs.append(codec)
            self._fitted.append(loss.keys + loss.values)
        self._blocks.append(_Block(codes_NHY, len(self._codecs) - 1, loss))

    def _decoded(self, pages: list[int]) -> tuple[Tensor, Tensor]:
        """(keys, values) of pages, (pages, 64, H, C) each; decodes those not kept, in one go a codec."""
        missing: dict[int, list[int]] = {}
        for page in pages:
            if page not in self._pages:
                missing.setdefault(self._blocks[page * PAGE // BLOCK].codec, []).append(page)
        self._misses += sum(map(len, missing.values()))
        self._hits += len(pages) - sum(map(len, missing.values()))
        for codec, some in missing.items():
            codes = torch.cat([self._codes(page) for page in some])
            decoded = (each.unflatten(0, (-1, PAGE)) for each in self._codecs[codec].decode(codes))
            for page, keys, values in zip(some, *decoded, strict=True):
                # A view would keep everything alive that was decoded with it.
                self._pages[page] = keys.clone(), values.clone()
        for page in pages:
            self._pages.move_to_end(page)
        found = [self._pages[page] for page in pages]
        while len(self._pages) > self._most_pages:
            self._pages.popitem(last=False)
        return torch.stack([keys for keys, _ in found]), torch.stack([values for _, values in found])

    def _codes(self, page: int) -> Tensor:
        block, begin = divmod(page * PAGE, BLOCK)
        return self._blocks[block].codes_NHY[begin : begin + PAGE]

    def _full_bytes(self) -> int:
        return 2 * 4 * self._codecs[0].heads * self._codecs[0].width if self._codecs else 0


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
