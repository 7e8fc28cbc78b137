from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import unit
from cmrn.records import Segments, TemporalState
from cmrn.temporal import TemporalAbstraction, TemporalLayer
from cmrn.temporal.reference import gated_delta_rule
from tests.test_layers import naive_conv
from tests.tolerances import assert_close

CONFIG = CMRNConfig(vocab_size=10, d_model=12, head_dim=4, temporal_layers=2, dropout=0.0, num_experts=2)
LENGTH = 20


def make_layer(timescale: int = 1, dtype: torch.dtype = torch.float64) -> TemporalLayer:
    torch.manual_seed(5)
    return TemporalLayer(CONFIG, timescale).to(dtype)


def stream(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, length, CONFIG.d_model, dtype=dtype, generator=torch.Generator().manual_seed(length))


def naive_layer(layer: TemporalLayer, x_BTD: Tensor, start_BT: Tensor | None) -> Tensor:
    """The layer as its docstring states it, with the definition of the rule."""
    u_BTD = F.layer_norm(x_BTD, (CONFIG.d_model,), layer.norm.weight, None, CONFIG.layer_norm_eps)
    qkv = torch.cat([u_BTD @ part.weight.T for part in (layer.query, layer.key, layer.value)], -1)
    mixed = F.silu(naive_conv(layer.conv.weight, qkv, start_BT))
    q, k, v = (part.unflatten(-1, (CONFIG.num_heads, -1)) for part in mixed.chunk(3, -1))
    g = -layer.log_rate.exp() * F.softplus(u_BTD @ layer.decay.weight.T + layer.decay_bias) / layer.timescale
    if start_BT is not None:
        g = g.masked_fill(start_BT[..., None], -torch.inf)
    beta = (u_BTD @ layer.beta.weight.T).sigmoid()
    state = x_BTD.new_zeros(2, CONFIG.num_heads, CONFIG.head_dim, CONFIG.head_dim)
    o, _, _ = gated_delta_rule(unit(q), unit(k), v, g, beta, state)
    normed = F.layer_norm(o, (CONFIG.head_dim,), layer.output_norm.weight, None, CONFIG.layer_norm_eps)
    return x_BTD + (normed.flatten(-2) * F.silu(u_BTD @ layer.gate.weight.T)) @ layer.output.weight.T


@pytest.mark.parametrize("starts", [None, (0, 7, 8)])
def test_layer_is_what_its_docstring_says(starts: tuple[int, ...] | None) -> None:
    layer, x_BTD = make_layer(2), stream()
    start_BT = None
    if starts is not None:
        start_BT = torch.zeros(2, LENGTH, dtype=torch.bool)
        start_BT[0, list(starts)] = True
    y_BTD, _ = layer(x_BTD, None, Segments(None, start_BT))
    expected = naive_layer(layer, x_BTD, start_BT)
    assert_close(y_BTD, expected)
    names = [name for name, _ in layer.named_parameters()]
    actual_gradients, gradients = (
        torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (y_BTD, expected)
    )
    for name, actual, gradient in zip(names, actual_gradients, gradients, strict=True):
        assert gradient.any(), name
        assert_close(actual, gradient)


def log_decay(layer: TemporalLayer, x_B1D: Tensor) -> Tensor:
    """log α, read off a state that one token without a key only decays."""
    layer.key.weight.data.zero_()
    before = layer.initial_state(x_B1D)
    carried = TemporalState(torch.ones_like(before.memory_BHKV), before.tail_BTC, before.surprise_BT)
    _, after = layer(x_B1D, carried)
    return after.memory_BHKV[..., 0, 0].detach().log()


def test_timescale_divides_the_log_decay() -> None:
    x_B1D = stream(1)
    decays = {timescale: log_decay(make_layer(timescale), x_B1D) for timescale in (1, 2, 8)}
    assert (decays[1] < 0).all()
    assert_close(decays[2], decays[1] / 2)
    assert_close(decays[8], decays[1] / 8)


def test_layer_i_has_the_timescale_two_to_the_i() -> None:
    temporal = TemporalAbstraction(CONFIG.model_copy(update={"temporal_layers": 4}))
    assert [layer.timescale for layer in temporal.layers] == [1, 2, 4, 8]


