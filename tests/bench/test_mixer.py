"""The mixer's benchmark on a CPU at a tiny size, and its formulae."""

from __future__ import annotations

import pytest
import torch

from cmrn.bench.mixer import MixerOptions, limit_seconds, run


def test_rows_on_a_cpu() -> None:
    said: list[str] = []
    options = MixerOptions(shapes=((1, 80),), forward_shapes=((2, 40),), heads=2, head_dim=16, repeats=2)
    report = run(options, said.append)
    timed = [row for row in report.rows if row.unit == "ms"]
    assert {row.name for row in timed} == {"forward 1 x 80", "forward + backward 1 x 80", "forward 2 x 40"}
    assert all(row.value and row.value > 0 and row.limit is None for row in timed)
    assert all(row.peer == "SDPA" and row.ratio for row in timed)
    errors = [row for row in report.rows if row.unit != "ms"]
    assert len(errors) == 7
    assert all(row.value is not None and row.value < 1e-5 for row in errors)
    assert said
    assert report.to_json()["settings"]["heads"] == 2


def test_defaults_follow_the_device() -> None:
    cpu, cuda = MixerOptions().resolved(), MixerOptions("cuda").resolved()
    assert (cpu.head_dim, cpu.dtype, cpu.forward_shapes) == (64, torch.float32, ())
    assert (cuda.heads, cuda.head_dim, cuda.dtype) == (8, 128, torch.bfloat16)
    assert cuda.forward_shapes == ((1, 131_072),)
    assert MixerOptions("cuda", shapes=((1, 64),)).resolved().forward_shapes == ()


def test_limit_by_hand() -> None:
    # 64 tokens of one head of 128 in bfloat16: four tensors of 16 KiB, g and beta of 256 bytes each.
    moved, flop = 4 * 16_384 + 512, 10 * 64 * 64 * 128 + 6 * 64 * 128 * 128
    assert limit_seconds((1, 64), 1, 128, 2, False) == pytest.approx(max(moved / 4.3e12, flop / 790e12))
    assert limit_seconds((1, 64), 1, 128, 2, True) > 2 * limit_seconds((1, 64), 1, 128, 2, False)


@pytest.mark.gpu
def test_rows_on_a_gpu() -> None:
    report = run(MixerOptions("cuda", shapes=((2, 256),), repeats=3), lambda _: None)
    assert all(row.limit for row in report.rows)
    assert any(row.peer and row.peer.startswith("SDPA ") for row in report.rows)
