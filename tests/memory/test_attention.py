"""The windowed read against a dense masked softmax, and the exact edges of its window."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import segment_numbers
from cmrn.memory import MemoryAttention
from cmrn.records import Segments, WorkingMemory
from tests.test_layers import naive_conv
from tests.tolerances import assert_close

WIDTH, HEADS, DIM = 10, 2, 12


def make_memory(window: int) -> MemoryAttention:
    torch.manual_seed(window)
    config = CMRNConfig(
        vocab_size=10, d_model=WIDTH, memory_dim=DIM, memory_heads=HEADS, working_memory=window, dropout=0.0
    )
    return MemoryAttention(config).double()


def stream(length: int, batch: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=random)


def starting(length: int, places: set[int] | tuple[int, ...]) -> Segments:
    start_BT = torch.zeros(2, length, dtype=torch.bool)
    start_BT[0, [place for place in places if place < length]] = True
    return Segments(None, start_BT)


def dense(memory: MemoryAttention, x_BTD: Tensor, segments: Segments) -> Tensor:
    """Softmax over every entry and the null slot, with all but the W before each token in its document masked."""
    batch, length, _ = x_BTD.shape
    u = F.layer_norm(x_BTD, (WIDTH,), memory.norm.weight, None, memory.norm.eps)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    key = heads(naive_conv(memory.key_conv.weight, u @ memory.key.weight.T, segments.start_BT))
    query = F.normalize(heads(u @ memory.query.weight.T), dim=-1) * memory.log_temperature.exp()[:, None, None]
    scores = turned(query) @ turned(F.normalize(key, dim=-1)).mT
    null = torch.einsum("bhtc,hc->bht", query[..., 2:], memory.null_key)
    number = segment_numbers(segments, batch, length, x_BTD.device)
    lag = torch.arange(length)[:, None] - torch.arange(length)
    readable = (lag >= 1) & (lag <= memory.window) & (number[:, :, None] == number[:, None, :])
    scores = scores.masked_fill(~readable[:, None], -torch.inf)
    weights = torch.cat([null[..., None], scores], -1).softmax(-1)[..., 1:]
    read = (weights @ heads(u @ memory.value.weight.T)).transpose(1, 2).flatten(2)
    return x_BTD + (read * F.silu(u @ memory.gate.weight.T)) @ memory.output.weight.T


def turned(x_BHTC: Tensor) -> Tensor:
    """Two of a head's six features as a complex number, turned by a radian a token."""
    place_T = torch.arange(x_BHTC.shape[2], dtype=torch.float64)
    pair = torch.complex(x_BHTC[..., 0], x_BHTC[..., 1]) * torch.polar(torch.ones_like(place_T), place_T)
    return torch.cat([torch.view_as_real(pair), x_BHTC[..., 2:]], -1)


@pytest.mark.parametrize("window", [1, 2, 5, 16, 40])
@pytest.mark.parametrize(("length", "places"), [(1, ()), (2, (1,)), (16, ()), (17, (0, 5, 6)), (33, (16, 32))])
def test_read_equals_the_dense_softmax(window: int, length: int, places: tuple[int, ...]) -> None:
    memory, x_BTD = make_memory(window), stream(length).requires_grad_()
    names, leaves = zip(*memory.named_parameters(), strict=True)
    results = []
    for y_BTD in (memory(x_BTD, None, starting(length, places))[0], dense(memory, x_BTD, starting(length, places))):
        results.append((y_BTD, *torch.autograd.grad(y_BTD.square().sum(), (x_BTD, *leaves))))
    for name, actual, expected in zip(("output", "x", *names), *results, strict=True):
        assert actual.shape == expected.shape, name
        assert_close(actual, expected)


def influences(memory: MemoryAttention, length: int, t: int) -> list[int]:
    """Tokens before t that the read at token t depends on, when keys do not mix neighbours."""
    with torch.no_grad():
        memory.key_conv.weight.zero_()
        memory.key_conv.weight[-1] = 1.0
    x_BTD = stream(length).requires_grad_()
    y_BTD, _ = memory(x_BTD, None, Segments())
    (gradient,) = torch.autograd.grad((y_BTD - x_BTD)[0, t].sum(), x_BTD)
    return [int(place) for place in gradient[0].abs().sum(-1).nonzero()[:, 0] if place != t]


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize("t", [0, 1, 7, 8, 9, 20])
def test_window_reaches_exactly_w_tokens_back(window: int, t: int) -> None:
    assert influences(make_memory(window), 21, t) == list(range(max(0, t - window), t))


