"""Sums over the rows of a few partial results: what kernels leave behind that each sum over some of the tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["sum_rows"]

COLUMNS = 8
MOST_ROWS = 512


def sum_rows(partial_RC: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ_r partial_rc of a contiguous float32 tensor, (C) in `dtype`, summed in float32 and always in one order."""
    rows, columns = partial_RC.shape
    result_C = partial_RC.new_empty(columns, dtype=dtype)
    block = min(COLUMNS, triton.next_power_of_2(columns))
    _sum_kernel[(triton.cdiv(columns, block),)](
        partial_RC, result_C, rows, columns, BLOCK=block, ROWS=min(MOST_ROWS, triton.next_power_of_2(rows)), num_warps=4
    )
    return result_C


@triton.jit(do_not_specialize=["rows"])
def _sum_kernel(partial, result, rows, columns, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in tl.range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(partial + row[:, None] * columns + column[None, :], mask=mask, other=0.0)
    tl.store(result + column, tl.sum(total, 0).to(result.dtype.element_ty), mask=column < columns)
