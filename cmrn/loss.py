"""The language loss, without a float32 copy of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["IGNORED", "token_nats"]

IGNORED = -100
ROWS_AT_ONCE = 256


def token_nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Sum of −log softmax(logits)[target] in nats over the rows whose target is not −100; gradient reaches the logits.

    Equal to `torch.nn.functional.cross_entropy(…, reduction="sum")` on float32 (or float64) logits. On CUDA one kernel
    reads each row once; elsewhere, and in float64, only a few hundred rows are widened at a time.
    """
    if logits_NV.device.type == "cuda" and logits_NV.dtype != torch.float64:
        from cmrn import loss_triton

        return loss_triton.token_nats(logits_NV, targets_N)
    nats: Tensor = _TokenNats.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return nats


class _TokenNats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        scored_N = targets_N != IGNORED
        index_N1 = targets_N.clamp(min=0)[:, None]
        partitions, picked = [], []
        for rows, index in zip(logits_NV.split(ROWS_AT_ONCE), index_N1.split(ROWS_AT_ONCE), strict=True):
            partitions.append(rows.to(wide).logsumexp(-1))
            picked.append(rows.gather(1, index)[:, 0].to(wide))
        partition_N = torch.cat(partitions)
        ctx.save_for_backward(logits_NV, index_N1, scored_N, partition_N)
        return ((partition_N - torch.cat(picked)) * scored_N).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits_NV, index_N1, scored_N, partition_N = ctx.saved_tensors
        scale_N = grad * scored_N
        result_NV = torch.empty_like(logits_NV)
        for start in range(0, logits_NV.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            slope = (logits_NV[rows].to(partition_N.dtype) - partition_N[rows, None]).exp_()
            slope.scatter_add_(1, index_N1[rows], slope.new_full((1, 1), -1.0).expand(slope.shape[0], 1))
            result_NV[rows] = slope.mul_(scale_N[rows, None])
        return result_NV, None
