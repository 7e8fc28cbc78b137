from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.records import EventChain, EventState, Segments, TemporalState
from cmrn.temporal import EventChainTracker
from cmrn.temporal.events import list_events

surprises = st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=1, max_size=30)
places = st.sets(st.integers(0, 29), max_size=4)


def tracker(longest: int = 1000, threshold: float = 2.0) -> EventChainTracker:
    return EventChainTracker(CMRNConfig(max_episode_length=longest, event_threshold=threshold))


def update(
    events: EventChainTracker, surprise_BT: Tensor, state: EventState | None = None, segments: Segments | None = None
) -> tuple[EventChain, EventState]:
    nothing = torch.zeros(0)
    return events.update([TemporalState(nothing, nothing, surprise_BT)], state, segments or Segments())


def naive_begins(surprise: list[float], starts: set[int], longest: int, threshold: float) -> list[bool]:
    """The rule of EventChainTracker's docstring, token by token."""
    begins: list[bool] = []
    seen: list[float] = []
    above, since = False, 0
    for t, s in enumerate(surprise):
        if t == 0 or t in starts:
            seen, natural, now = [], True, False
        else:
            now = len(seen) > 1 and s > statistics.fmean(seen) + threshold * statistics.pstdev(seen)
            natural = now and not above
        since = 0 if natural else since + 1
        begins.append(since % longest == 0)
        above = now
        seen.append(s)
    return begins


def start_of(length: int, starts: set[int]) -> Tensor:
    return torch.tensor([[t in starts for t in range(length)]])


@given(surprise=surprises, starts=places, longest=st.integers(1, 9), threshold=st.sampled_from([0.37, 1.13, 2.71]))
def test_events_begin_where_the_rule_says(
    surprise: list[float], starts: set[int], longest: int, threshold: float
) -> None:
    tracked = tracker(longest, threshold)
    segments = Segments(None, start_of(len(surprise), starts))
    chain, _ = update(tracked, torch.tensor([surprise], dtype=torch.float64), None, segments)
    assert chain.begins_BT[0].tolist() == naive_begins(surprise, starts, longest, threshold)


@given(surprise=surprises, starts=places, longest=st.integers(1, 9), cuts=st.sets(st.integers(1, 29)))
def test_any_split_gives_the_same_events(surprise: list[float], starts: set[int], longest: int, cuts: set[int]) -> None:
    tracked = tracker(longest, 0.77)
    s_BT, start_BT = torch.tensor([surprise], dtype=torch.float64), start_of(len(surprise), starts)
    whole, last = update(tracked, s_BT, None, Segments(None, start_BT))
    edges = sorted({0, len(surprise), *(cut for cut in cuts if cut < len(surprise))})
    state, chains = None, []
    for begin, end in itertools.pairwise(edges):
        chain, state = update(tracked, s_BT[:, begin:end], state, Segments(None, start_BT[:, begin:end]))
        chains.append(chain)
    assert torch.equal(torch.cat([chain.begins_BT for chain in chains], 1), whole.begins_BT)
    assert list_events(chains) == list_events([whole])
    assert state is not None
    for name in ("count_B", "sum_B", "square_sum_B", "above_B", "since_cut_B"):
        torch.testing.assert_close(getattr(state, name), getattr(last, name))


@given(surprise=surprises, starts=places, longest=st.integers(1, 9))
def test_events_cover_the_stream_and_are_never_too_long(surprise: list[float], starts: set[int], longest: int) -> None:
    segments = Segments(None, start_of(len(surprise), starts))
    chain, _ = update(tracker(longest), torch.tensor([surprise]), None, segments)
    events = list_events([chain])
    assert [t for event in events for t in range(event.start, event.end)] == list(range(len(surprise)))
    assert all(0 < event.end - event.start <= longest for event in events)
    assert [event.surprise for event in events] == [surprise[event.start] for event in events]
    assert {start for start in starts if start < len(surprise)} <= {event.start for event in events}


def test_a_peak_of_surprise_opens_one_event() -> None:
    surprise = torch.full((1, 40), 1.0) + 0.1 * torch.tensor([0.0, 1.0]).repeat(20)
    surprise[0, 25:28] = 5.0
    chain, _ = update(tracker(), surprise)
    assert chain.begins_BT[0].nonzero()[:, 0].tolist() == [0, 25]


def test_even_surprise_opens_no_event() -> None:
    for level in (0.0, 0.1, 1 / 3):
        chain, _ = update(tracker(), torch.full((1, 300), level))
        assert chain.begins_BT[0].nonzero()[:, 0].tolist() == [0]


def test_a_long_even_stream_is_cut_at_the_longest_length() -> None:
    chain, state = update(tracker(7), torch.ones(1, 10))
    later, _ = update(tracker(7), torch.ones(1, 10), state)
    assert [event.start for event in list_events([chain, later])] == [0, 7, 14]


def test_a_cut_does_not_depend_on_what_follows() -> None:
    surprise = torch.rand(1, 60, generator=torch.Generator().manual_seed(2))
    other = surprise.clone()
    other[:, 30:] *= 9
    cuts, others = (update(tracker(50, 1.0), s)[0].begins_BT for s in (surprise, other))
    assert torch.equal(cuts[:, :30], others[:, :30])
    assert not torch.equal(cuts, others)


@pytest.mark.parametrize("real", [3, 0])
def test_padding_opens_nothing_and_carries_the_state(real: int) -> None:
    surprise = torch.tensor([[1.0, 2.0, 1.5, 9.0, 9.0]])
    real_BT = torch.arange(5)[None] < real
    chain, state = update(tracker(), surprise, None, Segments(real_BT, None))
    assert not chain.begins_BT[~real_BT].any()
    after, _ = update(tracker(), surprise, state)
    whole, _ = update(tracker(), torch.cat([surprise[:, :real], surprise], 1))
    assert torch.equal(after.begins_BT, whole.begins_BT[:, real:])


def test_surprise_is_the_mean_over_layers() -> None:
    nothing = torch.zeros(0)
    layers = [TemporalState(nothing, nothing, torch.full((1, 4), level)) for level in (1.0, 2.0)]
    chain, _ = tracker().update(layers, None, Segments())
    assert chain.surprise_BT.tolist() == [[1.5] * 4]


def test_events_are_linked_and_summarised() -> None:
    stream_BTD = torch.randn(2, 10, 3)
    chains = []
    state = None
    for part in (slice(0, 6), slice(6, 10)):
        chain, state = update(tracker(4), torch.ones(2, part.stop - part.start), state)
        chains.append(replace(chain, stream_BTD=stream_BTD[:, part]))
    events = list_events(chains, row=1)
    assert [(event.start, event.end, event.previous) for event in events] == [(0, 4, None), (4, 8, 0), (8, 10, 1)]
    for event in events:
        assert event.summary_D is not None
        torch.testing.assert_close(event.summary_D, stream_BTD[1, event.start : event.end].mean(0))
    assert all(event.summary_D is None for event in list_events([chains[0], replace(chains[1], stream_BTD=None)]))
