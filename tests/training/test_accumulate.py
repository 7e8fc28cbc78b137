from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmrn.data.packing import Batch
from cmrn.model import CMRN
from cmrn.training.accumulate import accumulate
from tests.training.small_run import model_config


def gradients(model: CMRN, batch: Batch, rows: int) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    result = accumulate(model, batch, rows, "float32")
    return result.loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, result.loads


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_micro_batches_add_up_to_the_whole_batch(rows: int) -> None:
    torch.manual_seed(1)
    config = model_config(dropout=0.0, routing_strategy="hash", latent_loss_weight=0.0)
    model = CMRN(config).double()
    ids = torch.randint(2, 280, (5, 24))
    documents = torch.stack([torch.arange(24) // (3 + 4 * row) for row in range(5)])
    labels = ids.masked_fill(torch.rand(5, 24) < torch.linspace(0, 0.9, 5)[:, None], -100)
    batch = Batch(ids, documents, torch.zeros_like(ids), labels)
    loss, whole, loads = gradients(model, batch, 5)
    micro_loss, parts, micro_loads = gradients(model, batch, rows)
    assert torch.allclose(micro_loss, loss, rtol=1e-12)
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(parts[name], whole[name], rtol=1e-9, atol=1e-13) for name in whole)
    assert all(torch.allclose(one, other) for one, other in zip(loads, micro_loads, strict=True))
    assert all(float(load.sum()) == pytest.approx(1) for load in loads)
