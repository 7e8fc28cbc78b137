"""The forms of the windowed read agree; what each means is tested through MemoryAttention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.memory import MemoryAttention
from cmrn.memory.window import _read_blocks, windowed_read
from cmrn.records import Segments, WorkingMemory
from tests.tolerances import assert_close


def draw(length: int, window: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], WorkingMemory]:
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, length, 3, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    keys, values = (torch.randn(2, 3, window, 4, dtype=dtype, requires_grad=True) for _ in range(2))
    null_HC = torch.randn(3, 4, dtype=dtype, requires_grad=True)
    carried = WorkingMemory(keys, values, torch.rand(2, window) < 0.7, torch.zeros(2, 3, 12))
    return [q, k, v, null_HC], carried


@pytest.mark.parametrize("first_B1", [None, torch.tensor([[-1], [0]], dtype=torch.int32)])
def test_one_token_reads_as_a_block_of_one(first_B1: Tensor | None) -> None:
    (q, k, v, null_HC), carried = draw(1, 5)
    leaves = (q, null_HC, carried.keys_BHWC, carried.values_BHWC)
    results = []
    for form in (windowed_read, _read_blocks):
        read = form(q, k, v, null_HC, 5, first_B1, carried)
        results.append((read, *torch.autograd.grad(read.square().sum(), leaves)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_without_entries_to_carry_nothing_stands_before_the_text() -> None:
    (q, k, v, null_HC), carried = draw(150, 7)
    empty = WorkingMemory(
        carried.keys_BHWC, carried.values_BHWC, torch.zeros_like(carried.valid_BW), carried.tail_BTC
    )  # fmt: skip
    assert_close(
        windowed_read(q, k, v, null_HC, 7, None, None), windowed_read(q, k, v, null_HC, 7, None, empty)
    )  # fmt: skip


def test_a_window_over_everything_is_full_causal_attention() -> None:
    (q, k, v, null_HC), _ = draw(140, 200)
    full = windowed_read(q, k, v, null_HC, 200, None, None)
    zeros = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    null = null_HC.expand(2, 1, 3, 4)
    keys, values = (torch.cat(pair, 1).transpose(1, 2) for pair in ((null, k[:, :-1]), (zeros, v[:, :-1])))
    expected = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, is_causal=True, scale=1.0)
    assert_close(full, expected.transpose(1, 2))


def test_bfloat16_reads_near_float64() -> None:
    (q, k, v, null_HC), carried = draw(40, 6)
    wide = windowed_read(q, k, v, null_HC, 6, None, carried)
    narrow = windowed_read(q.bfloat16(), k.bfloat16(), v.bfloat16(), null_HC, 6, None, carried)
    assert narrow.dtype == torch.bfloat16
    assert float(((narrow.double() - wide).norm() / wide.norm()).detach()) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize(("length", "window"), [(300, 64), (50, 64), (1, 64), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_is_the_same_on_both_devices(length: int, window: int, dtype: torch.dtype) -> None:
    torch.manual_seed(length)
    config = CMRNConfig(
        vocab_size=10, d_model=48, memory_dim=64, memory_heads=4, working_memory=window, dropout=0.0
    )  # fmt: skip
    memory, before = MemoryAttention(config).to(dtype), torch.randn(2, 100, 48, dtype=dtype)
    x_BTD, start_BT = torch.randn(2, length, 48, dtype=dtype), torch.rand(2, length) < 0.02
    results = []
    for device in ("cpu", "cuda"):
        memory.to(device)
        _, carried = memory(before.to(device), None, Segments())
        y_BTD, kept = memory(x_BTD.to(device), carried, Segments(None, start_BT.to(device)))
        gradients = torch.autograd.grad(y_BTD.square().sum(), list(memory.parameters()))
        valid = kept.valid_BW[:, None, :, None]
        results.append([x.cpu() for x in (y_BTD, kept.keys_BHWC * valid, kept.values_BHWC * valid, *gradients)])
        assert torch.equal(kept.valid_BW.cpu().sum(1), results[0][1].any(-1)[:, 0].sum(1))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_close(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("documents", [False, True])
def test_the_layer_compiles_whole_and_is_captured(documents: bool) -> None:
    torch.manual_seed(0)
    config = CMRNConfig(vocab_size=10, d_model=64, memory_dim=64, memory_heads=4, working_memory=32, dropout=0.0)
    memory, x_BTD = MemoryAttention(config).cuda(), torch.randn(2, 100, 64, device="cuda")
    segments = Segments(None, torch.rand(2, 100, device="cuda") < 0.05 if documents else None)
    compiled = torch.compile(memory, fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected = memory(x_BTD, None, segments)[0]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            compiled(x_BTD, None, segments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = compiled(x_BTD, None, segments)[0]
        graph.replay()
    assert_close(captured, expected)
