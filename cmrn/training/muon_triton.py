"""Muon's two passes over memory on CUDA: gradients and momenta in, updates out; directions in, parameters moved.

Matrices of one shape stand where they are; a table holds their addresses, so that one launch serves them all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["mix", "move"]

TILE = 64


def mix(
    gradients_N: Tensor, momenta_N: Tensor, shape: tuple[int, ...], momentum: float, scale: Tensor, skip: Tensor
) -> Tensor:
    """m ← μm + (1−μ)g and, bfloat16 (N,R,C) with R ≤ C, μm + (1−μ)g, for g = gradient / scale.

    gradients_N, momenta_N: addresses, int64, of contiguous float32 matrices of `shape` (rows, columns); those with
    more rows than columns come out transposed. Where skip is 1 the momenta stay and the updates are 0.
    """
    rows, columns = shape
    tall = rows > columns
    updates = torch.empty(
        len(gradients_N), *((columns, rows) if tall else shape), dtype=torch.bfloat16, device=scale.device
    )
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE), len(gradients_N))
    _mix_kernel[grid](
        gradients_N, momenta_N, updates, scale, skip, momentum, ROWS=rows, COLUMNS=columns, TALL=tall, SIDE=TILE
    )
    return updates


def move(
    parameters_N: Tensor,
    directions: Tensor,
    shape: tuple[int, ...],
    lr: Tensor,
    size: float,
    weight_decay: float,
    skip: Tensor,
) -> None:
    """W ← (1 − lr · weight_decay) W − lr · size · direction, in place at the addresses; nothing where skip is 1.

    directions: (N,R,C) as `mix` lays them out.
    """
    rows, columns = shape
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE), len(parameters_N))
    _move_kernel[grid](
        parameters_N, directions.contiguous(), lr, skip, size, weight_decay,
        ROWS=rows, COLUMNS=columns, TALL=rows > columns, SIDE=TILE,
    )  # fmt: skip


@triton.jit
def _matrix(table, index):
    """The pointer at a place of a table of addresses of float32 matrices."""
    return tl.multiple_of(tl.load(table + index).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _mix_kernel(
    gradients, momenta, updates, scale, skip, momentum,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TALL: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(2)
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[:, None]
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[None, :]
    inside = (row < ROWS) & (column < COLUMNS)
    place = row * COLUMNS + column
    update = tl.zeros((SIDE, SIDE), tl.float32)
    if tl.load(skip) == 0:
        g = tl.load(_matrix(gradients, index) + place, mask=inside, other=0.0) / tl.load(scale)
        m = tl.load(_matrix(momenta, index) + place, mask=inside, other=0.0)
        m = m + (1 - momentum) * (g - m)
        tl.store(_matrix(momenta, index) + place, m, mask=inside)
        update = g + momentum * (m - g)
    here = updates + index.to(tl.int64) * ROWS * COLUMNS
    if TALL:
        turned = tl.trans(update).to(tl.bfloat16)
        row_t = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[None, :]
        column_t = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[:, None]
        tl.store(here + column_t * ROWS + row_t, turned, mask=(row_t < ROWS) & (column_t < COLUMNS))
    else:
        tl.store(here + place, update.to(tl.bfloat16), mask=inside)


@triton.jit
def _move_kernel(
    parameters, directions, lr, skip, size, weight_decay,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TALL: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(2)
    if tl.load(skip) == 0:
        row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[:, None]
        column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[None, :]
        inside = (row < ROWS) & (column < COLUMNS)
        here = directions + index.to(tl.int64) * ROWS * COLUMNS
        if TALL:
            row_t = tl.program_id(0) * SIDE + tl.arange(0, SIDE)[None, :]
            column_t = tl.program_id(1) * SIDE + tl.arange(0, SIDE)[:, None]
            turned = tl.load(here + column_t * ROWS + row_t, mask=(row_t < ROWS) & (column_t < COLUMNS), other=0.0)
            step = tl.trans(turned)
        else:
            step = tl.load(here + row * COLUMNS + column, mask=inside, other=0.0)
        rate = tl.load(lr)
        at = _matrix(parameters, index) + row * COLUMNS + column
        w = tl.load(at, mask=inside, other=0.0)
        tl.store(at, (1 - rate * weight_decay) * w - rate * size * step.to(tl.float32), mask=inside)
