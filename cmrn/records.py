"""The records that stages hand to one another, and the letters their fields are named with.

B batch, T tokens, D d_model, E experts, K routing_k, H heads, V vocabulary, W working-memory entries,
N = B·T tokens in a row, C channels. In a temporal state, K and V are the key and value widths of a head.

Every record is frozen. Losses are fields here, never attributes of a module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

__all__ = [
    "BlockRecord",
    "BlockState",
    "CMRNOutput",
    "CMRNState",
    "Drawn",
    "Event",
    "EventChain",
    "EventState",
    "LongReading",
    "LongTermState",
    "Losses",
    "MemoryRead",
    "MemoryStats",
    "ReasoningStep",
    "Routing",
    "Segments",
    "TemporalState",
    "WorkingMemory",
    "map_tensors",
    "tensors_of",
]

Record = TypeVar("Record")


def map_tensors(record: Record, change: Callable[[Tensor], Tensor]) -> Record:
    """The same record with `change` applied to every tensor in it, through nested records and tuples."""
    if record is None:
        return record
    if isinstance(record, Tensor):
        return cast(Record, change(record))
    if isinstance(record, tuple):
        return type(record)(map_tensors(item, change) for item in record)
    if is_dataclass(record) and not isinstance(record, type):
        return type(record)(**{f.name: map_tensors(getattr(record, f.name), change) for f in fields(record)})
    return record


def tensors_of(record: object) -> list[Tensor]:
    """Every tensor of a record, in the order of its fields."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(record, keep)
    return found


@dataclass(frozen=True)
class Segments:
    """Which positions hold real tokens, and where documents begin. None stands for "all" and "nowhere".

    Padding, where there is any, lies at the right end of every row.
    """

    real_BT: Tensor | None = None
    start_BT: Tensor | None = None

    def lengths_B(self, x_BTD: Tensor) -> Tensor:
        """Real tokens in each row, int64."""
        if self.real_BT is None:
            return torch.full((x_BTD.shape[0],), x_BTD.shape[1], device=x_BTD.device)
        return self.real_BT.sum(1)


@dataclass(frozen=True)
class TemporalState:
    """What one temporal layer carries to the next chunk, and how surprised it was by this one.

    memory_BHKV: the delta rule's state, at least float32; carries gradient.
    tail_BTC: the last inputs of the causal convolution, oldest first.
    surprise_BT: β‖v − α Sᵀk‖, mean over heads, of the chunk just read; a by-product without gradient, not carried on.
    """

    memory_BHKV: Tensor
    tail_BTC: Tensor
    surprise_BT: Tensor


@dataclass(frozen=True)
class EventState:
    """Running statistics of surprise within each row's document, float64 or int64, without gradient."""

    count_B: Tensor
    sum_B: Tensor
    square_sum_B: Tensor
    above_B: Tensor
    since_cut_B: Tensor


@dataclass(frozen=True)
class EventChain:
    """Where events begin in the chunk just read.

    surprise_BT: the surprise the cuts were made on, float.
    begins_BT: bool, True at the first token of an event. stream_BTD: what the events' summaries are means of, without
    gradient; a model gives the normalised stream after its last block.
    """

    surprise_BT: Tensor
    begins_BT: Tensor
    stream_BTD: Tensor | None = None


@dataclass(frozen=True)
class Event:
    """One event: tokens `start` up to but not including `end`, and the surprise that opened it.

    previous: the place, in the list of events, of the one before it; None for the first. summary_D: the mean of the
    stream over its tokens, float32 on the CPU; None where the stream was not kept.
    """

    start: int
    end: int
    surprise: float
    previous: int | None = None
    summary_D: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class LongReading:
    """How far beyond working memory a model reads its own document, through the states it carries.

    reach: tokens before the current chunk whose entries are readable. keep: entries of each chunk that stay, by
    salience; 0 for all. reads: most of them that a token and head read, by score; 0 for all.
    """

    reach: int
    keep: int = 0
    reads: int = 0


@dataclass(frozen=True)
class LongTermState:
    """The entries of the last N tokens, newest last, whatever document they are of.

    keys_BHNC, values_BHNC carry gradient, and so does salience_BN, the logarithm of the gate that each passed.
    """

    keys_BHNC: Tensor
    values_BHNC: Tensor
    salience_BN: Tensor


@dataclass(frozen=True)
class MemoryRead:
    """Which long-term entries each token of a memory block read most, largest share first.

    weights_BTM: share of the softmax, mean over heads, float32. Of each entry: the record of the text store it came
    from, the document, the place in it, and the namespace, int64; -1 where there is none.
    """

    weights_BTM: Tensor
    records_BTM: Tensor
    documents_BTM: Tensor
    places_BTM: Tensor
    namespaces_BTM: Tensor


@dataclass(frozen=True)
class WorkingMemory:
    """The last W entries a memory block can read, newest last; invalid ones (before the document) at the front.

    long: the entries beyond them, where the model is set to read those of its own document.
    """

    keys_BHWC: Tensor
    values_BHWC: Tensor
    valid_BW: Tensor
    tail_BTC: Tensor
    long: LongTermState | None = None


@dataclass(frozen=True)
class Routing:
    """One block's choice of experts.

    weights_BTE: share of each expert, zero where not chosen, each row summing to 1; float32 or wider.
    indices_BTK: the chosen experts, largest weight first.
    gates_BTK: what the chosen experts' outputs are multiplied by; carries gradient.
    logits_BTE: the learned router's logits without noise or bias; None for hash and random routing.
    """

    weights_BTE: Tensor
    indices_BTK: Tensor
    gates_BTK: Tensor
    logits_BTE: Tensor | None


