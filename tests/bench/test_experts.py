from __future__ import annotations

import pytest
import torch

from cmrn.bench.experts import ExpertsOptions, Layer, run
from tests.tolerances import assert_close

SMALL = ExpertsOptions(tokens=40, width=16, inner=24, experts=4, repeats=2, routing=False)


def test_every_way_but_the_dense_one_computes_the_same() -> None:
    layer = Layer((40, 16, 24, 4, 2), "cpu", torch.float32)
    expected = layer.loop()
    gradients = torch.autograd.grad(expected, layer.leaves("loop"), layer.dy_ND)
    for name, way in (("ours", layer.ours), ("F.grouped_mm", layer.grouped)):
        assert_close(way(), expected)
        x, router, *weights = torch.autograd.grad(way(), layer.leaves(name), layer.dy_ND)
        assert_close(x, gradients[0])
        assert_close(router, gradients[1])
        ups, downs = (weights[:4], weights[4:]) if name == "ours" else (weights[0], weights[1])
        assert_close(torch.stack(list(ups)), gradients[2])
        assert_close(torch.stack(list(downs)), gradients[3])


def test_the_dense_layer_has_as_many_flops() -> None:
    layer = Layer((40, 16, 24, 4, 2), "cpu", torch.float32)
    assert layer.flops == 2 * layer.tokens * (layer.wide_up.numel() + layer.wide_down.numel())
    assert layer.dense().shape == layer.loop().shape


def test_report_on_a_cpu() -> None:
    told: list[str] = []
    report = run(SMALL, told.append)
    assert [row.peer for row in report.rows] == ["dense layer of equal FLOPs", "loop over experts"] * 2
    assert all(row.ratio and row.limit and row.value for row in report.rows)
    assert report.to_json()["settings"]["tokens"] == 40
    assert any("No CUDA" in note for note in report.notes)
    assert told


@pytest.mark.gpu
def test_report_on_cuda_counts_no_waits() -> None:
    options = ExpertsOptions("cuda", tokens=1024, width=128, inner=192, experts=8, repeats=2, routing=False)
    report = run(options, lambda _: None)
    waits = next(row for row in report.rows if row.unit == "waits")
    assert waits.value == 0
    assert waits.peer_value
    assert any("four types" in row.name for row in report.rows)
