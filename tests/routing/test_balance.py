from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.records import Routing
from cmrn.routing import balance_step, choose_experts, domain_loss, expert_load, z_loss
from tests.tolerances import assert_close

OWNERS_GE = torch.tensor([[True, False, False, True], [False, True, False, False]])


def logits(length: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(length)
    return torch.randn(2, length, 4, dtype=torch.float64, generator=random)


def test_domain_loss_is_the_cross_entropy_to_the_owners_together() -> None:
    logits_BTE = logits().requires_grad_()
    domain_BT = torch.tensor([[0, 0, 1, -1, -1, 1], [-1] * 5 + [0]])
    total, labelled = torch.zeros((), dtype=torch.float64), 0
    for row, t in (domain_BT >= 0).nonzero().tolist():
        owned = OWNERS_GE[domain_BT[row, t]]
        total = total - logits_BTE[row, t].softmax(-1)[owned].sum().log()
        labelled += 1
    loss = domain_loss(logits_BTE, domain_BT, OWNERS_GE)
    assert_close(loss, total / labelled)
    (gradient,), (expected,) = (torch.autograd.grad(x, logits_BTE) for x in (loss, total / labelled))
    assert_close(gradient, expected)
    assert not gradient[0, 3:5].any(), "unlabelled text adds nothing"


def test_domain_loss_of_unlabelled_text_is_zero() -> None:
    logits_BTE = logits().requires_grad_()
    loss = domain_loss(logits_BTE, torch.full((2, 6), -1), OWNERS_GE)
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, logits_BTE)[0].any()


def test_domain_loss_falls_as_owners_gain() -> None:
    domain_BT = torch.ones(1, 1, dtype=torch.int64)
    losses = [float(domain_loss(torch.tensor([[[0.0, x, 0.0, 0.0]]]), domain_BT, OWNERS_GE)) for x in (0.0, 2.0, 50.0)]
    assert losses[0] == pytest.approx(math.log(4))
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] == pytest.approx(0.0, abs=1e-6)


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits_BTE = logits(5)
    real_BT = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    expected = torch.stack([logits_BTE[row, t].exp().sum().log() ** 2 for row, t in real_BT.nonzero().tolist()]).mean()
    assert_close(z_loss(logits_BTE, real_BT), expected)
    assert z_loss(logits_BTE, torch.zeros_like(real_BT)).item() == 0.0


def routing_of(chosen_BTK: torch.Tensor, experts: int) -> Routing:
    weights_BTE = torch.zeros(*chosen_BTK.shape[:2], experts).scatter(-1, chosen_BTK, 1.0 / chosen_BTK.shape[-1])
    return Routing(weights_BTE, chosen_BTK, torch.ones(chosen_BTK.shape), None)


def test_load_is_the_share_of_choices_over_real_tokens() -> None:
    chosen_BTK = torch.tensor([[[0, 1], [0, 2], [3, 2]]])
    load_E = expert_load(routing_of(chosen_BTK, 4))
    assert_close(load_E, torch.tensor([2, 1, 2, 1]) / 6)
    real_BT = torch.tensor([[True, True, False]])
    assert_close(expert_load(routing_of(chosen_BTK, 4), real_BT), torch.tensor([2, 1, 1, 0]) / 4)
    assert not expert_load(routing_of(chosen_BTK, 4), torch.zeros(1, 3, dtype=torch.bool)).any()


@given(k=st.integers(1, 4), seed=st.integers(0, 99))
def test_loads_sum_to_one(k: int, seed: int) -> None:
    torch.manual_seed(seed)
    routing = choose_experts(torch.randn(2, 9, 4) * 3, torch.zeros(4), torch.tensor(1.0), k, noisy=False)
    load_E = expert_load(routing)
    assert float(load_E.sum()) == pytest.approx(1.0)
    assert float(load_E.max()) <= 1 / k + 1e-6


def test_balance_step_moves_each_bias_by_the_rate() -> None:
    bias_E = torch.tensor([1.0, 0.0, 0.0, -1.0])
    balance_step(bias_E, torch.tensor([0.5, 0.25, 0.25, 0.0]), 0.1)
    assert_close(bias_E, torch.tensor([0.9, 0.0, 0.0, -0.9]))


@pytest.mark.parametrize("k", [1, 2])
def test_the_bias_balances_a_lopsided_router(k: int) -> None:
    """Experts that a router prefers by up to two nats end with equal loads, on tokens drawn anew each step."""
    torch.manual_seed(0)
    preference_E, bias_E, one = torch.linspace(0.0, 2.0, 8), torch.zeros(8), torch.tensor(1.0)

    def load(tokens: int) -> torch.Tensor:
        return expert_load(choose_experts(preference_E + torch.randn(1, tokens, 8), bias_E, one, k, noisy=False))

    before = load(20_000)
    for _ in range(600):
        balance_step(bias_E, load(256), 0.01)
    after = load(20_000)
    assert float(before.max() / before.min()) > 8
    assert float(after.max() / after.min()) < 1.3
