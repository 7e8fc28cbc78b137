"""Grouped matrix products: rows with their own expert's weight, and the weights' gradients.

Every kernel here is persistent: as many programs as fit take tiles in turn, and the next tile's loads (by the tensor
memory unit) run while the last one's results are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from cmrn.routing.dispatch_triton import Plan

__all__ = ["Tile", "halves", "project_rows", "tile_of", "tiled", "weight_gradient"]


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its product: columns of the result, depth of a step.

    rows: those of a weight's gradient; a product of a plan's rows takes the plan's blocks.
    """

    columns: int
    depth: int
    warps: int
    stages: int
    rows: int = 128

    def programs(self, device: torch.device) -> int:
        """How many run at once."""
        if device.type != "cuda":
            return 2
        return torch.cuda.get_device_properties(device).multi_processor_count

    def rounds(self, blocks: int, width: int) -> int:
        """Columns that each of an H200's 132 multiprocessors computes where the work is spread over all."""
        return int(triton.cdiv(blocks * triton.cdiv(width, self.columns), 132)) * self.columns

    def options(self, device: torch.device) -> dict[str, int]:
        """What every kernel takes."""
        return {"COLUMNS": self.columns, "DEPTH": self.depth, "PROGRAMS": self.programs(device),
                "num_warps": self.warps, "num_stages": self.stages}  # fmt: skip


def tiled(x: Tensor, *shape: int) -> TensorDescriptor:
    """`x`, to be read and written in blocks of this shape; what lies outside reads as 0 and is not written."""
    return TensorDescriptor.from_tensor(x, list(shape))


def project_rows(a_MC: Tensor, weight: Tensor, plan: Plan, *, transposed: bool) -> Tensor:
    """out_M = a @ weightᵀ of each row's expert, weight (E,width,C); or a @ weight, weight (E,C,width)."""
    depth, width = a_MC.shape[1], weight.shape[1 if transposed else 2]
    tile = rows_tile(plan, a_MC.dtype, width, depth)
    out = a_MC.new_empty(a_MC.shape[0], width)
    shape = (1, tile.columns, tile.depth) if transposed else (1, tile.depth, tile.columns)
    _rows_kernel[(tile.programs(out.device),)](
        tiled(a_MC, plan.rows, tile.depth), tiled(weight, *shape), tiled(out, plan.rows, tile.columns), plan.expert_Q,
        plan.start_E, weight.shape[0], triton.cdiv(width, tile.columns), depth, TRANSPOSED=transposed, ROWS=plan.rows,
        **tile.options(out.device),
    )  # fmt: skip
    return out


def weight_gradient(left: Tensor, right: Tensor, plan: Plan, needed: list[bool], out: Tensor) -> None:
    """Fill out (experts needed, height, width) with Σ of left_rowᵀ right_row over each one's rows.

    Experts that need no gradient cost nothing: each run of neighbours that do is a launch.
    """
    height, width = out.shape[1:]
    tile = weight_tile(plan, left.dtype, sum(needed), height, width)
    blocks, tiles = triton.cdiv(height, tile.rows), triton.cdiv(width, tile.columns)
    for first, count, place in _runs(needed):
        _weight_kernel[(min(count * blocks * tiles, tile.programs(out.device)),)](
            tiled(left, tile.depth, tile.rows), tiled(right, tile.depth, tile.columns), out[place:], plan.start_E,
            first, count, height, width, ROWS=tile.rows, **tile.options(out.device),
        )  # fmt: skip


def _runs(needed: list[bool]) -> list[tuple[int, int, int]]:
    """(first expert, how many, how many were needed before) of each unbroken run of experts that are needed."""
    runs: list[tuple[int, int, int]] = []
    for expert, need in enumerate(needed):
        if need and expert > 0 and needed[expert - 1]:
            first, count, place = runs[-1]
            runs[-1] = (first, count + 1, place)
        elif need:
            runs.append((expert, 1, sum(needed[:expert])))
    return runs


