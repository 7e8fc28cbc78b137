from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from cmrn.training import orthogonal_triton
from cmrn.training.muon import ITERATIONS, QUINTIC

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def expected(x_NRC: Tensor, iterations: int) -> Tensor:
    """The iteration as its docstring states it, rounded where the kernels round."""
    a, b, c = QUINTIC
    dtype = x_NRC.dtype
    for _ in range(iterations):
        gram = (x_NRC.double() @ x_NRC.double().mT).to(dtype).double()
        mixed = (b * gram + c * gram @ gram).to(dtype).double()
        x_NRC = (a * x_NRC.double() + mixed @ x_NRC.double()).to(dtype)
    return x_NRC


def check(count: int, rows: int, columns: int, iterations: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(rows)
    x_NRC = torch.randn(count, rows, columns, generator=draw)
    x_NRC = (x_NRC / torch.linalg.matrix_norm(x_NRC, keepdim=True)).to(dtype).to(DEVICE)
    kept = x_NRC.clone()
    result, wanted = orthogonal_triton.newton_schulz(x_NRC, iterations, QUINTIC), expected(x_NRC, iterations)
    assert torch.equal(x_NRC, kept)
    assert (result.double() - wanted.double()).norm() < 1e-2 * wanted.double().norm()


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (64, 64), (130, 200)])
def test_the_kernels_do_what_the_iteration_says(rows: int, columns: int) -> None:
    check(2, rows, columns, 2, torch.bfloat16 if DEVICE == "cuda" else torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (512, 768), (384, 1000), (36, 100)])
def test_at_the_sizes_of_training(rows: int, columns: int) -> None:
    check(9, rows, columns, ITERATIONS, torch.bfloat16)