@dataclass(frozen=True)
class BlockState:
    """What one block carries to the next chunk; `temporal` ends with the state of its events where they are tracked.

    They are in the last block, and in blocks that read long-term memory.
    """

    temporal: tuple[TemporalState | EventState, ...]
    memory: WorkingMemory | None
    router_tail_BTC: Tensor | None
    ngram_tail_BTC: Tensor | None
    router_sums_BC: Tensor | None = None


@dataclass(frozen=True)
class BlockRecord:
    """What one block did with a chunk, its latent divergence (a scalar that carries gradient), and what it carries.

    events: of the block, where they are tracked. gate: mean share of its tokens that are worth remembering, a scalar
    that carries gradient; read: what it read of long-term memory, where that is asked for.
    """

    routing: Routing
    latent: Tensor
    state: BlockState
    events: EventChain | None = None
    gate: Tensor | None = None
    read: MemoryRead | None = None


@dataclass(frozen=True)
class CMRNState:
    """All that a model carries from one chunk of a text to the next.

    last_hidden_BD: output before the head at the last real token, so that the next chunk's first token is scored.
    document_B: id of the document each row is in, None where ids were never given; position_B: real tokens of it read
    so far. origin_B: the episodic memory's clock at the document's first token, None where no such memory was read.
    """

    blocks: tuple[BlockState, ...]
    last_hidden_BD: Tensor
    document_B: Tensor | None
    position_B: Tensor
    origin_B: Tensor | None = None

    def detach(self) -> CMRNState:
        """The same values, cut from the graph: what truncated backpropagation carries on."""
        return map_tensors(self, Tensor.detach)


@dataclass(frozen=True)
class Losses:
    """The parts of a loss, scalars that carry gradient; `total` is their weighted sum.

    language: nats per scored token. domain: nats per labelled token. router_z: squared log-partition.
    latent: nats per latent feature. scored_tokens: how many tokens `language` is the mean of. salience: share of the
    tokens worth remembering, None where long-term memory is not read.
    """

    total: Tensor
    language: Tensor
    domain: Tensor
    router_z: Tensor
    latent: Tensor
    scored_tokens: Tensor
    salience: Tensor | None = None


@dataclass(frozen=True)
class MemoryStats:
    """Size of the working memory: entries held over all rows and blocks, most it can hold, bytes.

    The same of the episodic memory, on the device; 0 for a model without one. Of the compressed entries that left it,
    where they are kept: how many, all their bytes, bytes of each, and the share of their squared norm that is lost.
    """

    working_entries: int
    working_capacity: int
    bytes: int
    episodic_entries: int = 0
    episodic_capacity: int = 0
    episodic_bytes: int = 0
    archived_entries: int = 0
    archived_bytes: int = 0
    archived_bytes_per_entry: float = 0.0
    archived_loss: float = 0.0


@dataclass(frozen=True)
class ReasoningStep:
    """One step of a proof: what was done with which premises or earlier steps, what it concludes, degree in [0, 1]."""

    id: str
    operation: str
    premises: tuple[str, ...]
    conclusion: str
    degree: float


@dataclass(frozen=True)
class Drawn:
    """What was concluded from one row's text: checked steps, conclusions as sentences, and what stood in the way."""

    steps: tuple[ReasoningStep, ...]
    conclusions: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class CMRNOutput:
    """What a forward pass returns.

    logits (B,T,V); loss and losses where labels were given; routing_weights (B,T,E), the mean over blocks, each row
    summing to 1; routing, one record a block; event_chain of the last block; states for the next chunk; drawn, in
    symbolic mode, what the premises of each row lead to; memory_hits, where the episodic memory is to show them, what
    each memory block read of it; episodic, its size as (entries, capacity, bytes); archived, that of what left it.
    """

    logits: Tensor
    loss: Tensor | None
    losses: Losses | None
    routing_weights: Tensor
    routing: tuple[Routing, ...]
    event_chain: EventChain
    states: CMRNState
    drawn: tuple[Drawn, ...] = ()
    memory_hits: tuple[MemoryRead, ...] = ()
    episodic: tuple[int, int, int] = (0, 0, 0)
    archived: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)

    @property
    def reasoning_trace(self) -> tuple[ReasoningStep, ...]:
        """The steps of every row's proofs, in order; none but in symbolic mode (`CMRN.set_reasoning_mode`)."""
        return tuple(step for row in self.drawn for step in row.steps)

    @property
    def memory_stats(self) -> MemoryStats:
        """How full the memories are; the working one is counted when asked for."""
        memories = [block.memory for block in self.states.blocks if block.memory is not None]
        return MemoryStats(
            working_entries=sum(int(memory.valid_BW.sum()) for memory in memories),
            working_capacity=sum(memory.valid_BW.numel() for memory in memories),
            bytes=sum(2 * memory.keys_BHWC.nbytes for memory in memories),
            episodic_entries=self.episodic[0],
            episodic_capacity=self.episodic[1],
            episodic_bytes=self.episodic[2],
            archived_entries=self.archived[0],
            archived_bytes=self.archived[1],
            archived_bytes_per_entry=self.archived[2],
            archived_loss=self.archived[3],
        )
