"""The joint read against a softmax written out token by token, its gradient, and the choice of the most salient."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.memory import longterm_blocks
from cmrn.memory.longterm import NEVER, Bounds, Far, Near, far_weights, joint_read
from cmrn.memory.recall import _most_salient
from tests.tolerances import assert_close

BATCH, LENGTH, HEADS, WIDTH, WINDOW, ENTRIES, CHUNK, BEFORE = 2, 7, 2, 3, 3, 11, 4, 9


def make(seed: int = 0) -> tuple[list[Tensor], Bounds, Tensor]:
    """What carries gradient, in the order of the operator's arguments; bounds; places of the long-term entries."""
    random = torch.Generator().manual_seed(seed)
    shapes = [
        (HEADS, WIDTH), (BATCH, LENGTH, HEADS, WIDTH), *[(BATCH, HEADS, WINDOW + LENGTH, WIDTH)] * 2,
        (BATCH, LENGTH, HEADS, WIDTH), *[(BATCH, LENGTH, HEADS)] * 2, *[(BATCH, HEADS, ENTRIES, WIDTH)] * 2,
        (BATCH, ENTRIES),
    ]  # fmt: skip
    tensors = [torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
    row_T = torch.arange(LENGTH)
    place_BT = torch.stack([row_T + BEFORE, torch.cat([row_T[:3] + BEFORE, row_T[:-3]])])
    first_BT, start_BT = row_T - place_BT, row_T - place_BT % CHUNK
    low_BT, limit_BT = torch.maximum(first_BT, row_T - WINDOW), torch.minimum(start_BT, row_T - WINDOW)
    fields = (row_T.expand_as(place_BT), low_BT, first_BT, limit_BT, start_BT, start_BT - first_BT)
    places_BN = torch.randint(-BEFORE - 3, LENGTH, (BATCH, ENTRIES), generator=random).int()
    places_BN[:, 4] = NEVER
    return tensors, Bounds(*(each.int() for each in fields)), places_BN


def read(tensors: list[Tensor], bounds: Bounds, places_BN: Tensor, reads: int) -> Tensor:
    null_HC, *rest = tensors
    return joint_read(Near(*rest[:3]), Far(*rest[3:], places_BN), null_HC, bounds, reads)


def slowly(tensors: list[Tensor], bounds: Bounds, places_BN: Tensor, reads: int) -> tuple[Tensor, Tensor]:
    """(what each token reads, the share it gives each long-term entry, mean over heads), as the module says."""
    null, near_q, near_k, near_v, far_q, sharp, slope, far_k, far_v, salience = (each.detach() for each in tensors)
    out, shares_BTN = torch.zeros_like(near_q), torch.zeros(BATCH, LENGTH, ENTRIES, dtype=torch.float64)
    for b, t, h in itertools.product(range(BATCH), range(LENGTH), range(HEADS)):
        near = [WINDOW + j for j in range(max(int(bounds.low_BT[b, t]), t - WINDOW), t)]
        far: dict[int, float] = {}
        for n, place in enumerate(places_BN[b].tolist()):
            if bounds.lower_BT[b, t] <= place < bounds.limit_BT[b, t]:
                recency = math.log(int(bounds.total_BT[b, t]) / (int(bounds.start_BT[b, t]) - place))
                likeness = sharp[b, t, h] * (far_q[b, t, h] @ far_k[b, h, n])
                far[n] = float(likeness + salience[b, n] + slope[b, t, h] * recency)
        read = sorted(far, key=lambda n: -far[n])[: reads or None]
        scores = [
            near_q[b, t, h] @ null[h],
            *(near_q[b, t, h] @ near_k[b, h, j] for j in near),
            *(far[n] for n in read),
        ]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        values = [
            torch.zeros(WIDTH, dtype=torch.float64),
            *(near_v[b, h, j] for j in near),
            *(far_v[b, h, n] for n in read),
        ]
        out[b, t, h] = weights @ torch.stack(values)
        shares_BTN[b, t, read] += weights[1 + len(near) :] / HEADS
    return out, shares_BTN


@pytest.mark.parametrize("reads", [0, 1, 3, 100])
@pytest.mark.parametrize("scores", [1 << 25, 50])
def test_read_equals_the_softmax_written_out(monkeypatch: pytest.MonkeyPatch, reads: int, scores: int) -> None:
    monkeypatch.setattr(longterm_blocks, "BLOCK_SCORES", scores)
    tensors, bounds, places_BN = make()
    expected, shares_BTN = slowly(tensors, bounds, places_BN, reads)
    assert shares_BTN.any()
    assert_close(read(tensors, bounds, places_BN, reads), expected)
    null_HC, *rest = tensors
    weights = far_weights(Near(*rest[:3]), Far(*rest[3:], places_BN), null_HC, bounds, reads)
    assert_close(weights, shares_BTN.float())


@pytest.mark.parametrize("reads", [0, 3])
@pytest.mark.parametrize("scores", [1 << 25, 50])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, reads: int, scores: int) -> None:
    monkeypatch.setattr(longterm_blocks, "BLOCK_SCORES", scores)
    tensors, bounds, places_BN = make(1)

    def of(*changed: Tensor) -> Tensor:
        return read(list(changed), bounds, places_BN, reads)

    assert torch.autograd.gradcheck(of, tuple(tensors), fast_mode=True)


def test_without_entries_it_is_the_read_of_working_memory() -> None:
    tensors, bounds, places_BN = make()
    nothing = torch.full_like(places_BN, NEVER)
    whole = read(tensors, bounds, nothing, 0)
    empty = [*tensors[:7], tensors[7][:, :, :0], tensors[8][:, :, :0], tensors[9][:, :0]]
    assert_close(read(empty, bounds, nothing[:, :0], 0), whole)
    assert not torch.allclose(whole, read(tensors, bounds, places_BN, 0))


@given(
    salience=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    cuts=st.sets(st.integers(1, 19)),
    keep=st.integers(1, 4),
)
def test_the_most_salient_of_each_chunk(salience: list[int], cuts: set[int], keep: int) -> None:
    chunks = [sum(cut <= place for cut in cuts) for place in range(len(salience))]
    kept = _most_salient(torch.tensor([salience]).float(), torch.tensor([chunks]), keep)[0].tolist()
    for place, chunk in enumerate(chunks):
        better = [i for i, other in enumerate(chunks)
                  if other == chunk and (-salience[i], i) < (-salience[place], place)]  # fmt: skip
        assert kept[place] == (len(better) < keep)
