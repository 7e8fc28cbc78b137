"""The convolution's kernels against its definition in float64, in Triton's interpreter where there is no device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.layers import CausalConv
from cmrn.records import Segments
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")
from cmrn.convolution_triton import Cut, convolve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """A shape: rows, tokens, channels, taps; how outputs are cut; whether SiLU follows and documents start."""

    batch: int
    length: int
    channels: int
    taps: int = 4
    parts: int = 1
    units: int = 0
    head: int = 0
    silu: bool = False
    documents: bool = True
    padded: bool = False

    @property
    def cut(self) -> Cut:
        return Cut(self.parts, self.units, self.head, self.silu)


SMALL = [
    Case(2, 9, 12, parts=3, units=2, head=4, silu=True),
    Case(1, 70, 5, taps=3),
    Case(2, 1, 12, parts=3, units=2, head=4, silu=True, documents=False),
    Case(2, 2, 6, taps=2, units=1, head=3),
    Case(1, 33, 10, parts=2, units=1, head=5, silu=True),
    Case(3, 11, 6, padded=True),
    Case(3, 5, 6, taps=3, padded=True, documents=False),
]
LARGE = [
    Case(2, 999, 768, parts=3, units=2, head=128, silu=True),
    Case(16, 1024, 1152, parts=3, units=2, head=64, silu=True),
    Case(1, 16_384, 3072, parts=3, units=2, head=256, silu=True, documents=False),
    Case(4, 2048, 512, units=1, head=128),
    Case(3, 257, 510, taps=3, padded=True),
    Case(2, 130, 600, parts=3, units=2, head=100, silu=True),
]
TYPED = [
    *((case, torch.bfloat16) for case in LARGE),
    *((case, torch.float32) for case in LARGE[:3]),
    (LARGE[0], torch.float16),
]


class Inputs(NamedTuple):
    x_BTC: Tensor
    weight_JC: Tensor
    tail_BRC: Tensor

    def leaves(self, dtype: torch.dtype | None = None) -> Inputs:
        return Inputs(*(x.detach().to(dtype or x.dtype).requires_grad_() for x in self))


def draw(case: Case, dtype: torch.dtype) -> tuple[Inputs, Tensor | None, Tensor | None]:
    """Random inputs, x a slice of wider rows; a start in about every tenth place; the real tokens of each row."""
    torch.manual_seed(case.length)
    x_BTC = torch.randn(case.batch, case.length, case.channels + 3, device=DEVICE).to(dtype)[..., : case.channels]
    weight_JC = torch.randn(case.taps, case.channels, device=DEVICE)
    tail_BRC = torch.randn(case.batch, case.taps - 1, case.channels, device=DEVICE).to(dtype)
    start_BT = torch.rand(case.batch, case.length, device=DEVICE) < 0.1 if case.documents else None
    count_B = torch.tensor([case.length, case.length // 2, 1], device=DEVICE) if case.padded else None
    return Inputs(x_BTC, weight_JC, tail_BRC), start_BT, count_B


def last_inputs(padded: Tensor, start_BT: Tensor | None, count_B: Tensor | None, reach: int) -> Tensor:
    """What each row carries on, entry by entry; zeros where a document began after it."""
    rows = []
    for row, inputs in enumerate(padded):
        end = padded.shape[1] - reach if count_B is None else int(count_B[row])
        for place in range(end, end + reach):
            began = start_BT is not None and bool(start_BT[row, max(0, place - reach + 1) : end].any())
            rows.append(inputs[place] * (not began))
    return torch.stack(rows).unflatten(0, (len(padded), reach))


def definition(inputs: Inputs, start_BT: Tensor | None, count_B: Tensor | None, case: Case) -> tuple[Tensor, ...]:
    x_BTC, weight_JC, tail_BRC = inputs
    reach = case.taps - 1
    padded = torch.cat([tail_BRC, x_BTC], 1)
    y_BTC, crossed = (
        padded[:, reach:] * weight_JC[reach],
        torch.zeros(*x_BTC.shape[:2], dtype=torch.bool, device=DEVICE),
    )
    for lag in range(1, case.taps):
        if start_BT is not None:
            crossed = crossed | F.pad(start_BT, (lag - 1, 0))[:, : case.length]
        seen = padded[:, reach - lag : reach - lag + case.length]
        y_BTC = y_BTC + seen * ~crossed[..., None] * weight_JC[reach - lag]
    streams = (F.silu(y_BTC) if case.silu else y_BTC).chunk(case.parts, -1)
    parts = (
        F.normalize(stream.unflatten(-1, (-1, case.head)), dim=-1).flatten(2) if part < case.units else stream
        for part, stream in enumerate(streams)
    )
    return *parts, last_inputs(padded, start_BT, count_B, reach)


def compare(case: Case, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (kernel's, definition's): every output, the next tail, the gradients of x, weight and tail."""
    inputs, start_BT, count_B = draw(case, dtype)
    narrow, wide = inputs.leaves(), inputs.leaves(torch.float64)
    actual = convolve(*narrow, start_BT, count_B, cut=case.cut)
    expected = definition(wide, start_BT, count_B, case)
    upstream = [torch.randn_like(y) for y in actual]
    gradients = torch.autograd.grad(actual, narrow, upstream)
    exact = torch.autograd.grad(expected, wide, [grad.double() for grad in upstream])
    assert [x.dtype for x in (*actual, *gradients)] == [dtype] * (len(actual) + 1) + [torch.float32, dtype]
    pairs = zip((*actual, *gradients), (*expected, *exact), strict=True)
    return [(one.detach(), other.detach()) for one, other in pairs]


