from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cmrn.loss import IGNORED
from tests.tolerances import assert_close

pytest.importorskip("triton")

from cmrn import loss_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(rows)
    logits_NV = (3 * torch.randn(rows, vocabulary, generator=random)).to(dtype).to(DEVICE).requires_grad_()
    targets_N = torch.randint(vocabulary, (rows,), generator=random)
    targets_N[::3] = IGNORED
    targets_N = targets_N.to(DEVICE)
    exact_NV = logits_NV.detach().double().requires_grad_()
    nats = loss_triton.token_nats(logits_NV, targets_N)
    expected = F.cross_entropy(exact_NV, targets_N, reduction="sum")
    assert_close(nats, expected)
    (gradient,) = torch.autograd.grad(0.7 * nats, logits_NV)
    assert gradient.dtype == dtype
    assert_close(gradient, torch.autograd.grad(0.7 * expected, exact_NV)[0], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [11, 300, loss_triton.BLOCK + 5])
def test_value_and_gradient_are_those_of_cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    check(4, vocabulary, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [8192, 50_000])
def test_at_the_sizes_of_training(vocabulary: int, dtype: torch.dtype) -> None:
    check(4099, vocabulary, dtype)


def test_a_row_without_target_adds_nothing_whatever_it_holds() -> None:
    logits_NV = torch.tensor([[1.0, 2.0], [torch.inf, torch.nan]], device=DEVICE, requires_grad=True)
    nats = loss_triton.token_nats(logits_NV, torch.tensor([0, IGNORED], device=DEVICE))
    (gradient,) = torch.autograd.grad(nats, logits_NV)
    assert nats.isfinite()
    assert not gradient[1].any()
