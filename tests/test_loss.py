from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cmrn.loss import IGNORED, ROWS_AT_ONCE, token_nats
from tests.tolerances import assert_close

VOCABULARY = 11


def rows(count: int, dtype: torch.dtype = torch.float64, ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    logits_NV = 3 * torch.randn(count, VOCABULARY, dtype=torch.float64, generator=random)
    targets_N = torch.randint(VOCABULARY, (count,), generator=random)
    targets_N[torch.rand(count, generator=random) < ignored] = IGNORED
    return logits_NV.to(dtype).requires_grad_(), targets_N


@given(count=st.sampled_from([0, 1, 2, 7, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 2 * ROWS_AT_ONCE + 3]))
def test_value_and_gradient_are_those_of_cross_entropy(count: int) -> None:
    logits_NV, targets_N = rows(count)
    results = []
    for nats in (token_nats(logits_NV, targets_N), F.cross_entropy(logits_NV, targets_N, reduction="sum")):
        results.append((nats, *torch.autograd.grad(0.7 * nats, logits_NV)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_gradcheck() -> None:
    logits_NV, targets_N = rows(5)
    assert (targets_N == IGNORED).any()
    assert (targets_N != IGNORED).any()
    assert torch.autograd.gradcheck(lambda x: token_nats(x, targets_N), logits_NV)


def test_all_ignored_gives_zero_and_no_gradient() -> None:
    logits_NV, targets_N = rows(6, ignored=1.0)
    nats = token_nats(logits_NV, targets_N)
    assert nats.item() == 0.0
    (gradient,) = torch.autograd.grad(nats, logits_NV)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_logits_are_summed_wide(dtype: torch.dtype) -> None:
    logits_NV, targets_N = rows(700, dtype)
    exact_NV = logits_NV.detach().double().requires_grad_()
    nats = token_nats(logits_NV, targets_N)
    expected = F.cross_entropy(exact_NV, targets_N, reduction="sum")
    assert nats.dtype == torch.float32
    assert_close(nats, expected)
    (gradient,) = torch.autograd.grad(nats, logits_NV)
    assert gradient.dtype == dtype
    assert_close(gradient, torch.autograd.grad(expected, exact_NV)[0], dtype)


def test_large_logits_do_not_overflow() -> None:
    logits_NV = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    nats = token_nats(logits_NV, torch.tensor([1]))
    assert nats.item() == pytest.approx(2e4)
    (gradient,) = torch.autograd.grad(nats, logits_NV)
    assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]))
