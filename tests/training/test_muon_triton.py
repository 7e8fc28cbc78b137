from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from cmrn.training import muon_triton
from cmrn.training.muon import MOMENTUM, Muon

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(5, 3), (3, 5), (70, 130), (130, 70), (64, 64)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def matrices(shape: tuple[int, int], seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).to(DEVICE) for _ in range(3)]


def addresses(tensors: list[Tensor]) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=DEVICE)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE)


@each_shape
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_mix_is_what_its_docstring_says(shape: tuple[int, int], skip: float) -> None:
    gradients, momenta = matrices(shape, 1), matrices(shape, 2)
    expected_momenta = [m.lerp(g / 4, 1 - MOMENTUM) for g, m in zip(gradients, momenta, strict=True)]
    expected = torch.stack([(g / 4).lerp(m, MOMENTUM) for g, m in zip(gradients, expected_momenta, strict=True)])
    if skip:
        expected_momenta, expected = [m.clone() for m in momenta], torch.zeros_like(expected)
    updates = muon_triton.mix(addresses(gradients), addresses(momenta), shape, MOMENTUM, scalar(4.0), scalar(skip))
    expected = expected.mT if shape[0] > shape[1] else expected
    assert updates.shape == expected.shape
    assert torch.allclose(updates.float(), expected.bfloat16().float(), rtol=1e-2)
    assert all(torch.allclose(m, e, atol=1e-6) for m, e in zip(momenta, expected_momenta, strict=True))


@each_shape
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_move_is_what_its_docstring_says(shape: tuple[int, int], skip: float) -> None:
    weights = matrices(shape, 3)
    directions = torch.stack(matrices(shape, 4)).bfloat16()
    expected = [w if skip else 0.98 * w - 0.6 * d.float() for w, d in zip(weights, directions, strict=True)]
    laid = directions.mT.contiguous() if shape[0] > shape[1] else directions
    muon_triton.move(addresses(weights), laid, shape, scalar(0.2), 3.0, 0.1, scalar(skip))
    assert all(torch.allclose(w, e, atol=1e-5) for w, e in zip(weights, expected, strict=True))


@pytest.mark.gpu
def test_on_the_device_muon_moves_as_torchs_does() -> None:
    shapes = [(384, 384), (1024, 384), (1024, 384), (384, 512), (100, 36)]
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw).cuda() for shape in shapes]
    ours, theirs = ([nn.Parameter(each.clone()) for each in start] for _ in range(2))
    mine = Muon(ours, torch.tensor(0.02, device="cuda"), weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draw).cuda()
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        moved = (other - first).norm()
        assert moved > 0.02
        assert (one - other).norm() < 0.02 * moved
