"""The router's kernel for one token against the router itself; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.records import Segments
from cmrn.routing.router import DynamicRouter
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")

from cmrn.routing import decode_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(width: int, tags: int, experts: int, k: int, batch: int) -> tuple[DynamicRouter, Tensor]:
    """A router whose norm, bias and temperature are not those it begins with, and the tokens of a short text."""
    torch.manual_seed(width)
    config = CMRNConfig(d_model=width, router_dim=tags, num_experts=experts, routing_k=k, routing_temperature=0.7)
    router = DynamicRouter(config, 0).to(DEVICE).eval()
    assert router.semantic_parser is not None
    assert router.routing_network is not None
    torch.nn.init.uniform_(router.semantic_parser.norm.weight, 0.5, 1.5)
    torch.nn.init.normal_(router.routing_network.bias_E)
    return router, torch.randn(batch, 6, width, device=DEVICE)


def one(router: DynamicRouter, *arguments: object) -> object:
    return router._one(router.semantic_parser, router.routing_network, *arguments)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "tags", "experts", "k"), [(48, 64, 8, 3), (100, 5, 5, 1), (33, 20, 100, 5), (16, 8, 3, 3)]
)
@pytest.mark.parametrize(("batch", "starts"), [(1, False), (3, True)])
@pytest.mark.parametrize("tile", [16384, 16])
def test_choice_and_tail_equal_the_router(
    width: int, tags: int, experts: int, k: int, batch: int, starts: bool, tile: int
) -> None:
    router, x_BTD = make(width, tags, experts, k, batch)
    numbers = torch.zeros(batch, 6, dtype=torch.int64, device=DEVICE)
    start_BT = torch.arange(batch, device=DEVICE)[:, None] % 2 == 0 if starts else None
    segments = Segments(None, start_BT)
    exact = router.double()
    _, tail = exact(x_BTD[:, :-1].double(), None, Segments(), numbers[:, :-1])
    expected, after = exact(x_BTD[:, -1:].double(), tail, segments, numbers[:, -1:])
    with patch.object(decode_triton, "TILE", tile):
        actual, found = one(router.float(), x_BTD[:, -1:], tail.float(), segments)  # type: ignore[misc]
    assert torch.equal(actual.indices_BTK, expected.indices_BTK)
    for name in ("weights_BTE", "gates_BTK", "logits_BTE"):
        assert_close(getattr(actual, name), getattr(expected, name), torch.float32)
    assert_close(found, after, torch.float32)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_takes_the_kernel_for_one_token(dtype: torch.dtype) -> None:
    router, x_BTD = make(512, 64, 8, 3, 2)
    router, x_BTD = router.to(dtype), x_BTD.to(dtype)
    numbers = torch.zeros(2, 6, dtype=torch.int64, device=DEVICE)
    _, tail = router(x_BTD[:, :-1], None, Segments(), numbers[:, :-1])
    actual, found = router(x_BTD[:, -1:], tail, Segments(), numbers[:, -1:])
    with torch.enable_grad():
        expected, after = router(x_BTD[:, -1:], tail, Segments(), numbers[:, -1:])
    assert_close(actual.logits_BTE, expected.logits_BTE, dtype)
    assert_close(found, after, dtype)
