"""The Newton–Schulz iteration of Muon on CUDA: symmetric products of which only one half is computed.

Of the three products of a step, XXᵀ and A² (with A symmetric) are symmetric: tiles below the diagonal are computed and
written twice, once turned. The sums with A and X are made as the products leave the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["newton_schulz"]

TILE = 128
DEPTH = 64
WARPS = 8
STAGES = 3


def newton_schulz(x_NRC: Tensor, iterations: int, quintic: tuple[float, float, float]) -> Tensor:
    """`iterations` times X ← aX + (bA + cA²)X with A = XXᵀ, for bfloat16 matrices of R ≤ C.

    Sums are made in float32. float32 matrices work too, which the interpreter of the tests needs.
    """
    a, b, c = quintic
    x_NRC = x_NRC.contiguous()
    count, rows, columns = x_NRC.shape
    gram, mixed = (torch.empty(count, rows, rows, dtype=x_NRC.dtype, device=x_NRC.device) for _ in range(2))
    result, other = torch.empty_like(x_NRC), torch.empty_like(x_NRC)
    high, wide = triton.cdiv(rows, TILE), triton.cdiv(columns, TILE)
    options = {"SIDE": TILE, "DEPTH": DEPTH, "num_warps": WARPS, "num_stages": STAGES}
    for _ in range(iterations):
        _square_kernel[(high * (high + 1) // 2, count)](
            x_NRC, gram, 0.0, 1.0, ROWS=rows, COLUMNS=columns, ADDED=False, **options
        )
        _square_kernel[(high * (high + 1) // 2, count)](
            gram, mixed, b, c, ROWS=rows, COLUMNS=rows, ADDED=True, **options
        )
        _apply_kernel[(high * wide, count)](mixed, x_NRC, result, a, ROWS=rows, COLUMNS=columns, **options)
        x_NRC, result, other = result, other, result
    return x_NRC


@triton.jit
def _square_kernel(
    x, out, b, c,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ADDED: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """out = c · xxᵀ, and + b · x where ADDED (x is then square); one tile on or below the diagonal, and its mirror."""
    tile = tl.program_id(0)
    high = tl.cast((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5, tl.int32)
    left = tile - high * (high + 1) // 2
    x += tl.program_id(1).to(tl.int64) * ROWS * COLUMNS
    out += tl.program_id(1).to(tl.int64) * ROWS * ROWS
    row = high * SIDE + tl.arange(0, SIDE)
    column = left * SIDE + tl.arange(0, SIDE)
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, COLUMNS, DEPTH):
        k = start + tl.arange(0, DEPTH)
        upper = tl.load(x + row[:, None] * COLUMNS + k, mask=(row[:, None] < ROWS) & (k < COLUMNS), other=0.0)
        lower = tl.load(x + column[:, None] * COLUMNS + k, mask=(column[:, None] < ROWS) & (k < COLUMNS), other=0.0)
        total = tl.dot(upper, tl.trans(lower), total)
    total = c * total
    inside = (row[:, None] < ROWS) & (column < ROWS)
    if ADDED:
        total += b * tl.load(x + row[:, None] * ROWS + column, mask=inside, other=0.0).to(tl.float32)
    result = total.to(out.dtype.element_ty)
    tl.store(out + row[:, None] * ROWS + column, result, mask=inside)
    if high != left:
        mirrored = (column[:, None] < ROWS) & (row < ROWS)
        tl.store(out + column[:, None] * ROWS + row, tl.trans(result), mask=mirrored)


@triton.jit
def _apply_kernel(mixed, x, out, a, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIDE: tl.constexpr, DEPTH: tl.constexpr):
    """out = mixed · x + a · x, one tile."""
    wide: tl.constexpr = (COLUMNS + SIDE - 1) // SIDE
    row = (tl.program_id(0) // wide) * SIDE + tl.arange(0, SIDE)
    column = (tl.program_id(0) % wide) * SIDE + tl.arange(0, SIDE)
    mixed += tl.program_id(1).to(tl.int64) * ROWS * ROWS
    x += tl.program_id(1).to(tl.int64) * ROWS * COLUMNS
    out += tl.program_id(1).to(tl.int64) * ROWS * COLUMNS
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(0, ROWS, DEPTH):
        k = start + tl.arange(0, DEPTH)
        left = tl.load(mixed + row[:, None] * ROWS + k, mask=(row[:, None] < ROWS) & (k < ROWS), other=0.0)
        right = tl.load(x + k[:, None] * COLUMNS + column, mask=(k[:, None] < ROWS) & (column < COLUMNS), other=0.0)
        total = tl.dot(left, right, total)
    inside = (row[:, None] < ROWS) & (column < COLUMNS)
    at = row[:, None] * COLUMNS + column
    total += a * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)
