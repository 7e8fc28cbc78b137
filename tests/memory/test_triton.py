"""The read's kernels against a dense softmax in float64, in Triton's interpreter where there is no device."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")
from cmrn.memory.triton import read_window

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """Rows, tokens, heads, width of a head, window; whether documents start and whether entries are carried in."""

    batch: int
    length: int
    heads: int
    width: int
    window: int
    documents: bool
    carried: bool


SMALL = [
    Case(2, 9, 2, 5, 3, True, True),
    Case(1, 70, 1, 16, 20, False, False),
    Case(1, 40, 1, 8, 37, True, True),
    Case(2, 1, 2, 4, 6, False, True),
    Case(1, 33, 2, 6, 33, False, False),
]
LARGE = [
    Case(2, 1000, 4, 128, 256, True, True),
    Case(2, 513, 3, 64, 100, False, False),
    Case(1, 77, 8, 96, 128, True, True),
    Case(2, 1, 4, 128, 256, False, True),
    Case(1, 300, 2, 128, 300, True, False),
    Case(1, 200, 2, 32, 1000, True, True),
    Case(1, 500, 1, 256, 256, True, False),
    Case(4, 2048, 8, 64, 512, True, False),
]
TYPED = [
    *((case, torch.bfloat16) for case in LARGE),
    *((case, torch.float32) for case in LARGE[:4]),
    (LARGE[0], torch.float16),
]


class Inputs(NamedTuple):
    """What carries gradient; without carried entries those two are empty."""

    q_BTHC: Tensor
    k_BTHC: Tensor
    v_BTHC: Tensor
    null_HC: Tensor
    carried_k_BHWC: Tensor
    carried_v_BHWC: Tensor

    def leaves(self, dtype: torch.dtype | None = None) -> Inputs:
        return Inputs(*(x.detach().to(dtype or x.dtype).requires_grad_() for x in self))


def draw(case: Case, dtype: torch.dtype) -> tuple[Inputs, Tensor | None, Tensor]:
    """Inputs as the layer makes them, documents of about ten tokens or fifty, some carried entries not valid."""
    torch.manual_seed(case.length)

    def unit(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * F.normalize(torch.randn(*shape, device=DEVICE), dim=-1)).to(dtype)

    rows, entries = (case.batch, case.length, case.heads, case.width), case.window if case.carried else 0
    earlier = (case.batch, case.heads, entries, case.width)
    q_BTHC, k_BTHC = unit(*rows, scale=case.width**0.5), unit(*rows)
    v_BTHC = torch.randn(*rows[:2], 2, *rows[2:], device=DEVICE).to(dtype)[:, :, 1]
    null_HC = unit(case.heads, case.width)
    inputs = Inputs(q_BTHC, k_BTHC, v_BTHC, null_HC, unit(*earlier), torch.randn(*earlier, device=DEVICE).to(dtype))
    starts = torch.rand(case.batch, case.length, device=DEVICE) < (0.1 if case.length < 100 else 0.02)
    valid_BW = torch.rand(case.batch, entries, device=DEVICE) < 0.7
    places = torch.where(starts, torch.arange(case.length, device=DEVICE), -1).cummax(1).values.int()
    return inputs, places if case.documents else None, valid_BW


def definition(inputs: Inputs, first_BT: Tensor | None, valid_BW: Tensor, window: int) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    keys, values = torch.cat([inputs.carried_k_BHWC, k], 2), torch.cat([inputs.carried_v_BHWC, v], 2)
    entries, length = valid_BW.shape[1], q.shape[2]
    if first_BT is None:
        first_BT = torch.full((len(q), length), -1, device=DEVICE)
    owner = torch.cat([torch.where(valid_BW, -1, -2), first_BT], 1)
    t, j = torch.arange(length, device=DEVICE)[:, None], torch.arange(-entries, length, device=DEVICE)
    readable = (j < t) & (j >= t - window) & (first_BT[:, :, None] == owner[:, None])
    scores = (q @ keys.mT).masked_fill(~readable[:, None], -torch.inf)
    null = torch.einsum("bhtc,hc->bht", q, inputs.null_HC)[..., None]
    weights = torch.cat([null, scores], -1).softmax(-1)[..., 1:]
    return (weights @ values).transpose(1, 2)


def call(case: Case, inputs: Inputs, first_BT: Tensor | None, valid_BW: Tensor) -> Tensor:
    carried = (*inputs[4:], valid_BW) if case.carried else (None, None, None)
    return read_window(*inputs[:4], first_BT, *carried, case.window)


def compare(case: Case, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (kernels', definition's): the read, then the gradients of q, k, v, null, and carried keys and values."""
    inputs, first_BT, valid_BW = draw(case, dtype)
    narrow, wide = inputs.leaves(), inputs.leaves(torch.float64)
    actual, expected = call(case, narrow, first_BT, valid_BW), definition(wide, first_BT, valid_BW, case.window)
    upstream = torch.randn_like(actual)
    count = 6 if case.carried else 4
    gradients = torch.autograd.grad(actual, narrow[:count], upstream)
    exact = torch.autograd.grad(expected, wide[:count], upstream.double())
    assert {x.dtype for x in (actual, *gradients)} == {dtype}
    return list(zip((actual, *gradients), (expected, *exact), strict=True))


@pytest.mark.parametrize("case", SMALL)
def test_kernels_equal_the_definition(case: Case) -> None:
    for actual, expected in compare(case, torch.float32):
        assert_close(actual, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "dtype"), TYPED)
def test_kernels_equal_the_definition_at_real_sizes(case: Case, dtype: torch.dtype) -> None:
    limit = 2e-5 if dtype == torch.float32 else 1e-2
    for actual, expected in compare(case, dtype):
        size = expected.norm().clamp(min=1e-3 * expected.numel() ** 0.5)
        assert float((actual.double() - expected).norm() / size) < limit


def test_what_a_document_cannot_read_gets_no_gradient() -> None:
    case = Case(1, 20, 1, 4, 8, True, True)
    inputs, _, valid_BW = draw(case, torch.float32)
    leaves = inputs.leaves()
    first_BT = torch.tensor([-1] * 5 + [5] * 15, dtype=torch.int32, device=DEVICE)[None]
    read = call(case, leaves, first_BT, valid_BW)
    grad_k, grad_carried = torch.autograd.grad(read[:, 5:].square().sum(), (leaves.k_BTHC, leaves.carried_k_BHWC))
    assert not grad_k[:, :5].any()
    assert grad_k[:, 5:19].any(-1).all()
    assert not grad_carried.any()


def test_a_compiler_can_take_the_operator_whole() -> None:
    inputs, first_BT, valid_BW = draw(SMALL[0], torch.float32)
    arguments = (*inputs.leaves()[:4], first_BT, *inputs.leaves()[4:], valid_BW, SMALL[0].window)
    torch.library.opcheck(torch.ops.cmrn.read_window.default, arguments)
