"""The two ways to long-term entries: those of a row's own document, carried in its state, and the episodic memory's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.errors import UsageError
from cmrn.layers import segment_numbers
from cmrn.memory.entries import Entries
from cmrn.memory.episodic import EpisodicMemory
from cmrn.memory.longterm import NEVER, Bounds, Far, Near, far_weights, joint_read
from cmrn.memory.rotary import rotate, rotate_carried
from cmrn.records import CMRNState, EventChain, LongReading, LongTermState, MemoryRead, Segments, WorkingMemory

__all__ = ["Recall", "recall_carried", "recall_reading", "recall_stored", "recall_writing"]

Tokens = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the call's tokens: queries, keys and values (B,T,H,C), salience (B,T)."""


@dataclass(frozen=True)
class Recall:
    """How a call reads long-term memory.

    place_BT: of each token in its document. position_B: tokens read of the document that each row goes on with. Either
    `reading` is given, of what the states carry, or `memory`, the clock at whose document's first token is origin_B;
    writes: whether it takes in what is read. block: which one reads, and events: its own.
    """

    place_BT: Tensor
    position_B: Tensor
    events: EventChain | None = None
    reading: LongReading | None = None
    origin_B: Tensor | None = None
    memory: EpisodicMemory | None = None
    writes: bool = False
    block: int = 0

    @property
    def stored(self) -> EpisodicMemory:
        """The memory, where there is one."""
        assert self.memory is not None
        return self.memory

    def start_BT(self, config: CMRNConfig) -> Tensor:
        """Where each token's chunk begins, in places of the row."""
        row_T = torch.arange(self.place_BT.shape[1], device=self.place_BT.device)
        return row_T - self.place_BT % config.episodic_chunk

    def total_BT(self, config: CMRNConfig) -> Tensor:
        """Tokens read before each token's chunk, of its document or, of the episodic memory, of all."""
        if self.origin_B is None:
            return self.place_BT - self.place_BT % config.episodic_chunk
        return self.start_BT(config) + (self.origin_B + self.position_B)[:, None]

    def bounds(self, config: CMRNConfig) -> Bounds:
        """What each token may read."""
        row_T = torch.arange(self.place_BT.shape[1], device=self.place_BT.device)
        first_BT, start_BT = row_T - self.place_BT, self.start_BT(config)
        lower_BT = torch.full_like(first_BT, -NEVER)
        if self.reading is not None:
            lower_BT = torch.maximum(first_BT, start_BT - self.reading.reach)
        bounds = (
            row_T.expand_as(first_BT),
            torch.maximum(first_BT, row_T - config.working_memory),
            lower_BT,
            torch.minimum(start_BT, row_T - config.working_memory),
            start_BT,
            self.total_BT(config),
        )
        return Bounds(*(each.to(torch.int32) for each in bounds))


def recall_writing(
    memory: EpisodicMemory, place_BT: Tensor, position_B: Tensor, segments: Segments, *, goes_on: bool
) -> Recall:
    """For a call that the memory reads and takes in: of a new document, or going on in one.

    Raises:
        UsageError: rows are padded, hold several documents or lie at different places, or are not as many as before.
    """
    if segments.real_BT is not None or segments.start_BT is not None:
        raise UsageError("update_memory reads whole rows of one document: no attention_mask, no document_ids")
    places = set(position_B.tolist())
    if goes_on and len(places) != 1:
        raise UsageError("update_memory reads rows of equal length", hint="read rows of different lengths one by one")
    memory.read_on(len(position_B), int(places.pop()) if goes_on else None)
    origin_B = torch.full_like(position_B, memory.origin)
    return Recall(place_BT, position_B, origin_B=origin_B, memory=memory, writes=True)


def recall_reading(memory: EpisodicMemory, place_BT: Tensor, position_B: Tensor, states: CMRNState | None) -> Recall:
    """For a call that reads what the memory holds; where a text begins, the one before it is complete."""
    if states is None:
        memory.flush()
    origin_B = None if states is None else states.origin_B
    if origin_B is None:
        origin_B = torch.full_like(position_B, memory.next_origin)
    return Recall(place_BT, position_B, origin_B=origin_B, memory=memory)


