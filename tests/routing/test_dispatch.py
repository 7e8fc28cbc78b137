from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.routing import combine, dispatch, reference
from cmrn.routing.dispatch import ROWS, Dispatch, gather_rows
from tests.tolerances import assert_close

WIDTH = 4


def distinct_choices(count: int, experts: int, k: int, seed: int) -> Tensor:
    """(N,K) int64, each row's experts distinct; a skewed draw, so that some experts get little or nothing."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, experts, generator=random) + 2.0 * torch.rand(experts, generator=random)
    return scores.topk(k, -1).indices


choices = st.tuples(st.integers(1, 150), st.integers(1, 6), st.integers(1, 6), st.integers(0, 999)).map(
    lambda drawn: (distinct_choices(drawn[0], drawn[1], min(drawn[2], drawn[1]), drawn[3]), drawn[1])
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(choices)
def test_rows_are_grouped_by_expert(drawn: tuple[Tensor, int]) -> None:
    indices_NK, experts = drawn
    plan = dispatch(indices_NK, experts)
    for expert, rows in enumerate(plan.token_M.split(plan.sizes_E)):
        expected = (indices_NK == expert).any(-1).nonzero()[:, 0]
        count = len(expected)
        assert len(rows) == -(-count // ROWS) * ROWS
        assert torch.equal(rows[:count], expected), "tokens keep their order"


@given(choices)
def test_every_pair_has_a_row_of_its_own(drawn: tuple[Tensor, int]) -> None:
    indices_NK, experts = drawn
    plan = dispatch(indices_NK, experts)
    tokens = torch.arange(len(indices_NK))[:, None].expand_as(indices_NK)
    assert torch.equal(plan.token_M[plan.place_NK], tokens)
    assert plan.place_NK.unique().numel() == plan.place_NK.numel()
    owner_M = torch.repeat_interleave(torch.arange(experts), torch.tensor(plan.sizes_E))
    assert torch.equal(owner_M[plan.place_NK], indices_NK)


@given(choices)
def test_combine_undoes_dispatch(drawn: tuple[Tensor, int]) -> None:
    indices_NK, experts = drawn
    x_ND = normal(len(indices_NK), WIDTH)
    plan = dispatch(indices_NK, experts)
    gates_NK = normal(*indices_NK.shape, seed=1).softmax(-1)
    assert_close(combine(gather_rows(x_ND, plan), plan, gates_NK), x_ND)


def make_experts(count: int) -> list[Callable[[Tensor], Tensor]]:
    weights = [normal(WIDTH, WIDTH, seed=10 + expert) for expert in range(count)]
    return [lambda x, w=weight: torch.tanh(x @ w) for weight in weights]


def routed(x_ND: Tensor, indices_NK: Tensor, gates_NK: Tensor, experts: list[Callable[[Tensor], Tensor]]) -> Tensor:
    plan = dispatch(indices_NK, len(experts))
    rows = gather_rows(x_ND, plan).split(plan.sizes_E)
    return combine(torch.cat([expert(part) for expert, part in zip(experts, rows, strict=True)]), plan, gates_NK)


@given(choices)
def test_dispatch_equals_running_every_expert_on_every_token(drawn: tuple[Tensor, int]) -> None:
    indices_NK, count = drawn
    experts = make_experts(count)
    x_ND, gates_NK = normal(len(indices_NK), WIDTH), normal(*indices_NK.shape, seed=1)
    leaves = (x_ND.requires_grad_(), gates_NK.requires_grad_())
    results = []
    for mixture in (routed, reference.mixture):
        y_ND = mixture(x_ND, indices_NK, gates_NK, experts)
        results.append((y_ND, *torch.autograd.grad(y_ND.square().sum(), leaves)))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


def test_definition_by_hand() -> None:
    x_ND, gates_NK = torch.tensor([[1.0], [10.0]]), torch.tensor([[0.25, 0.75], [2.0, 1.0]])
    experts: list[Callable[[Tensor], Tensor]] = [lambda x: x, lambda x: -x, lambda x: x * x]
    y_ND = reference.mixture(x_ND, torch.tensor([[0, 1], [2, 0]]), gates_NK, experts)
    assert y_ND.tolist() == [[-0.5], [210.0]]


@pytest.mark.parametrize("k", [1, 2])
def test_gradcheck(k: int) -> None:
    indices_NK = distinct_choices(9, 3, k, 4)
    experts = make_experts(3)
    leaves = (normal(9, WIDTH).requires_grad_(), normal(9, k, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda x, gates: routed(x, indices_NK, gates, experts), leaves)


def test_experts_that_nobody_chose_are_empty() -> None:
    plan = dispatch(torch.full((5, 1), 2), 4)
    assert plan.sizes_E == (0, 0, ROWS, 0)
    assert plan.token_M[:5].tolist() == [0, 1, 2, 3, 4]


def with_padding(plan: Dispatch, y_MD: Tensor, value: float) -> Tensor:
    """Rows with another value at the padding between experts."""
    used = torch.zeros(len(y_MD), dtype=torch.bool).index_fill_(0, plan.place_NK.flatten(), True)
    return y_MD.masked_fill(~used[:, None], value)


def test_padding_rows_reach_no_result_and_no_gradient() -> None:
    indices_NK = distinct_choices(7, 3, 2, 1)
    plan = dispatch(indices_NK, 3)
    x_ND, gates_NK = normal(7, WIDTH).requires_grad_(), normal(7, 2, seed=1)
    rows = gather_rows(x_ND, plan)
    assert_close(combine(with_padding(plan, rows, torch.nan), plan, gates_NK), combine(rows, plan, gates_NK))
    upstream = with_padding(plan, torch.ones_like(rows), torch.nan)
    (gradient,) = torch.autograd.grad(rows, x_ND, upstream)
    assert_close(gradient, torch.full_like(gradient, 2.0))
    leaf = rows.detach().requires_grad_()
    (row_gradient,) = torch.autograd.grad(combine(leaf, plan, gates_NK).sum(), leaf)
    assert torch.equal(row_gradient, with_padding(plan, row_gradient, 0.0))
