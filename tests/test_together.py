from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmrn.together import Together


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_call_is_done_and_the_first_result_returned(device: str) -> None:
    together, size = Together(), 1 << 20
    y, z = (torch.zeros(size, device=device) for _ in range(2))

    def step(x: Tensor) -> Tensor:
        total = together(x.device, x.sum, lambda: torch.add(x, 1, out=y), lambda: torch.add(x, 2, out=z))
        assert total == size * x[0]
        return x + y + z

    x = torch.ones(size, device=device)
    for expected in (6, 21, 66):
        x = step(x)
        assert bool((x == expected).all())


@pytest.mark.gpu
def test_calls_beside_each_other_are_captured() -> None:
    together, x = Together(), torch.zeros(1000, device="cuda")
    y, z = torch.empty_like(x), torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        together(x.device, lambda: torch.add(x, 1, out=y), lambda: torch.add(x, 2, out=z))
        product = y * z
    for value in (0.0, 3.0):
        x.fill_(value)
        graph.replay()
        assert bool((product == (value + 1) * (value + 2)).all())