def recall_carried(
    tokens: Tokens,
    tuned: tuple[Tensor, Tensor],
    null_HC: Tensor,
    before: WorkingMemory,
    segments: Segments,
    recall: Recall,
    config: CMRNConfig,
) -> tuple[Tensor, LongTermState]:
    """(what each token reads (B,T,H,C), the entries to carry): of the row's own document, soft or limited."""
    q_BTHC, k_BTHC, v_BTHC, salience_BT = tokens
    reading, length = recall.reading, q_BTHC.shape[1]
    assert reading is not None
    size = max(reading.reach + config.episodic_chunk, config.working_memory)
    carried = _carried(before.long, k_BTHC, salience_BT, size)
    keys, values, salience_BN = (
        torch.cat([old.to(new.dtype), new], dim)
        for old, new, dim in (
            (carried.keys_BHNC, k_BTHC.transpose(1, 2), 2),
            (carried.values_BHNC, v_BTHC.transpose(1, 2), 2),
            (carried.salience_BN, salience_BT, 1),
        )
    )
    place_BN = torch.arange(-size, length, device=q_BTHC.device, dtype=torch.int32).expand(len(q_BTHC), -1)
    if 0 < reading.keep < config.episodic_chunk:
        kept_BN = _most_salient(salience_BN, _chunks(recall, segments, size, config), reading.keep)
        place_BN = place_BN.masked_fill(~kept_BN, NEVER)
    far = Far(q_BTHC, *tuned, keys, values, salience_BN, place_BN)
    read = joint_read(_near(tokens, before), far, null_HC, recall.bounds(config), reading.reads)
    return read, _last(LongTermState(keys, values, salience_BN), size, segments)


def recall_stored(
    tokens: Tokens,
    tuned: tuple[Tensor, Tensor],
    null_HC: Tensor,
    before: WorkingMemory,
    recall: Recall,
    config: CMRNConfig,
) -> tuple[Tensor, MemoryRead | None]:
    """(what each token reads (B,T,H,C), of which entries where that is to be shown); what is read may be written."""
    q_BTHC, k_BTHC, v_BTHC, salience_BT = tokens
    memory, index, bounds, length = recall.stored, recall.block, recall.bounds(config), q_BTHC.shape[1]
    pieces = memory.pieces(length) if recall.writes else [slice(0, length)]
    near, window, reads, shown = _near(tokens, before), config.working_memory, [], []
    for piece in pieces:
        stored = None if memory.blocks[index].held is None else memory.entries(index)
        own = slice(piece.start, window + piece.stop)
        near_piece = Near(near.q_BTHC[:, piece], near.keys_BHNC[:, :, own], near.values_BHNC[:, :, own])
        far = _far(q_BTHC[:, piece], tuned[0][:, piece], tuned[1][:, piece], stored, recall)
        arguments = (near_piece, far, null_HC, bounds.part(piece), config.episodic_reads)
        reads.append(joint_read(*arguments))
        if memory.shown:
            shown.append(_shown(far_weights(*arguments), stored, memory.shown))
        if recall.writes:
            k_BHTC, v_BHTC = (each[:, piece].transpose(1, 2) for each in (k_BTHC, v_BTHC))
            memory.write(index, k_BHTC, v_BHTC, salience_BT[:, piece], piece.start)
    names = [torch.cat(each, 1) for each in zip(*(vars(part).values() for part in shown), strict=True)]
    return torch.cat(reads, 1), MemoryRead(*names) if names else None


def _carried(long: LongTermState | None, k_BTHC: Tensor, salience_BT: Tensor, size: int) -> LongTermState:
    """What a row carried, or as many entries of nothing, which no token may read."""
    if long is not None and long.salience_BN.shape[1] == size:
        return long
    batch, _, heads, width = k_BTHC.shape
    if long is not None:
        had = long.salience_BN.shape[1]
        keys, values = (F.pad(x, (0, 0, size - had, 0)) for x in (long.keys_BHNC, long.values_BHNC))
        return LongTermState(keys, values, F.pad(long.salience_BN, (size - had, 0)))
    nothing = k_BTHC.new_zeros(()).expand(batch, heads, size, width)
    return LongTermState(nothing, nothing, salience_BT.new_zeros(batch, size))


def _last(long: LongTermState, size: int, segments: Segments) -> LongTermState:
    """The entries of the last `size` real tokens."""
    if segments.real_BT is None:
        keys, values = long.keys_BHNC[:, :, -size:], long.values_BHNC[:, :, -size:]
        return LongTermState(keys, values, long.salience_BN[:, -size:])
    heads, width = long.keys_BHNC.shape[1], long.keys_BHNC.shape[3]
    last_BN = segments.real_BT.sum(1, keepdim=True) + torch.arange(size, device=long.salience_BN.device)
    wide = last_BN[:, None, :, None].expand(-1, heads, -1, width)
    return LongTermState(
        long.keys_BHNC.gather(2, wide), long.values_BHNC.gather(2, wide), long.salience_BN.gather(1, last_BN)
    )