def test_a_token_does_not_read_itself() -> None:
    x_BTD = stream(1)
    y_BTD, _ = make_memory(4)(x_BTD, None, Segments())
    assert torch.equal(y_BTD, x_BTD)


def test_null_slot_can_take_all_attention() -> None:
    memory, x_BTD = make_memory(4), stream(9)
    with torch.no_grad():
        query_BTHC = memory.query(memory.norm(x_BTD)).unflatten(-1, (HEADS, -1))
        memory.null_key.copy_(1e3 * query_BTHC[0, -1, :, 2:])
    y_BTD, _ = memory(x_BTD, None, Segments())
    assert_close(y_BTD[0, -1], x_BTD[0, -1])
    assert not torch.allclose(y_BTD[1], x_BTD[1])


def assert_same_memory(actual: WorkingMemory, expected: WorkingMemory) -> None:
    assert torch.equal(actual.valid_BW, expected.valid_BW)
    valid = expected.valid_BW[:, None, :, None]
    assert_close(actual.keys_BHWC * valid, expected.keys_BHWC * valid)
    assert_close(actual.values_BHWC * valid, expected.values_BHWC * valid)
    assert_close(actual.tail_BTC, expected.tail_BTC)


@given(
    window=st.integers(1, 9),
    length=st.integers(1, 24),
    cuts=st.sets(st.integers(1, 23)),
    places=st.sets(st.integers(0, 23)),
)
@example(window=4, length=20, cuts={1, 2, 9, 15}, places={3, 9, 10})
def test_any_split_reads_alike(window: int, length: int, cuts: set[int], places: set[int]) -> None:
    memory, x_BTD = make_memory(window), stream(length)
    segments = starting(length, places)
    whole, last = memory(x_BTD, None, segments)
    carried, parts = None, []
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    for begin, end in itertools.pairwise(edges):
        part, carried = memory(x_BTD[:, begin:end], carried, Segments(None, segments.start_BT[:, begin:end]))
        parts.append(part)
    assert_close(torch.cat(parts, 1), whole)
    assert_same_memory(carried, last)


def test_gradient_flows_through_carried_entries() -> None:
    memory, x_BTD = make_memory(6), stream(10).requires_grad_()
    whole, _ = memory(x_BTD, None, Segments())
    _, carried = memory(x_BTD[:, :5], None, Segments())
    rest, _ = memory(x_BTD[:, 5:], carried, Segments())
    (expected,) = torch.autograd.grad(whole[:, 5:].square().sum(), x_BTD)
    (actual,) = torch.autograd.grad(rest.square().sum(), x_BTD)
    assert expected[:, :5].any()
    assert_close(actual, expected)


@pytest.mark.parametrize("real", [0, 1, 4, 7])
def test_padding_is_neither_read_nor_kept(real: int) -> None:
    memory, x_BTD = make_memory(5), stream(7)
    _, carried = memory(stream(6), None, Segments())
    padded = x_BTD.clone()
    padded[0, real:] = 1e3
    real_BT = torch.ones(2, 7, dtype=torch.bool)
    real_BT[0, real:] = False
    y_BTD, kept = memory(padded, carried, Segments(real_BT, None))
    alone = carried if real == 0 else memory(x_BTD[:, :real], carried, Segments())[1]
    if real:
        assert_close(y_BTD[:1, :real], memory(x_BTD[:, :real], carried, Segments())[0][:1])
    row, expected = (
        WorkingMemory(m.keys_BHWC[:1], m.values_BHWC[:1], m.valid_BW[:1], m.tail_BTC[:1]) for m in (kept, alone)
    )
    assert_same_memory(row, expected)


def test_a_document_reads_nothing_of_the_one_before() -> None:
    memory, x_BTD = make_memory(8), stream(12)
    packed, kept = memory(x_BTD, None, starting(12, (7,)))
    alone, _ = memory(x_BTD[:, 7:], None, Segments())
    assert_close(packed[:1, 7:], alone[:1])
    assert kept.valid_BW.sum(1).tolist() == [5, 8]


def test_gradcheck() -> None:
    memory = make_memory(3)
    segments = starting(7, (4,))
    names, leaves = zip(*memory.named_parameters(), strict=True)

    def read(x_BTD: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        y_BTD, _ = torch.func.functional_call(memory, parameters, (x_BTD, None, segments))
        return y_BTD

    assert torch.autograd.gradcheck(read, (stream(7).requires_grad_(), *leaves), fast_mode=True)