def rows_tile(plan: Plan, dtype: torch.dtype, width: int, depth: int) -> Tile:
    """For a product of a plan's rows; chosen by measurement on an H200."""
    if plan.rows < 128:
        return Tile(64, 64, 4, 3)
    if dtype == torch.float32:
        return Tile(64, 32, 8, 2)
    wide, narrow = Tile(256, 64, 8, 3), Tile(128, 64, 8, 4)
    shorter = narrow.rounds(plan.expert_Q.shape[0], width) < wide.rounds(plan.expert_Q.shape[0], width)
    return narrow if depth < 768 and shorter else wide


def weight_tile(plan: Plan, dtype: torch.dtype, experts: int, height: int, width: int) -> Tile:
    """For the gradient of a weight, whose sums run over rows; chosen by measurement on an H200."""
    depth = min(64, plan.rows)
    if dtype == torch.float32:
        return Tile(64, min(32, depth), 8, 2, rows=64)
    wide, narrow = Tile(256, depth, 8, 3), Tile(128, depth, 8, 4)
    blocks = experts * triton.cdiv(height, wide.rows)
    return narrow if narrow.rounds(blocks, width) < wide.rounds(blocks, width) else wide


@triton.jit
def tile_of(job, blocks, tiles):
    """(block, tile) of a job: jobs that run together share blocks and tiles, so that the cache serves them."""
    group = job // (8 * tiles)
    size = tl.minimum(blocks - group * 8, 8)
    inside = job % (8 * tiles)
    return group * 8 + inside % size, inside // size


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the columns; stays in registers."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _rows_kernel(a_desc, weight_desc, out_desc, expert_ptr, start_ptr, experts, tiles, depth,
                 TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
                 PROGRAMS: tl.constexpr):  # fmt: skip
    """Rows of out = a @ weight of each block's expert, or its transpose."""
    blocks = tl.load(start_ptr + experts) // ROWS
    for job in tl.range(tl.program_id(0), blocks * tiles, PROGRAMS, flatten=True):
        block, tile = tile_of(job, blocks, tiles)
        expert = tl.load(expert_ptr + block)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, depth, DEPTH):
            a = a_desc.load([block * ROWS, k])
            if TRANSPOSED:
                w = tl.reshape(weight_desc.load([expert, tile * COLUMNS, k]), (COLUMNS, DEPTH)).T
            else:
                w = tl.reshape(weight_desc.load([expert, k, tile * COLUMNS]), (DEPTH, COLUMNS))
            total = tl.dot(a, w, total, input_precision="ieee")
        out_desc.store([block * ROWS, tile * COLUMNS], total.to(out_desc.dtype))


@triton.jit
def _weight_kernel(left_desc, right_desc, out_ptr, start_ptr, first, count, height, width, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PROGRAMS: tl.constexpr):  # fmt: skip
    """Out[expert] = Σ over the expert's rows of left_rowᵀ right_row, for `count` experts from `first` on."""
    blocks, tiles = tl.cdiv(height, ROWS), tl.cdiv(width, COLUMNS)
    for job in tl.range(tl.program_id(0), count * blocks * tiles, PROGRAMS, flatten=True):
        place = job // (blocks * tiles)
        block, tile = tile_of(job % (blocks * tiles), blocks, tiles)
        begin, end = tl.load(start_ptr + first + place), tl.load(start_ptr + first + place + 1)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for row in range(begin, end, DEPTH):
            left, right = left_desc.load([row, block * ROWS]), right_desc.load([row, tile * COLUMNS])
            total = tl.dot(left.T, right, total, input_precision="ieee")
        i, j = block * ROWS + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
        out_ptrs = out_ptr + place.to(tl.int64) * height * width + i[:, None] * width + j[None, :]
        tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), (i < height)[:, None] & (j < width)[None, :])