def _chunks(recall: Recall, segments: Segments, size: int, config: CMRNConfig) -> Tensor:
    """(B,N) numbers that rise from chunk to chunk, of the `size` carried entries and the call's."""
    batch, length = recall.place_BT.shape
    before_BN = recall.position_B[:, None] + torch.arange(-size, 0, device=recall.place_BT.device)
    grid_BN = torch.cat([before_BN, recall.place_BT], 1).div(config.episodic_chunk, rounding_mode="floor")
    number_BT = segment_numbers(segments, batch, length, recall.place_BT.device)
    return F.pad(number_BT, (size, 0)) * NEVER + grid_BN


def _most_salient(salience_BN: Tensor, chunk_BN: Tensor, keep: int) -> Tensor:
    """(B,N) which entries are among the `keep` most salient of their chunk, the earlier first where they are equal."""
    order_BN = salience_BN.detach().argsort(dim=1, descending=True, stable=True)
    again_BN = chunk_BN.gather(1, order_BN).argsort(dim=1, stable=True)
    order_BN = order_BN.gather(1, again_BN)
    sorted_BN = chunk_BN.gather(1, order_BN)
    row_N = torch.arange(sorted_BN.shape[1], device=sorted_BN.device)
    opens_BN = F.pad(sorted_BN[:, 1:] != sorted_BN[:, :-1], (1, 0), value=True)
    rank_BN = row_N - torch.where(opens_BN, row_N, 0).cummax(1).values
    return torch.zeros_like(opens_BN).scatter(1, order_BN, rank_BN < keep)


def _near(tokens: Tokens, before: WorkingMemory) -> Near:
    """Working memory and the call's tokens, turned by their places."""
    q_BTHC, k_BTHC, v_BTHC, _ = tokens
    carried, narrow = rotate_carried(before), q_BTHC.dtype
    keys = torch.cat([carried.keys_BHWC.to(narrow), rotate(k_BTHC).transpose(1, 2)], 2)
    values = torch.cat([carried.values_BHWC.to(narrow), v_BTHC.transpose(1, 2)], 2)
    return Near(rotate(q_BTHC), keys, values)


def _far(q_BTHC: Tensor, sharp_BTH: Tensor, slope_BTH: Tensor, stored: Entries | None, recall: Recall) -> Far:
    """What the memory holds, by its places before the call's first token."""
    batch, _, heads, width = q_BTHC.shape
    if stored is None:
        nothing, none = q_BTHC.new_zeros(batch, heads, 0, width), q_BTHC.new_zeros(batch, 0)
        return Far(q_BTHC, sharp_BTH, slope_BTH, nothing, nothing, none, none.int())
    assert recall.origin_B is not None
    clock_B1 = (recall.origin_B + recall.position_B)[:, None]
    place_BN = (stored.when_BN - clock_B1).clamp(min=1 - NEVER).to(torch.int32)
    place_BN = place_BN.masked_fill(~recall.stored.may_read(stored), NEVER)
    columns = (stored.keys_BHNC, stored.values_BHNC, stored.salience_BN)
    # The memory is written in place, and a backward pass must find what was read.
    held = (each.clone() if torch.is_grad_enabled() else each for each in columns)
    keys, values, salience = (each.expand(batch, *each.shape[1:]) for each in held)
    return Far(q_BTHC, sharp_BTH, slope_BTH, keys, values, salience, place_BN)


def _shown(weights_BTN: Tensor, stored: Entries | None, most: int) -> MemoryRead:
    """The entries of the largest shares; -1 for those that are none."""
    batch, length = weights_BTN.shape[:2]
    if stored is None:
        none = torch.full((batch, length, most), -1, device=weights_BTN.device)
        return MemoryRead(none.float().zero_(), none, none, none, none)
    held = weights_BTN[..., : stored.when_BN.shape[1]]
    best, slots = F.pad(held, (0, max(0, most - held.shape[-1]))).topk(most, -1)

    def of(column_BN: Tensor) -> Tensor:
        column_BTN = column_BN[:, None].expand(batch, length, -1)
        return column_BTN.gather(2, slots.clamp(max=column_BTN.shape[2] - 1)).masked_fill(best <= 0, -1)

    return MemoryRead(best, of(stored.record_BN), of(stored.document_BN), of(stored.place_BN), of(stored.namespace_BN))
