from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.records import Segments
from cmrn.routing import DynamicRouter
from tests.tolerances import assert_close

LENGTH = 12


def make_router(**changes: object) -> DynamicRouter:
    torch.manual_seed(3)
    fields = {"vocab_size": 50, "d_model": 8, "num_experts": 4, "router_dim": 6}
    return DynamicRouter(CMRNConfig.model_validate(fields | changes), block=1).double()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(batch, LENGTH, 8, dtype=torch.float64, generator=random)
    return x_BTD, torch.randint(50, (batch, LENGTH), generator=random)


def test_tags_see_the_token_and_the_three_before_it() -> None:
    router, (x_BTD, numbers_BT) = make_router(), inputs()
    x_BTD.requires_grad_()
    routing, _ = router(x_BTD, None, Segments(), numbers_BT)
    (gradient,) = torch.autograd.grad(routing.logits_BTE[0, 7].sum(), x_BTD)
    assert gradient[0].abs().sum(-1).nonzero()[:, 0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_split_stream_is_routed_alike(cut: int) -> None:
    router, (x_BTD, numbers_BT) = make_router().eval(), inputs()
    whole, _ = router(x_BTD, None, Segments(), numbers_BT)
    first, tail = router(x_BTD[:, :cut], None, Segments(), numbers_BT[:, :cut])
    second, _ = router(x_BTD[:, cut:], tail, Segments(), numbers_BT[:, cut:])
    assert_close(torch.cat([first.logits_BTE, second.logits_BTE], 1), whole.logits_BTE)
    assert torch.equal(torch.cat([first.indices_BTK, second.indices_BTK], 1), whole.indices_BTK)


def test_noise_is_drawn_in_training_only() -> None:
    router, (x_BTD, numbers_BT) = make_router(), inputs()

    def chosen() -> Tensor:
        return router(x_BTD, None, Segments(), numbers_BT)[0].indices_BTK

    router.train()
    assert any(not torch.equal(chosen(), chosen()) for _ in range(5))
    router.eval()
    assert all(torch.equal(chosen(), chosen()) for _ in range(5))


def test_temperature_and_bias_take_part_and_are_kept() -> None:
    router, (x_BTD, numbers_BT) = make_router().eval(), inputs()
    before, _ = router(x_BTD, None, Segments(), numbers_BT)
    network = router.routing_network
    network.temperature.fill_(0.1)
    sharper, _ = router(x_BTD, None, Segments(), numbers_BT)
    assert torch.equal(sharper.indices_BTK, before.indices_BTK)
    assert (sharper.gates_BTK[..., 0] > before.gates_BTK[..., 0]).all()
    network.bias_E[2] = 1e3
    moved, _ = router(x_BTD, None, Segments(), numbers_BT)
    assert (moved.indices_BTK == 2).any(-1).all()
    assert {"routing_network.bias_E", "routing_network.temperature"} <= set(router.state_dict())


def test_logits_are_wide_whatever_the_precision() -> None:
    router, (x_BTD, numbers_BT) = make_router().float(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        routing, _ = router(x_BTD.float(), None, Segments(), numbers_BT)
    assert routing.logits_BTE.dtype == routing.weights_BTE.dtype == torch.float32
    narrow, _ = router.bfloat16()(x_BTD.bfloat16(), None, Segments(), numbers_BT)
    assert narrow.logits_BTE.dtype == torch.float32


@pytest.mark.parametrize("strategy", ["hash", "random"])
def test_fixed_strategies_read_the_numbers_alone(strategy: str) -> None:
    router, (x_BTD, numbers_BT) = make_router(routing_strategy=strategy), inputs()
    assert not list(router.parameters())
    routing, tail = router(x_BTD, None, Segments(), numbers_BT)
    other, _ = router(-x_BTD, None, Segments(), numbers_BT)
    assert torch.equal(routing.indices_BTK, other.indices_BTK)
    assert tail is None
    assert routing.logits_BTE is None
    first = routing.indices_BTK[..., 0]
    assert all(first[numbers_BT == number].unique().numel() == 1 for number in numbers_BT.unique())


@pytest.mark.parametrize("k", [1, 2])
def test_every_router_weight_gets_gradient(k: int) -> None:
    router, (x_BTD, numbers_BT) = make_router(routing_k=k), inputs()
    routing, _ = router(x_BTD, None, Segments(), numbers_BT)
    routing.gates_BTK[..., 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in router.parameters())
