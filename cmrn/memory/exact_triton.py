"""Exact search on CUDA: one pass over the narrow rows, a choice of tiles, and float32 scores of what could matter.

The pass keeps the largest score of every group of `GROUP` rows and of every tile of `TILE` rows. With m the k-th
largest of a query's tiles and s the slack of a scanned score, k rows truly score at least m − s, so a row of the true
top k was scanned at m − 2s or more: only such groups, of the k and some more best tiles, are scored in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LARGEST_K", "TILE", "scan_rows", "search_rows", "settle_rows"]

GROUP = 16
TILE = 128
SPARE = 16
"""Tiles fetched beyond k."""

LARGEST_K = 128
"""Beyond it the keys of one query would be too many to sort in one program."""


class _Tiles(NamedTuple):
    """Queries and columns that a program of the pass takes at a time, its warps, and the loads it keeps in flight."""

    queries: int
    columns: int
    warps: int
    stages: int


def search_rows(
    queries_QD: Tensor, rows_ND: Tensor, narrow_ND: Tensor, k: int, scale: float, slack: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best rows of each query, (Q,k): float32 scores and int64 rows; and of which queries that is proved, bool.

    As `exact.exact_topk`; k ≤ LARGEST_K, and N ≥ k · TILE, so that k tiles have rows. narrow_ND: rows_ND over `scale`
    in the narrow type; slack: how far a scanned score may lie from the true one, for a query of norm 1 and in units
    of `scale`.
    """
    queries, width = queries_QD.shape
    count, device = len(rows_ND), queries_QD.device
    tiles = triton.cdiv(count, TILE)
    block = triton.next_power_of_2(width)
    narrow_QD = queries_QD.new_empty(queries, width, dtype=narrow_ND.dtype)
    limits_Q = torch.empty(queries, device=device)
    taken_Q = torch.empty(queries, dtype=torch.int32, device=device)
    _prepare_kernel[(queries,)](
        queries_QD, narrow_QD, limits_Q, taken_Q, scale, queries_QD.stride(0), WIDTH=width, BLOCK=block, num_warps=4
    )
    groups_QG, tiles_QT = scan_rows(narrow_QD, narrow_ND)
    fetched = min(k + SPARE, tiles)
    best_QF, chosen_QF = tiles_QT.topk(min(fetched + 1, tiles))
    capacity = max(16, triton.next_power_of_2(k + SPARE))
    keys_QC = torch.empty(queries, capacity * GROUP, dtype=torch.int64, device=device)
    _score_kernel[(queries * fetched,)](
        queries_QD, rows_ND, groups_QG, best_QF, chosen_QF, taken_Q, keys_QC, 2 * slack, count, fetched,
        best_QF.shape[1], groups_QG.shape[1], queries_QD.stride(0), rows_ND.stride(0),
        KTH=k, CAPACITY=capacity, WIDTH=width, BLOCK=block, ROWS=TILE, SIZE=GROUP, num_warps=4,
    )  # fmt: skip
    scores_QK = torch.empty(queries, k, device=device)
    found_QK = torch.empty(queries, k, dtype=torch.int64, device=device)
    proved_Q = torch.empty(queries, dtype=torch.bool, device=device)
    _finish_kernel[(queries,)](
        keys_QC, taken_Q, limits_Q, best_QF, scores_QK, found_QK, proved_Q, slack, best_QF.shape[1], k,
        LEFT=fetched < tiles, CAPACITY=capacity, SIZE=GROUP, num_warps=8,
    )  # fmt: skip
    return scores_QK, found_QK, proved_Q


def settle_rows(queries_QD: Tensor, rows_ND: Tensor, scores_QK: Tensor, found_QK: Tensor, proved_Q: Tensor) -> None:
    """Replace what `search_rows` found where it is not proved, by scoring every row; elsewhere that costs a launch.

    One program searches for one query, so that nobody has to wait to see whether any is needed.
    """
    queries, width = queries_QD.shape
    k = scores_QK.shape[1]
    _settle_kernel[(queries,)](
        queries_QD, rows_ND, scores_QK, found_QK, proved_Q, len(rows_ND), k, queries_QD.stride(0), rows_ND.stride(0),
        WIDTH=width, BLOCK=triton.next_power_of_2(width), KEPT=max(16, triton.next_power_of_2(k)), num_warps=8,
    )  # fmt: skip


