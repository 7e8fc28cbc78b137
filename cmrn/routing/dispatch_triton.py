"""Tokens to experts and back on CUDA: a plan that never leaves the device, and sums over a token's choices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Plan", "block_rows", "combine_rows", "empty_plan", "gather_rows", "make_plan", "sum_choices"]


@dataclass(frozen=True)
class Plan:
    """Where every (token, choice) pair went. Rows are sorted by expert, tokens in order within one; all int32.

    Each expert's rows are rounded up to whole blocks of `rows`, of which there are as many as the worst split could
    need. pair_M: n·K + k of the pair in each row, −1 at padding. place_NK: the row of each pair. expert_Q: the expert
    of each block, −1 for blocks that nobody needed. start_E: where each expert's rows begin, and after the last where
    they end.
    """

    pair_M: Tensor
    place_NK: Tensor
    expert_Q: Tensor
    start_E: Tensor
    rows: int


def block_rows(pairs: int, experts: int) -> int:
    """Rows of a block: those of a matrix unit's tile, fewer where an expert sees so little that they would be empty."""
    return 128 if pairs >= 32 * experts else 16


def empty_plan(indices_NK: Tensor, experts: int) -> Plan:
    """A plan's tensors, not yet written; their shapes depend on the shapes of the arguments alone."""
    pairs = indices_NK.numel()
    rows = block_rows(pairs, experts)
    # Each expert that has a pair wastes less than one block.
    blocks = (pairs + (rows - 1) * min(experts, pairs)) // rows
    sizes = ((blocks * rows,), indices_NK.shape, (blocks,), (experts + 1,))
    pair_M, place_NK, expert_Q, start_E = (indices_NK.new_empty(size, dtype=torch.int32) for size in sizes)
    return Plan(pair_M, place_NK, expert_Q, start_E, rows)


