"""A temporal layer's kernels for one token against the layer itself; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.records import Segments, TemporalState
from cmrn.temporal.layer import TemporalLayer
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(width: int, head: int, heads: int, batch: int, timescale: int = 2) -> tuple[TemporalLayer, Tensor]:
    """A layer whose norms are not ones, and the tokens of a short text."""
    torch.manual_seed(width)
    config = CMRNConfig(d_model=width, head_dim=head, temporal_heads=heads)
    layer = TemporalLayer(config, timescale).to(DEVICE).eval()
    for weight in (layer.norm.weight, layer.output_norm.weight):
        torch.nn.init.uniform_(weight, 0.5, 1.5)
    return layer, torch.randn(batch, 6, width, device=DEVICE)


def starting(batch: int) -> Tensor:
    """A document starts in every second row, the first one among them."""
    return torch.arange(batch, device=DEVICE)[:, None] % 2 == 0


def read(layer: TemporalLayer, x_BTD: Tensor, start_BT: Tensor | None) -> tuple[TemporalState, Tensor, Segments]:
    """(state before the last token, that token, its segments), float64."""
    exact = layer.double()
    _, state = exact(x_BTD[:, :-1].double())
    return state, x_BTD[:, -1:].double(), Segments(None, start_BT)


@torch.no_grad()
@pytest.mark.parametrize(("width", "head", "heads"), [(48, 64, 1), (64, 100, 2), (33, 128, 1), (40, 5, 3)])
@pytest.mark.parametrize(("batch", "starts"), [(1, False), (3, True)])
def test_output_and_state_equal_the_layer(width: int, head: int, heads: int, batch: int, starts: bool) -> None:
    layer, x_BTD = make(width, head, heads, batch)
    state, last, segments = read(layer, x_BTD, starting(batch) if starts else None)
    expected, after = layer(last, state, segments)
    layer.float()
    kept = TemporalState(*(getattr(state, name).float() for name in ("memory_BHKV", "tail_BTC", "surprise_BT")))
    before = kept.memory_BHKV.clone()
    actual, found = layer._one(last.float(), kept, segments)
    assert_close(actual, expected, torch.float32)
    assert_close(found.memory_BHKV, after.memory_BHKV, torch.float32)
    assert_close(found.tail_BTC, after.tail_BTC, torch.float32)
    assert_close(found.surprise_BT, after.surprise_BT, torch.float32)
    assert torch.equal(kept.memory_BHKV, before)


@torch.no_grad()
def test_types_are_those_of_the_layer_in_bfloat16() -> None:
    layer, x_BTD = make(48, 16, 2, 1)
    layer, x_BTD = layer.bfloat16(), x_BTD.bfloat16()
    _, state = layer(x_BTD[:, :-1])
    last = x_BTD[:, -1:]
    (expected, after), (actual, found) = layer(last, state), layer._one(last, state, Segments())
    assert_close(actual, expected)
    for name in ("memory_BHKV", "tail_BTC", "surprise_BT"):
        assert getattr(found, name).dtype == getattr(after, name).dtype
        assert_close(getattr(found, name), getattr(after, name), torch.bfloat16)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_takes_the_kernels_for_one_token(dtype: torch.dtype) -> None:
    layer, x_BTD = make(512, 128, 4, 2)
    layer, x_BTD = layer.to(dtype), x_BTD.to(dtype)
    _, state = layer(x_BTD[:, :-1])
    segments = Segments(None, starting(2))
    actual, found = layer(x_BTD[:, -1:], state, segments)
    with torch.enable_grad():
        expected, after = layer(x_BTD[:, -1:], state, segments)
    assert_close(actual, expected)
    assert_close(found.memory_BHKV, after.memory_BHKV, dtype)
