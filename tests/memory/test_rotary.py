"""Turned queries and keys: norms stay, products depend on distance alone, and half of the features stay put."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.memory.rotary import placeless, rotate, rotated
from tests.tolerances import assert_close


@given(width=st.integers(1, 40), shift=st.integers(-3000, 3000))
def test_products_depend_on_distance_alone(width: int, shift: int) -> None:
    random = torch.Generator().manual_seed(width)
    q, k = torch.randn(2, 1, 9, 2, width, dtype=torch.float64, generator=random)
    here, there = (torch.einsum("bthc,bshc->bhts", rotate(q, at), rotate(k, at)) for at in (0, shift))
    assert_close(there, here)
    assert_close(rotate(q, shift).norm(dim=-1), q.norm(dim=-1))


@pytest.mark.parametrize(("width", "turned"), [(1, 0), (3, 0), (4, 2), (64, 32), (66, 32)])
def test_half_of_the_features_are_turned_in_pairs(width: int, turned: int) -> None:
    assert rotated(width) == turned
    x = torch.randn(1, 5, 1, width, dtype=torch.float64)
    moved = (rotate(x, 3) != x).any(dim=(0, 1, 2))
    assert moved.tolist() == [place < turned for place in range(width)]


def test_a_placeless_key_is_compared_alike_everywhere() -> None:
    q, null = torch.randn(1, 7, 3, 8, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    key = placeless(null, 8)
    assert_close((rotate(q, 11) * key).sum(-1), (q * key).sum(-1))


def test_gradients() -> None:
    x = torch.randn(1, 3, 1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: rotate(each, -2), x)