def make_plan(indices_NK: Tensor, experts: int) -> Plan:
    """Sort the chosen pairs by expert, stably, in two launches. indices_NK: int64, each row's experts distinct."""
    plan, indices_NK = empty_plan(indices_NK, experts), indices_NK.contiguous()
    pairs, wide = indices_NK.numel(), triton.next_power_of_2(experts)
    each = min(256, max(16, 16_384 // wide))
    programs = triton.cdiv(pairs, each)
    counts_PE = torch.empty(programs, wide, dtype=torch.int32, device=indices_NK.device)
    rows, blocks = plan.pair_M.numel(), plan.expert_Q.numel()
    sizes = {"pairs": pairs, "PAIRS": each, "EXPERTS": wide}
    _count_kernel[(programs,)](
        indices_NK, counts_PE, plan.pair_M, rows, **sizes, FILL=triton.next_power_of_2(triton.cdiv(rows, programs))
    )
    _place_kernel[(programs,)](
        indices_NK, counts_PE, plan.pair_M, plan.place_NK, plan.expert_Q, plan.start_E, experts, programs, blocks,
        **sizes, ROWS=plan.rows, BLOCKS=triton.next_power_of_2(triton.cdiv(blocks, programs)),
    )  # fmt: skip
    return plan


@triton.jit
def _count_kernel(indices_ptr, counts_ptr, pair_ptr, m, pairs, PAIRS: tl.constexpr, EXPERTS: tl.constexpr,
                  FILL: tl.constexpr):  # fmt: skip
    """How many of this program's pairs chose each expert; its share of the rows is marked as padding."""
    program = tl.program_id(0)
    row = program * FILL + tl.arange(0, FILL)
    tl.store(pair_ptr + row, tl.full((FILL,), -1, tl.int32), row < m)
    pair = program * PAIRS + tl.arange(0, PAIRS)
    chosen = tl.load(indices_ptr + pair, pair < pairs, -1).to(tl.int32)
    expert = tl.arange(0, EXPERTS)
    tl.store(counts_ptr + program * EXPERTS + expert, tl.sum((chosen[:, None] == expert[None, :]).to(tl.int32), 0))


@triton.jit
def _place_kernel(indices_ptr, counts_ptr, pair_ptr, place_ptr, expert_ptr, start_ptr, experts, programs, blocks,
                  pairs, PAIRS: tl.constexpr, EXPERTS: tl.constexpr, ROWS: tl.constexpr,
                  BLOCKS: tl.constexpr):  # fmt: skip
    """Each pair's row: its expert's first row, the pairs before this program, the pairs before it in here."""
    program = tl.program_id(0)
    expert = tl.arange(0, EXPERTS)
    before, total = tl.zeros((EXPERTS,), tl.int32), tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, programs, 32):
        other = first + tl.arange(0, 32)
        counts = tl.load(counts_ptr + other[:, None] * EXPERTS + expert[None, :], other[:, None] < programs, 0)
        total += tl.sum(counts, 0)
        before += tl.sum(tl.where(other[:, None] < program, counts, 0), 0)
    needed = (total + ROWS - 1) // ROWS
    last = tl.cumsum(needed, 0)
    start = (last - needed) * ROWS

    pair = program * PAIRS + tl.arange(0, PAIRS)
    chosen = tl.load(indices_ptr + pair, pair < pairs, -1).to(tl.int32)
    hot = chosen[:, None] == expert[None, :]
    rank = tl.cumsum(hot.to(tl.int32), 0) - 1 + (start + before)[None, :]
    place = tl.sum(tl.where(hot, rank, 0), 1)
    tl.store(place_ptr + pair, place, pair < pairs)
    tl.store(pair_ptr + place, pair, pair < pairs)

    block = program * BLOCKS + tl.arange(0, BLOCKS)
    owner = tl.sum((last[None, :] <= block[:, None]).to(tl.int32), 1)
    tl.store(expert_ptr + block, tl.where(block < tl.max(last, 0), owner, -1), block < blocks)
    if program == 0:
        tl.store(start_ptr + expert, start, expert < experts)
        tl.store(start_ptr + experts, tl.max(last, 0) * ROWS)


def gather_rows(
    x_ND: Tensor, other_ND: Tensor | None, plan: Plan, kind_E: Tensor, apart: int | None, dtype: torch.dtype
) -> Tensor:
    """x_MD in `dtype`: each row's token, zeros at padding; experts of the kind `apart` read the other stream."""
    rows, width = plan.pair_M.shape[0], x_ND.shape[1]
    x_MD = x_ND.new_empty(rows, width, dtype=dtype)
    columns = min(1024, triton.next_power_of_2(width))
    each = min(plan.rows, max(1, 8192 // columns))
    _gather_kernel[(rows // each, triton.cdiv(width, columns))](
        x_ND, other_ND, plan.pair_M, plan.expert_Q, kind_E, x_MD, width, CHOICES=plan.place_NK.shape[1],
        APART=-1 if other_ND is None or apart is None else apart, BLOCK=plan.rows, ROWS=each, COLUMNS=columns,
    )  # fmt: skip
    return x_MD


@triton.jit
def _gather_kernel(x_ptr, other_ptr, pair_ptr, expert_ptr, kind_ptr, out_ptr, width, CHOICES: tl.constexpr,
                   APART: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    first = tl.program_id(0) * ROWS
    expert = tl.load(expert_ptr + first // BLOCK)
    if expert < 0:
        return
    source = x_ptr
    if APART >= 0:
        source = tl.where(tl.load(kind_ptr + expert) == APART, other_ptr, x_ptr)
    row, column = first + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    pair = tl.load(pair_ptr + row)
    token = (tl.maximum(pair, 0) // CHOICES).to(tl.int64)[:, None]
    inside = (column < width)[None, :]
    x = tl.load(source + token * width + column[None, :], (pair >= 0)[:, None] & inside, 0.0)
    out_ptrs = out_ptr + row.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(out_ptrs, x.to(out_ptr.dtype.element_ty), inside)


def combine_rows(y_MD: Tensor, place_NK: Tensor, stream_ND: Tensor | None = None) -> Tensor:
    """y_ND = Σ_k y[place_nk], summed in float32; with a stream, which must be contiguous, stream + y in its type."""
    tokens, width = place_NK.shape[0], y_MD.shape[1]
    y_ND = (y_MD if stream_ND is None else stream_ND).new_empty(tokens, width)
    grid, tile = _token_tiles(tokens, width)
    _sum_kernel[grid](
        y_MD, stream_ND, None, place_NK, None, None, y_ND, None, None, tokens, width, y_MD.shape[0], PARTS=0,
        CHOICES=place_NK.shape[1], APART=-1, **tile,
    )  # fmt: skip
    return y_ND


def sum_choices(
    dx_MD: Tensor, parts_QM: Tensor, place_NK: Tensor, indices_NK: Tensor, kind_E: Tensor, apart: int | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(dx_ND, its part from experts of the kind `apart` if one is named, dgates_NK): sums over a token's rows.

    parts_QM: float32, parts of each row's gate gradient, to be added up.
    """
    (tokens, choices), width = place_NK.shape, dx_MD.shape[1]
    dx_ND = dx_MD.new_empty(tokens, width)
    dcontext_ND = None if apart is None else torch.empty_like(dx_ND)
    dgates_NK = parts_QM.new_empty(tokens, choices)
    grid, tile = _token_tiles(tokens, width)
    _sum_kernel[grid](
        dx_MD, None, parts_QM, place_NK, indices_NK, kind_E, dx_ND, dcontext_ND, dgates_NK, tokens, width,
        dx_MD.shape[0], PARTS=parts_QM.shape[0], CHOICES=choices, APART=-1 if apart is None else apart, **tile,
    )  # fmt: skip
    return dx_ND, dcontext_ND, dgates_NK


def _token_tiles(tokens: int, width: int) -> tuple[tuple[int, int], dict[str, int]]:
    columns = min(1024, triton.next_power_of_2(width))
    rows = max(1, 4096 // columns)
    return (triton.cdiv(tokens, rows), triton.cdiv(width, columns)), {"ROWS": rows, "COLUMNS": columns}


@triton.jit
def _sum_kernel(dx_ptr, stream_ptr, partial_ptr, place_ptr, index_ptr, kind_ptr, out_ptr, apart_ptr, dgate_ptr, tokens,
                width, m, PARTS: tl.constexpr, CHOICES: tl.constexpr, APART: tl.constexpr, ROWS: tl.constexpr,
                COLUMNS: tl.constexpr):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = token < tokens
    mask = here[:, None] & (column < width)[None, :]
    offset = token.to(tl.int64)[:, None] * width + column[None, :]
    total, apart = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((ROWS, COLUMNS), tl.float32)
    if stream_ptr is not None:
        total += tl.load(stream_ptr + offset, mask, 0.0).to(tl.float32)
    for k in tl.static_range(CHOICES):
        place = tl.load(place_ptr + token * CHOICES + k, here, 0)
        dx = tl.load(dx_ptr + place.to(tl.int64)[:, None] * width + column[None, :], mask, 0.0).to(tl.float32)
        if APART >= 0:
            expert = tl.load(index_ptr + token * CHOICES + k, here, 0)
            other = (tl.load(kind_ptr + expert) == APART)[:, None]
            apart += tl.where(other, dx, 0.0)
            dx = tl.where(other, 0.0, dx)
        total += dx
        if PARTS > 0 and tl.program_id(1) == 0:
            dgate, part_ptrs = tl.zeros((ROWS,), tl.float32), partial_ptr + place
            for _ in range(PARTS):
                dgate += tl.load(part_ptrs, here, 0.0)
                part_ptrs += m
            tl.store(dgate_ptr + token * CHOICES + k, dgate, here)
    tl.store(out_ptr + offset, total, mask)
    if APART >= 0:
        tl.store(apart_ptr + offset, apart, mask)
