"""Weights that stand apart, copied into one tensor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import pick

__all__ = ["stack"]


def stack(weights: list[Tensor], dtype: torch.dtype) -> Tensor:
    """(E, *shape): the weights one behind another in `dtype`, in one launch; no gradient."""
    size = weights[0].numel()
    stacked = torch.empty(len(weights), *weights[0].shape, dtype=dtype, device=weights[0].device)
    _stack_kernel[(triton.cdiv(size, 4096), len(weights))](
        tuple(weight.detach().contiguous() for weight in weights), stacked, size, COUNT=len(weights), BLOCK=4096
    )
    return stacked


@triton.jit
def _stack_kernel(pointers, out_ptr, size, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(pick(pointers, tl.program_id(1), COUNT) + place, place < size, 0.0)
    out_ptrs = out_ptr + tl.program_id(1).to(tl.int64) * size + place
    tl.store(out_ptrs, weight.to(out_ptr.dtype.element_ty), place < size)
