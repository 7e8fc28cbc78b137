"""The read's kernels for one token against the layer itself; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.memory.attention import MemoryAttention
from cmrn.records import Segments, WorkingMemory, map_tensors
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")

from cmrn.memory import decode_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(width: int, head: int, heads: int, batch: int, window: int) -> tuple[MemoryAttention, Tensor]:
    """A layer whose norm is not ones, and the tokens of a short text."""
    torch.manual_seed(width)
    config = CMRNConfig(d_model=width, memory_dim=head * heads, memory_heads=heads, working_memory=window)
    layer = MemoryAttention(config).to(DEVICE).eval()
    torch.nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    return layer, torch.randn(batch, 9, width, device=DEVICE)


def starting(batch: int) -> Tensor:
    """A document starts in every second row, the first one among them."""
    return torch.arange(batch, device=DEVICE)[:, None] % 2 == 0


def narrow(state: WorkingMemory, dtype: torch.dtype) -> WorkingMemory:
    return map_tensors(state, lambda tensor: tensor if tensor.dtype == torch.bool else tensor.to(dtype))


def compare(found: WorkingMemory, after: WorkingMemory, dtype: torch.dtype) -> None:
    assert torch.equal(found.valid_BW, after.valid_BW)
    readable = after.valid_BW[:, None, :, None]
    for name in ("keys_BHWC", "values_BHWC"):
        actual, expected = getattr(found, name), getattr(after, name)
        assert actual.shape == expected.shape
        assert_close(actual * readable, expected * readable, dtype)
    assert_close(found.tail_BTC, after.tail_BTC, dtype)


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "head", "heads", "window"), [(48, 64, 1, 5), (64, 100, 2, 12), (33, 128, 1, 1), (40, 5, 3, 8)]
)
@pytest.mark.parametrize(("batch", "starts"), [(1, False), (3, True)])
def test_output_and_state_equal_the_layer(
    width: int, head: int, heads: int, window: int, batch: int, starts: bool
) -> None:
    layer, x_BTD = make(width, head, heads, batch, window)
    segments = Segments(None, starting(batch) if starts else None)
    exact = layer.double()
    _, state = exact(x_BTD[:, :-1].double(), None, Segments())
    expected, after = exact(x_BTD[:, -1:].double(), state, segments)
    actual, found = layer.float()._one(x_BTD[:, -1:], narrow(state, torch.float32), segments)
    assert_close(actual, expected, torch.float32)
    compare(found, after, torch.float32)


@torch.no_grad()
def test_a_window_longer_than_a_program_holds_is_read_piece_by_piece() -> None:
    layer, x_BTD = make(40, 6, 2, 2, 21)
    exact = layer.double()
    _, state = exact(x_BTD[:, :-1].double(), None, Segments())
    expected, after = exact(x_BTD[:, -1:].double(), state, Segments())
    with patch.object(decode_triton, "ENTRIES_VALUES", 8):
        actual, found = layer.float()._one(x_BTD[:, -1:], narrow(state, torch.float32), Segments())
    assert_close(actual, expected, torch.float32)
    compare(found, after, torch.float32)


@torch.no_grad()
def test_the_first_token_reads_nothing_and_is_kept() -> None:
    layer, x_BTD = make(40, 16, 2, 2, 4)
    exact = layer.double()
    expected, after = exact(x_BTD[:, :1].double(), None, Segments())
    layer.float()
    actual, found = layer._one(x_BTD[:, :1], layer.initial_state(x_BTD), Segments())
    assert_close(actual, expected, torch.float32)
    compare(found, after, torch.float32)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_takes_the_kernels_for_one_token(dtype: torch.dtype) -> None:
    layer, x_BTD = make(512, 64, 8, 2, 256)
    layer, x_BTD = layer.to(dtype), x_BTD.to(dtype)
    _, state = layer(x_BTD[:, :-1], None, Segments())
    segments = Segments(None, starting(2))
    actual, found = layer(x_BTD[:, -1:], state, segments)
    with torch.enable_grad():
        expected, after = layer(x_BTD[:, -1:], state, segments)
    assert_close(actual, expected)
    compare(found, after, dtype)
