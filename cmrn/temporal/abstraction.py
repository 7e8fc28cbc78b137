"""The temporal part of a block: layers of growing timescale, and the events they reveal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.records import EventChain, EventState, Segments, TemporalState
from cmrn.temporal.events import EventChainTracker
from cmrn.temporal.layer import TemporalLayer

__all__ = ["TemporalAbstraction"]


class TemporalAbstraction(nn.Module):
    """temporal_layers x TemporalLayer, layer i with the timescale 2**i, then the EventChainTracker.

    `forward` is `read`, then `track`. A model reads in every block and tracks in the last alone, whose events it shows.
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TemporalLayer(config, timescale=2**i) for i in range(config.temporal_layers))
        self.event_tracker = EventChainTracker(config)

    def forward(
        self,
        x: Tensor,
        previous_states: Sequence[TemporalState | EventState] | None = None,
        segments: Segments | None = None,
    ) -> tuple[Tensor, tuple[TemporalState | EventState, ...], EventChain]:
        """(x_BTD, temporal_states, event_chain): the stream after all layers, what to carry, and where events begin.

        temporal_states holds one TemporalState a layer, then the tracker's EventState; pass it as `previous_states` to
        read on. Both x and the layers' memories carry gradient; events do not.
        """
        segments = segments or Segments()
        x, states = self.read(x, previous_states, segments)
        event_chain, temporal_states = self.track(states, previous_states, segments)
        return x, temporal_states, event_chain

    def read(
        self, x: Tensor, previous_states: Sequence[TemporalState | EventState] | None, segments: Segments
    ) -> tuple[Tensor, tuple[TemporalState, ...]]:
        """(x_BTD, one state a layer): the stream after all layers."""
        states: list[TemporalState] = []
        for i, layer in enumerate(self.layers):
            previous = cast(TemporalState, previous_states[i]) if previous_states else None
            x, state = layer(x, previous, segments)
            states.append(state)
        return x, tuple(states)

    def track(
        self,
        states: Sequence[TemporalState],
        previous_states: Sequence[TemporalState | EventState] | None,
        segments: Segments,
    ) -> tuple[EventChain, tuple[TemporalState | EventState, ...]]:
        """(event_chain, temporal_states): where what was just read begins events, and the states with the tracker's."""
        last = previous_states[-1] if previous_states else None
        tracked = last if isinstance(last, EventState) else None
        event_chain, event_state = self.event_tracker.update(states, tracked, segments)
        return event_chain, (*states, event_state)
