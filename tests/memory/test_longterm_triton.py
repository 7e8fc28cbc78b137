"""The kernels of the joint read against its definition in float64, in Triton's interpreter where there is no device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cmrn.memory import longterm, longterm_blocks
from cmrn.memory.longterm import NEVER, Bounds, Far, Near
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")
from cmrn.memory import longterm_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """Rows, tokens, heads, width of a head, window, tokens of a chunk, long-term entries; and tokens read before."""

    batch: int
    length: int
    heads: int
    width: int
    window: int
    chunk: int
    entries: int
    before: int


SMALL = [
    Case(2, 9, 2, 5, 3, 4, 20, 13),
    Case(1, 70, 1, 16, 20, 16, 75, 60),
    Case(1, 33, 2, 8, 40, 8, 50, 0),
    Case(2, 1, 2, 4, 6, 4, 40, 41),
]
LARGE = [
    Case(2, 1000, 4, 64, 256, 128, 3000, 2000),
    Case(1, 513, 3, 96, 100, 100, 1111, 700),
    Case(2, 1, 4, 128, 256, 256, 4096, 4096),
    Case(1, 2048, 8, 64, 256, 256, 16384, 16384),
]


def make(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], Bounds, Tensor]:
    """What carries gradient, in the order of the operator's arguments; bounds; places of the long-term entries."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype).to(DEVICE)

    batch, length, heads, width, window, chunk, entries, before = case
    tensors = [
        normal(heads, width), normal(batch, length, heads, width), normal(batch, heads, window + length, width),
        normal(batch, heads, window + length, width), normal(batch, length, heads, width),
        1 + 0.2 * normal(batch, length, heads), 0.3 * normal(batch, length, heads),
        normal(batch, heads, entries, width), normal(batch, heads, entries, width), -normal(batch, entries).abs(),
    ]  # fmt: skip
    row_T = torch.arange(length, device=DEVICE)
    place_BT = (row_T + before).expand(batch, length).clone()
    if length > 8:
        place_BT[-1, length // 3 :] -= place_BT[-1, length // 3].clone()
    first_BT, start_BT = row_T - place_BT, row_T - place_BT % chunk
    low_BT, limit_BT = torch.maximum(first_BT, row_T - window), torch.minimum(start_BT, row_T - window)
    fields = (row_T.expand_as(place_BT), low_BT, first_BT, limit_BT, start_BT, start_BT - first_BT)
    place_BN = torch.randint(-before - 9, length, (batch, entries), generator=random).int().to(DEVICE)
    place_BN[:, ::7] = NEVER
    return tensors, Bounds(*(each.int() for each in fields)), place_BN


def check(case: Case, dtype: torch.dtype) -> None:
    tensors, bounds, place_BN = make(case, dtype)
    null_HC, *rest = tensors
    near, far = Near(*rest[:3]), Far(*rest[3:], place_BN)
    wide = [each.double() for each in rest]
    wide_near, wide_far = Near(*wide[:3]), Far(*wide[3:], place_BN)
    expected, total = longterm_blocks.read(wide_near, wide_far, null_HC.double(), bounds, 0)
    actual, actual_total = longterm_triton.read(near, far, null_HC, bounds)
    assert_close(actual, expected)
    assert_close(actual_total * torch.log(torch.tensor(2.0)).to(actual_total), total, torch.bfloat16)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(expected)
    of_definition = longterm_blocks.differentiate(
        grad, expected, total, wide_near, wide_far, null_HC.double(), bounds, 0
    )
    of_kernels = longterm_triton.differentiate(grad.to(dtype), actual, actual_total, near, far, null_HC, bounds)
    for mine, theirs, own in zip(of_kernels, of_definition, tensors, strict=True):
        assert mine.shape == own.shape
        scale = theirs.abs().max().clamp(min=1e-3)
        assert_close(mine.double() / scale, theirs / scale, dtype)


@pytest.mark.parametrize("case", SMALL)
def test_kernels_equal_the_definition(case: Case) -> None:
    check(case, torch.float32)


def test_the_operator_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, bounds, place_BN = make(SMALL[0], torch.float32)
    for each in tensors:
        each.requires_grad_()
    grads = []
    for kernels in (False, True):
        monkeypatch.setattr(longterm, "_by_kernels", lambda near, reads, kernels=kernels: kernels)
        read = longterm.joint_read(Near(*tensors[1:4]), Far(*tensors[4:], place_BN), tensors[0], bounds)
        grads.append(torch.autograd.grad(read.square().sum(), tensors))
    for mine, theirs in zip(*grads, strict=True):
        assert_close(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_equal_the_definition_at_size(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)
