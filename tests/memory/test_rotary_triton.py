"""The kernel that turns queries and keys against the formula; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from cmrn.memory.rotary import BASE, rotate, rotated
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernel needs Triton")
from cmrn.memory.rotary_triton import rotate_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 37, 3, 10), (3, 64, 1, 64), (1, 33, 2, 100)])
@pytest.mark.parametrize("first", [0, -7, 50])
def test_values_and_gradient_equal_the_formula(shape: tuple[int, ...], first: int) -> None:
    x, weight = torch.randn(2, *shape, device=DEVICE)
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    size = rotated(shape[-1])
    actual, expected = rotate_rows(x, first, size, BASE), rotate(exact, first)
    assert_close(actual, expected, torch.float32)
    for result, leaf in ((actual, x), (expected, exact)):
        (result * weight).sum().backward()
        assert leaf.grad is not None
    assert x.grad is not None
    assert exact.grad is not None
    assert_close(x.grad, exact.grad, torch.float32)


def test_narrow_types_and_other_layouts() -> None:
    x = torch.randn(2, 3, 9, 8, device=DEVICE).bfloat16().transpose(1, 2)
    actual = rotate_rows(x, 5, 4, BASE)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, rotate(x.double(), 5), torch.bfloat16)
