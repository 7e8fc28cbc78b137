"""Which form of the gated delta rule runs where."""

from __future__ import annotations

import torch
from torch import Tensor

from cmrn.temporal import chunked, step

__all__ = ["WIDEST_FLOAT32", "WIDEST_ON_CUDA", "gated_delta_rule"]

WIDEST_ON_CUDA, WIDEST_FLOAT32 = 256, 128


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.gated_delta_rule` by the fastest form for these tensors; the arguments are the same.

    One token goes to `step`, CUDA tensors to `triton`, all else to `chunked`: the CPU's tensors, and on CUDA float64
    and heads wider than 256 (128 in float32). Output and state carry gradient; the surprise does not.
    """
    arguments = (q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state_BHKV)
    if q_BTHK.shape[1] == 1:
        return step.gated_delta_rule(*arguments)
    widest = WIDEST_FLOAT32 if q_BTHK.dtype == torch.float32 else WIDEST_ON_CUDA
    if q_BTHK.is_cuda and state_BHKV.dtype == torch.float32 and max(state_BHKV.shape[2:]) <= widest:
        from cmrn.temporal.triton import gated_delta_rule as by_kernels

        return by_kernels(*arguments)
    return chunked.gated_delta_rule(*arguments)