@pytest.mark.parametrize("case", SMALL)
def test_kernels_equal_the_definition(case: Case) -> None:
    for actual, expected in compare(case, torch.float32):
        assert_close(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), TYPED)
def test_kernels_equal_the_definition_at_real_sizes(case: Case, dtype: torch.dtype) -> None:
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    for actual, expected in compare(case, dtype):
        assert float((actual.double() - expected).norm() / expected.norm()) < limit


def test_without_a_tail_zeros_stand_before_the_text() -> None:
    case = Case(1, 5, 4)
    inputs, _, _ = draw(case, torch.float32)
    zeros = convolve(inputs.x_BTC, inputs.weight_JC, torch.zeros_like(inputs.tail_BRC), None)
    assert torch.equal(convolve(inputs.x_BTC, inputs.weight_JC, None, None)[0], zeros[0])


def test_a_head_shorter_than_a_millionth_becomes_zero() -> None:
    weight_JC = torch.tensor([[0.0], [1.0]], device=DEVICE).expand(2, 4).contiguous()
    x_BTC = torch.tensor([[[3e-7, 4e-7, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]]], device=DEVICE, requires_grad=True)
    y_BTC, _ = convolve(x_BTC, weight_JC, None, None, cut=Cut(units=1, head=2))
    assert_close(y_BTC, torch.tensor([[[0.0] * 4, [0.6, 0.8, 0.0, 0.0]]], device=DEVICE))
    (gradient,) = torch.autograd.grad(y_BTC.sum(), x_BTC)
    assert gradient.isfinite().all()
    assert not gradient[0, 0].any()


def test_a_compiler_can_take_the_operator_whole() -> None:
    case = SMALL[0]
    inputs, start_BT, count_B = draw(case, torch.float32)
    arguments = (*inputs.leaves(), start_BT, count_B, *case.cut)
    torch.library.opcheck(torch.ops.cmrn.convolve.default, arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 4, 5])
def test_the_layer_is_the_same_on_both_devices(width: int, dtype: torch.dtype) -> None:
    conv, x_BTC = CausalConv(24, width).to(dtype), torch.randn(2, 50, 24, dtype=dtype)
    start_BT, real_BT = torch.rand(2, 50) < 0.1, torch.arange(50) < torch.tensor([[50], [31]])
    start_BT &= real_BT
    tail_BRC = torch.randn(2, width - 1, 24, dtype=dtype)
    results = []
    for device in ("cpu", "cuda"):
        module, inputs = conv.to(device), [x.to(device) for x in (x_BTC, tail_BRC)]
        (q, k, v), tail = module.heads(
            *inputs, Segments(real_BT.to(device), start_BT.to(device)), 4, parts=3, units=2, silu=True
        )
        results.append([x.cpu().flatten(2)[real_BT] for x in (q, k, v)] + [tail.cpu()])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_close(actual, expected)
