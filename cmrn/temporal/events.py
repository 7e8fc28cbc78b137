"""Events: where the stream turns, read off the temporal layers' surprise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.layers import reads_one, segment_numbers
from cmrn.records import Event, EventChain, EventState, Segments, TemporalState

__all__ = ["EventChainTracker", "list_events"]


class EventChainTracker(nn.Module):
    """Cuts a stream into events, each beginning where surprise rises above its running level; it learns nothing.

    Token t begins an event when s_t > m + z·d, with m and d the mean and standard deviation of the document's earlier
    surprises, unless the token before it was above the level too; at a document's first token; and after every
    max_episode_length tokens. A cut depends on earlier tokens alone, so any split of a text gives the same events.
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.threshold = config.event_threshold
        self.longest = config.max_episode_length

    def initial_state(self, batch: int, device: torch.device) -> EventState:
        """Nothing read yet."""
        zeros = torch.zeros(batch, dtype=torch.float64, device=device)
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        return EventState(none, zeros, zeros, none.bool(), none)

    @torch.no_grad()
    def update(
        self, temporal_states: Sequence[TemporalState], previous: EventState | None, segments: Segments
    ) -> tuple[EventChain, EventState]:
        """Events of the chunk whose surprise the states hold (the mean over layers), and what to carry on."""
        if reads_one(self, temporal_states[0].surprise_BT, segments):
            return self._one(temporal_states, previous, segments)
        surprise_BT = torch.stack([state.surprise_BT for state in temporal_states]).mean(0)
        batch, length = surprise_BT.shape
        state = previous or self.initial_state(batch, surprise_BT.device)
        number_BT = segment_numbers(segments, batch, length, surprise_BT.device)
        place_BT = torch.arange(length, device=surprise_BT.device).expand(batch, length)
        first_BT = _last_true(segments.start_BT, place_BT)
        carried_BT = number_BT == 0

        s_BT = surprise_BT.double()
        count_BT = place_BT - first_BT.clamp(min=0) + carried_BT * state.count_B[:, None]
        sums_BT = _before(s_BT, first_BT) + carried_BT * state.sum_B[:, None]
        squares_BT = _before(s_BT.square(), first_BT) + carried_BT * state.square_sum_B[:, None]
        mean_BT = sums_BT / count_BT.clamp(min=1)
        deviation_BT = (squares_BT / count_BT.clamp(min=1) - mean_BT.square()).clamp(min=0).sqrt()
        above_BT = (count_BT > 1) & (s_BT > mean_BT + self.threshold * deviation_BT)

        opens_BT = count_BT == 0
        follows_BT = torch.cat([state.above_B[:, None], above_BT[:, :-1]], 1) & ~opens_BT
        natural_BT = opens_BT | (above_BT & ~follows_BT)
        cut_BT = _last_true(natural_BT, place_BT)
        since_BT = torch.where(cut_BT >= 0, place_BT - cut_BT, place_BT + state.since_cut_B[:, None])
        begins_BT = since_BT % self.longest == 0
        if segments.real_BT is not None:
            begins_BT = begins_BT & segments.real_BT
        ends = segments.lengths_B(surprise_BT) - 1
        after = _at(count_BT + 1, ends, state.count_B)
        return EventChain(surprise_BT, begins_BT), EventState(
            after,
            _at(sums_BT + s_BT, ends, state.sum_B),
            _at(squares_BT + s_BT.square(), ends, state.square_sum_B),
            _at(above_BT, ends, state.above_B),
            _at(since_BT + 1, ends, state.since_cut_B),
        )

    def _one(
        self, temporal_states: Sequence[TemporalState], previous: EventState | None, segments: Segments
    ) -> tuple[EventChain, EventState]:
        """`update` for one token a row, in one launch."""
        from cmrn.temporal.events_triton import track_one

        surprises = [state.surprise_BT[:, 0] for state in temporal_states]
        before = previous or self.initial_state(len(surprises[0]), surprises[0].device)
        carried = [before.count_B, before.sum_B, before.square_sum_B, before.above_B, before.since_cut_B]
        start_B = None if segments.start_BT is None else segments.start_BT[:, 0]
        surprise_B, begins_B, *after = track_one(surprises, carried, start_B, self.threshold, self.longest)
        return EventChain(surprise_B[:, None], begins_B[:, None]), EventState(*after)


def _last_true(flags_BT: Tensor | None, place_BT: Tensor) -> Tensor:
    """Place of the last True at or before each place, -1 where there is none."""
    if flags_BT is None:
        return torch.full_like(place_BT, -1)
    return torch.where(flags_BT, place_BT, -1).cummax(1).values


def _before(s_BT: Tensor, first_BT: Tensor) -> Tensor:
    """Sum of s over the same document's earlier tokens in this chunk."""
    exclusive = s_BT.cumsum(1) - s_BT
    return exclusive - exclusive.gather(1, first_BT.clamp(min=0))


def _at(values_BT: Tensor, ends_B: Tensor, otherwise_B: Tensor) -> Tensor:
    """Each row's value at its last real token, or the carried one where the row has none."""
    chosen = values_BT.gather(1, ends_B.clamp(min=0)[:, None])[:, 0]
    return torch.where(ends_B >= 0, chosen, otherwise_B)


def list_events(chains: Sequence[EventChain], row: int = 0) -> tuple[Event, ...]:
    """The events of one row, in tokens counted from the start of the first chain's chunk.

    Each has the mean of the chains' stream over its tokens, where all chains have one.
    """
    surprise = torch.cat([chain.surprise_BT[row] for chain in chains]).tolist()
    starts = torch.cat([chain.begins_BT[row] for chain in chains]).nonzero()[:, 0].tolist()
    ends = [*starts[1:], len(surprise)]
    streams = [chain.stream_BTD[row].float().cpu() for chain in chains if chain.stream_BTD is not None]
    stream_TD = torch.cat(streams) if len(streams) == len(chains) else None
    return tuple(
        Event(start, end, surprise[start], place - 1 if place else None,
              None if stream_TD is None else stream_TD[start:end].mean(0))
        for place, (start, end) in enumerate(zip(starts, ends, strict=True))
    )  # fmt: skip