def scan_rows(narrow_QD: Tensor, narrow_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score of every group and of every tile, float32 (Q,G) and (Q,T), -inf for a group without rows.

    Group g of a tile holds every (TILE / GROUP)-th of its rows from the g-th on, so that a group's largest score is
    found within one thread's registers. Both inputs have one type; products are exact and summed in float32.
    """
    queries, width = narrow_QD.shape
    sizes = _Tiles(128, 64, 8, 3) if queries > 64 else _Tiles(64 if queries > 16 else 16, 64, 4, 3)
    tiles, turns = triton.cdiv(len(narrow_ND), TILE), triton.cdiv(queries, sizes.queries)
    groups_QG = torch.empty(queries, tiles * (TILE // GROUP), device=narrow_QD.device)
    tiles_QT = torch.empty(queries, tiles, device=narrow_QD.device)
    _scan_kernel[(tiles * turns,)](
        narrow_QD, narrow_ND, groups_QG, tiles_QT, queries, len(narrow_ND), turns, narrow_QD.stride(0),
        narrow_ND.stride(0), WIDTH=width, COLUMNS=sizes.columns, QUERIES=sizes.queries, ROWS=TILE, SIZE=GROUP,
        num_warps=sizes.warps, num_stages=sizes.stages,
    )  # fmt: skip
    return groups_QG, tiles_QT


@triton.jit
def _prepare_kernel(
    queries_ptr, narrow_ptr, limits_ptr, taken_ptr, scale, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Each query at norm 1 in the narrow type; its norm over that of a scanned score; nothing taken yet."""
    query = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    q = tl.load(queries_ptr + query * stride + column, column < WIDTH, 0.0)
    norm = tl.sqrt(tl.sum(q * q, 0))
    unit = q / tl.maximum(norm, 1.1754943508222875e-38)
    tl.store(narrow_ptr + query * WIDTH + column, unit.to(narrow_ptr.dtype.element_ty), column < WIDTH)
    tl.store(limits_ptr + query, norm * scale)
    tl.store(taken_ptr + query, 0)


@triton.jit
def _scan_kernel(
    queries_ptr, rows_ptr, groups_ptr, tiles_ptr, queries, count, turns, query_stride, row_stride,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    APART: tl.constexpr = ROWS // SIZE
    program = tl.program_id(0)
    tile, turn = program // turns, program % turns
    query = turn * QUERIES + tl.arange(0, QUERIES)
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    query_at = queries_ptr + query.to(tl.int64)[:, None] * query_stride + column[None, :]
    row_at = rows_ptr + row[:, None] * row_stride + column[None, :]
    scores = tl.zeros((QUERIES, ROWS), tl.float32)
    for first in range(0, WIDTH, COLUMNS):
        inside = (first + column < WIDTH)[None, :]
        q = tl.load(query_at + first, (query < queries)[:, None] & inside, 0.0)
        x = tl.load(row_at + first, (row < count)[:, None] & inside, 0.0)
        scores = tl.dot(q, x.T, scores)
    scores = tl.where((row < count)[None, :], scores, float("-inf"))
    largest = tl.max(tl.reshape(scores, (QUERIES, SIZE, APART)), 1)
    there = query < queries
    tiles = tl.cdiv(count, ROWS).to(tl.int64)
    at = query.to(tl.int64) * tiles + tile
    tl.store(groups_ptr + at[:, None] * APART + tl.arange(0, APART)[None, :], largest, there[:, None])
    tl.store(tiles_ptr + at, tl.max(largest, 1), there)


@triton.jit
def _score_kernel(
    queries_ptr, rows_ptr, groups_ptr, best_ptr, chosen_ptr, taken_ptr, keys_ptr, margin, count, fetched, listed,
    groups, query_stride, row_stride, KTH: tl.constexpr, CAPACITY: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Keys, as `exact.pack` makes them, of the rows of one tile's groups that could hold a row of the top k."""
    APART: tl.constexpr = ROWS // SIZE
    program = tl.program_id(0).to(tl.int64)
    query = program // fetched
    tile = tl.load(chosen_ptr + query * listed + program % fetched)
    least = tl.load(best_ptr + query * listed + KTH - 1) - margin
    column = tl.arange(0, BLOCK)
    q = tl.load(queries_ptr + query * query_stride + column, column < WIDTH, 0.0)
    for group in range(APART):
        largest = tl.load(groups_ptr + query * groups + tile * APART + group)
        if largest >= least:
            slot = tl.atomic_add(taken_ptr + query, 1)
            if slot < CAPACITY:
                row = tile * ROWS + group + tl.arange(0, SIZE) * APART
                there = row < count
                inside = there[:, None] & (column < WIDTH)[None, :]
                x = tl.load(rows_ptr + row[:, None] * row_stride + column[None, :], inside, 0.0)
                bits = (tl.sum(x * q[None, :], 1) + 0.0).to(tl.int32, bitcast=True)
                ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
                keys = tl.where(there, (ordered << 32) | (0x7FFFFFFF - row), -0x7FFFFFFFFFFFFFFF - 1)
                tl.store(keys_ptr + (query * CAPACITY + slot) * SIZE + tl.arange(0, SIZE), keys)


@triton.jit
def _finish_kernel(
    keys_ptr, taken_ptr, limits_ptr, best_ptr, scores_ptr, found_ptr, proved_ptr, slack, listed, k,
    LEFT: tl.constexpr, CAPACITY: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """The k largest keys of one query, taken apart; and whether no row of a tile left out can reach the last one."""
    query = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CAPACITY * SIZE)
    taken = tl.load(taken_ptr + query)
    keys = tl.load(keys_ptr + query * (CAPACITY * SIZE) + place, place < taken * SIZE, -0x7FFFFFFFFFFFFFFF - 1)
    keys = tl.sort(keys, descending=True)
    ordered = (keys >> 32).to(tl.int32)
    scores = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
    tl.store(scores_ptr + query * k + place, scores, place < k)
    tl.store(found_ptr + query * k + place, 0x7FFFFFFF - (keys & 0xFFFFFFFF), place < k)
    proved = taken <= CAPACITY
    if LEFT:
        last = tl.sum(tl.where(place == k - 1, scores, 0.0), 0)
        reach = (tl.load(best_ptr + query * listed + listed - 1) + slack) * tl.load(limits_ptr + query)
        proved = proved & (last > reach)
    tl.store(proved_ptr + query, proved)


@triton.jit
def _settle_kernel(
    queries_ptr, rows_ptr, scores_ptr, found_ptr, proved_ptr, count, k, query_stride, row_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The k largest keys of all rows for a query that is not proved: `KEPT` more rows at a time beside the best."""
    query = tl.program_id(0).to(tl.int64)
    if tl.load(proved_ptr + query) == 0:
        column, place = tl.arange(0, BLOCK), tl.arange(0, KEPT)
        q = tl.load(queries_ptr + query * query_stride + column, column < WIDTH, 0.0)
        best = tl.full((KEPT,), -0x7FFFFFFFFFFFFFFF - 1, tl.int64)
        for first in range(0, count, KEPT):
            row = first + place.to(tl.int64)
            there = row < count
            inside = there[:, None] & (column < WIDTH)[None, :]
            x = tl.load(rows_ptr + row[:, None] * row_stride + column[None, :], inside, 0.0)
            bits = (tl.sum(x * q[None, :], 1) + 0.0).to(tl.int32, bitcast=True)
            ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
            keys = tl.where(there, (ordered << 32) | (0x7FFFFFFF - row), -0x7FFFFFFFFFFFFFFF - 1)
            if tl.max(keys, 0) > tl.min(best, 0):
                both = tl.sort(tl.reshape(tl.join(best, keys), (2 * KEPT,)), descending=True)
                half = tl.arange(0, 2)[:, None] == 0
                # Unwanted ones become zeros, and a sum of two integers of which one is zero is the other.
                best = tl.sum(tl.where(half, tl.reshape(both, (2, KEPT)), 0), 0)
        ordered = (best >> 32).to(tl.int32)
        scores = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
        tl.store(scores_ptr + query * k + place, scores, place < k)
        tl.store(found_ptr + query * k + place, 0x7FFFFFFF - (best & 0xFFFFFFFF), place < k)
