from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.routing.gating import choose_experts, fixed_choice, hash_experts
from tests.tolerances import assert_close

ONE = torch.tensor(1.0, dtype=torch.float64)
EXPERTS = 5


def logits(count: int = 40, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, EXPERTS, dtype=torch.float64, generator=random)


def no_bias(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(EXPERTS, dtype=dtype)


@given(k=st.integers(1, EXPERTS), temperature=st.floats(0.05, 20.0), noisy=st.booleans(), seed=st.integers(0, 99))
def test_weights_are_a_softmax_over_the_chosen(k: int, temperature: float, noisy: bool, seed: int) -> None:
    logits_BTE, bias_E = logits(seed=seed), 3 * logits(1, seed)[0, 0]
    routing = choose_experts(logits_BTE, bias_E, temperature * ONE, k, noisy=noisy)
    assert_close(routing.weights_BTE.sum(-1), torch.ones(2, 40, dtype=torch.float64))
    chosen_BTE = torch.zeros_like(logits_BTE, dtype=torch.bool).scatter(-1, routing.indices_BTK, True)
    assert (chosen_BTE.sum(-1) == k).all()
    expected = (logits_BTE / temperature).masked_fill(~chosen_BTE, -torch.inf).softmax(-1)
    assert_close(routing.weights_BTE, expected)
    shares_BTK = routing.weights_BTE.gather(-1, routing.indices_BTK)
    assert (shares_BTK.diff(dim=-1) <= 0).all(), "the largest share comes first"
    if k > 1:
        assert_close(routing.gates_BTK, shares_BTK)
    assert routing.logits_BTE is logits_BTE


def test_one_expert_is_gated_by_its_probability() -> None:
    logits_BTE = logits().requires_grad_()
    routing = choose_experts(logits_BTE, no_bias(), 2 * ONE, 1, noisy=False)
    assert_close(routing.gates_BTK[..., 0], (logits_BTE / 2).softmax(-1).amax(-1))
    (gradient,) = torch.autograd.grad(routing.gates_BTK.sum(), logits_BTE)
    assert (gradient != 0).all()


def test_gradient_of_two_reaches_the_chosen_alone() -> None:
    logits_BTE = logits().requires_grad_()
    routing = choose_experts(logits_BTE, no_bias(), ONE, 2, noisy=False)
    (gradient,) = torch.autograd.grad(routing.gates_BTK[..., 0].sum(), logits_BTE)
    assert ((gradient != 0).sum(-1) == 2).all()
    assert (gradient.gather(-1, routing.indices_BTK) != 0).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradcheck(k: int) -> None:
    def gates(logits_BTE: Tensor) -> tuple[Tensor, Tensor]:
        routing = choose_experts(logits_BTE, no_bias(), 0.7 * ONE, k, noisy=False)
        return routing.gates_BTK, routing.weights_BTE

    assert torch.autograd.gradcheck(gates, logits(4).requires_grad_())


def test_bias_changes_the_choice_but_no_weight() -> None:
    logits_BTE, bias_E = logits(), no_bias()
    bias_E[3] = 100.0
    plain, biased = (choose_experts(logits_BTE, bias, ONE, 2, noisy=False) for bias in (no_bias(), bias_E))
    assert (biased.indices_BTK == 3).any(-1).all()
    assert not (plain.indices_BTK == 3).any(-1).all()
    pair = logits_BTE.gather(-1, biased.indices_BTK).softmax(-1)
    assert_close(biased.gates_BTK, pair)


def test_bias_is_added_at_the_temperature_of_the_choice() -> None:
    logits_BTE = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    bias_E = torch.tensor([0.0, 0.4], dtype=torch.float64)
    assert choose_experts(logits_BTE, bias_E, ONE, 1, noisy=False).indices_BTK.item() == 0
    assert choose_experts(logits_BTE, bias_E, 4 * ONE, 1, noisy=False).indices_BTK.item() == 1


def test_noise_follows_the_gumbel_rule_in_training_only() -> None:
    torch.manual_seed(0)
    logits_E = torch.tensor([1.0, 0.0, -0.5])
    logits_BTE = logits_E.expand(1, 20_000, 3)
    quiet = choose_experts(logits_BTE, torch.zeros(3), torch.tensor(2.0), 1, noisy=False)
    assert not quiet.indices_BTK.any()
    noisy = choose_experts(logits_BTE, torch.zeros(3), torch.tensor(2.0), 1, noisy=True)
    shares = torch.bincount(noisy.indices_BTK.flatten(), minlength=3) / 20_000
    expected = (logits_E / 2).softmax(0)
    assert ((shares - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()


def test_a_low_temperature_sharpens() -> None:
    sharp, soft = (choose_experts(logits(), no_bias(), t * ONE, 2, noisy=False).gates_BTK[..., 0] for t in (0.1, 10.0))
    assert (sharp > soft).all()


@pytest.mark.parametrize("k", [1, 2])
def test_weights_stay_finite_when_a_chosen_probability_underflows(k: int) -> None:
    logits_BTE = torch.tensor([[[500.0, 0.0, -1.0, -2.0, -3.0]]], requires_grad=True)
    bias_E = torch.tensor([-1e3, 0.0, 0.0, 0.0, 0.0])
    routing = choose_experts(logits_BTE, bias_E, torch.tensor(1.0), k, noisy=False)
    assert routing.indices_BTK.tolist() == [[[1, 2][:k]]]
    assert_close(routing.weights_BTE.sum(-1), torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(routing.gates_BTK.square().sum(), logits_BTE)
    assert gradient.isfinite().all()


@given(experts=st.integers(1, 9), k=st.integers(1, 9), salt=st.integers(0, 5))
def test_hashed_experts_are_distinct_fixed_and_in_range(experts: int, k: int, salt: int) -> None:
    k = min(k, experts)
    numbers = torch.arange(300).view(2, 150)
    chosen_BTK = hash_experts(numbers, experts, k, salt)
    assert chosen_BTK.shape == (2, 150, k)
    assert torch.equal(chosen_BTK, hash_experts(numbers.clone(), experts, k, salt))
    assert int(chosen_BTK.min()) >= 0
    assert int(chosen_BTK.max()) < experts
    ordered = chosen_BTK.sort(-1).values
    assert (ordered.diff(dim=-1) > 0).all()


@pytest.mark.parametrize(("experts", "k"), [(2, 1), (3, 2), (4, 2), (5, 2), (16, 2), (7, 3)])
@pytest.mark.parametrize("first", [0, 1_000_003])
@pytest.mark.parametrize("salt", [0, 3])
def test_hashed_experts_are_balanced(experts: int, k: int, first: int, salt: int) -> None:
    count = 20_000
    chosen = hash_experts(torch.arange(first, first + count)[None], experts, k, salt)
    shares = torch.bincount(chosen.flatten(), minlength=experts) / (count * k)
    assert ((shares * experts - 1).abs() < 0.1).all(), shares


def test_blocks_hash_differently() -> None:
    numbers = torch.arange(2_000)[None]
    same = hash_experts(numbers, 4, 1, 0) == hash_experts(numbers, 4, 1, 1)
    assert 0.15 < float(same.float().mean()) < 0.35


def test_neighbours_are_not_sent_alike() -> None:
    chosen = hash_experts(torch.arange(2_000)[None], 4, 1, 0)[0, :, 0]
    assert 0.15 < float((chosen[1:] == chosen[:-1]).float().mean()) < 0.35


@given(k=st.integers(1, 4))
def test_fixed_choice_shares_equally(k: int) -> None:
    chosen_BTK = hash_experts(torch.arange(30).view(2, 15), 4, k, 0)
    routing = fixed_choice(chosen_BTK, 4, torch.float32)
    assert_close(routing.gates_BTK, torch.full((2, 15, k), 1 / k))
    assert_close(routing.weights_BTE.sum(-1), torch.ones(2, 15))
    assert_close(routing.weights_BTE.gather(-1, chosen_BTK), routing.gates_BTK)
    assert routing.logits_BTE is None