def test_decay_starts_in_the_stated_ranges() -> None:
    torch.manual_seed(0)
    layer = TemporalLayer(CONFIG.model_copy(update={"d_model": 400}))
    rate, step = layer.log_rate.detach().exp(), F.softplus(layer.decay_bias.detach())
    assert 1.0 <= float(rate.min()) < 3.0
    assert 14.0 < float(rate.max()) <= 16.0
    assert 1e-3 * 0.99 <= float(step.min()) < 3e-3
    assert 3e-2 < float(step.max()) <= 1e-1 * 1.01
    assert abs(float(step.log10().mean()) + 2) < 0.25


@given(cuts=st.sets(st.integers(1, LENGTH - 1), max_size=6), starts=st.sets(st.integers(0, LENGTH - 1), max_size=4))
def test_chunks_with_carried_state_equal_the_whole(cuts: set[int], starts: set[int]) -> None:
    torch.manual_seed(5)
    temporal, x_BTD = TemporalAbstraction(CONFIG).double(), stream()
    start_BT = torch.zeros(2, LENGTH, dtype=torch.bool)
    start_BT[1, list(starts)] = True
    whole, states, chain = temporal(x_BTD, None, Segments(None, start_BT))
    carried, parts, begins = None, [], []
    edges = [0, *sorted(cuts), LENGTH]
    for begin, end in itertools.pairwise(edges):
        part, carried, part_chain = temporal(x_BTD[:, begin:end], carried, Segments(None, start_BT[:, begin:end]))
        parts.append(part)
        begins.append(part_chain.begins_BT)
    assert_close(torch.cat(parts, 1), whole)
    assert torch.equal(torch.cat(begins, 1), chain.begins_BT)
    for mine, theirs in zip(carried[:-1], states[:-1], strict=True):
        assert_close(mine.memory_BHKV, theirs.memory_BHKV)
        assert_close(mine.tail_BTC, theirs.tail_BTC)


def test_gradient_reaches_back_through_the_carried_state() -> None:
    layer, x_BTD = make_layer(), stream().requires_grad_()
    whole, _ = layer(x_BTD)
    _, state = layer(x_BTD[:, :9])
    rest, _ = layer(x_BTD[:, 9:], state)
    (expected,) = torch.autograd.grad(whole[:, 9:].square().sum(), x_BTD)
    (actual,) = torch.autograd.grad(rest.square().sum(), x_BTD)
    assert expected[:, :9].any()
    assert_close(actual, expected)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_state_is_at_least_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    layer, x_BTD = make_layer(dtype=dtype), stream(dtype=dtype)
    y_BTD, state = layer(x_BTD)
    assert y_BTD.dtype == dtype
    assert state.memory_BHKV.dtype == state.surprise_BT.dtype == wide
    _, again = layer(x_BTD, state)
    assert again.memory_BHKV.dtype == wide


def test_surprise_is_the_mean_error_and_has_no_gradient() -> None:
    layer, x_BTD = make_layer(), stream()
    _, state = layer(x_BTD)
    assert state.surprise_BT.shape == (2, LENGTH)
    assert not state.surprise_BT.requires_grad
    assert (state.surprise_BT > 0).all()
    first = F.silu(layer.value(layer.norm(x_BTD[:, :1])) * layer.conv.weight[-1, -layer.value.out_features :])
    beta = layer.beta(layer.norm(x_BTD[:, :1])).sigmoid()
    expected = (beta * first.unflatten(-1, (CONFIG.num_heads, -1)).norm(dim=-1)).mean(-1)
    assert_close(state.surprise_BT[:, :1], expected.detach())


def test_padding_leaves_the_state_alone() -> None:
    layer, x_BTD = make_layer(), stream()
    real_BT = torch.arange(LENGTH).expand(2, LENGTH) < torch.tensor([[12], [0]])
    y_BTD, state = layer(x_BTD, None, Segments(real_BT, None))
    alone, expected = layer(x_BTD[:1, :12])
    assert_close(y_BTD[:1, :12], alone)
    assert_close(state.memory_BHKV[:1], expected.memory_BHKV)
    assert_close(state.tail_BTC[:1], expected.tail_BTC)
    assert not state.memory_BHKV[1].any()
    assert not state.surprise_BT[~real_BT].any()


def test_a_huge_stream_stays_finite() -> None:
    y_BTD, state = make_layer(dtype=torch.float32)(1e6 * stream(dtype=torch.float32))
    assert y_BTD.isfinite().all()
    assert state.memory_BHKV.isfinite().all()
