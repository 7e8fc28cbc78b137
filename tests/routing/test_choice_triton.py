"""The kernels that choose experts against the plain form; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cmrn.routing.gating import choose_experts
from tests.tolerances import assert_close

pytest.importorskip("triton")

from cmrn.routing.choice_triton import choose

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(1, 5, 1, False), (37, 5, 1, True), (37, 5, 2, True), (130, 16, 3, False), (9, 100, 5, True), (4, 3, 3, False)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def plain(logits_NE: Tensor, bias_E: Tensor, temperature: Tensor, uniform_NE: Tensor | None, k: int) -> list[Tensor]:
    """`choose_experts` in float64, on the CPU, with the draws given to it."""
    draws = None if uniform_NE is None else uniform_NE.double().cpu()
    with patch("torch.rand_like", lambda _: draws):
        routing = choose_experts(
            logits_NE.double().cpu(), bias_E.double().cpu(), temperature.double().cpu(), k, noisy=draws is not None
        )
    return [routing.weights_BTE, routing.indices_BTK, routing.gates_BTK]


@pytest.mark.parametrize(("tokens", "experts", "k", "noisy"), CASES)
@pytest.mark.parametrize("through", ["gates", "weights", "both"])
def test_choice_and_gradient_equal_the_plain_form(tokens: int, experts: int, k: int, noisy: bool, through: str) -> None:
    logits_NE, bias_E, temperature = normal(tokens, experts), normal(experts, seed=1), torch.tensor(0.7, device=DEVICE)
    uniform_NE = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(2)).to(DEVICE) if noisy else None
    upstream = normal(tokens, experts, seed=3), normal(tokens, k, seed=4)
    results = []
    for run in (choose, plain):
        leaf = logits_NE.clone().requires_grad_()
        weights_NE, indices_NK, gates_NK = run(leaf, bias_E, temperature, uniform_NE, k)
        parts = {"weights": (weights_NE, upstream[0]), "gates": (gates_NK, upstream[1])}
        taken = parts.values() if through == "both" else [parts[through]]
        loss = sum((part * up.to(part)).sum() for part, up in taken)
        results.append((indices_NK.cpu(), weights_NE, gates_NK, *torch.autograd.grad(loss, leaf)))
    (chosen, *actuals), (expected_choice, *expecteds) = results
    assert torch.equal(chosen, expected_choice)
    for actual, expected in zip(actuals, expecteds, strict=True):
        assert_close(actual.cpu(), expected.cpu())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_logits_that_are_no_numbers_still_give_experts_that_exist() -> None:
    logits_NE = normal(20, 5)
    logits_NE[3], logits_NE[4, 2] = torch.nan, torch.inf
    _, indices_NK, _ = choose(logits_NE, normal(5), torch.tensor(1.0, device=DEVICE), None, 2)
    assert ((indices_NK >= 0) & (indices_NK < 5)).all()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_the_router_takes_the_kernel_on_cuda() -> None:
    logits_BTE, bias_E, one = normal(4, 4096, 16).requires_grad_(), normal(16), torch.ones((), device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        routing = choose_experts(logits_BTE, bias_E, one, 2, noisy=True)
        routing.gates_BTK.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert routing.logits_BTE is logits_BTE
    shares = routing.weights_BTE.gather(-1, routing.indices_BTK)
    assert_close(routing.gates_BTK, shares)
    assert (shares.diff(dim=-1) <= 0).all()
