"""What surrounds an expert's inner function on CUDA: the product before it, and its gradient.

General and pattern experts are computed here; symbolic and generative ones have kernels of their own for their rows
(`symbolic_triton`, `latent_triton`), so that the others pay nothing for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.experts.products_triton import Tile, halves, tile_of, tiled
from cmrn.routing.dispatch_triton import Plan

__all__ = ["GENERATIVE", "PATTERN", "SYMBOLIC", "Kinds", "factors", "inner_back", "project_up"]

PATTERN = tl.constexpr(1)
GENERATIVE = tl.constexpr(2)
SYMBOLIC = tl.constexpr(3)


@dataclass(frozen=True)
class Kinds:
    """Which types there are beside general ones; what is absent costs nothing."""

    pattern: bool
    generative: bool
    symbolic: bool


def project_up(
    x_MD: Tensor, up_EFD: Tensor, gates_NK: Tensor, plan: Plan, table_2E: Tensor, kinds: Kinds
) -> tuple[Tensor, Tensor]:
    """(ab_M of 2F, gate · inner(ab) (M,F)). What the second holds for other types, their own kernels overwrite."""
    (rows, width), hidden = x_MD.shape, up_EFD.shape[1] // 2
    tile = up_tile(plan, x_MD.dtype)
    ab_MF, gh_MF = x_MD.new_empty(rows, 2 * hidden), x_MD.new_empty(rows, hidden)
    _up_kernel[(tile.programs(x_MD.device),)](
        tiled(x_MD, plan.rows, tile.depth), tiled(up_EFD.view(-1, hidden, width), 2, tile.columns, tile.depth),
        tiled(ab_MF.view(rows, 2, hidden), plan.rows, 1, tile.columns), tiled(gh_MF, plan.rows, tile.columns),
        gates_NK.contiguous(), plan.pair_M, plan.expert_Q, plan.start_E, table_2E, triton.cdiv(hidden, tile.columns),
        width, table_2E.shape[1], HAS_PATTERN=kinds.pattern, ROWS=plan.rows, **tile.options(x_MD.device),
    )  # fmt: skip
    return ab_MF, gh_MF


def inner_back(
    dh_MF: Tensor, ab_MF: Tensor, gates_NK: Tensor, plan: Plan, table_2E: Tensor, kinds: Kinds
) -> tuple[Tensor, Tensor]:
    """(dab_M of 2F, ⟨h, dh⟩ of each row (parts, M)). dh_MF: the gradient of h without its gate.

    There is one part of ⟨h, dh⟩, or one a group of propositions where there are symbolic experts; rows of the types
    with kernels of their own are left to those.
    """
    rows, hidden = dh_MF.shape
    dab_MF = torch.empty_like(ab_MF)
    make = torch.zeros if kinds.symbolic else torch.empty
    parts = hidden // math.gcd(hidden, 16) if kinds.symbolic else 1
    dots = make(parts, rows, dtype=torch.float32, device=dh_MF.device)
    _inner_back_kernel[(rows // 8,)](
        dh_MF, ab_MF, gates_NK.contiguous(), plan.pair_M, plan.expert_Q, table_2E, dab_MF, dots, hidden,
        HAS_PATTERN=kinds.pattern, BLOCK=plan.rows, ROWS=8, COLUMNS=min(256, triton.next_power_of_2(hidden)),
    )  # fmt: skip
    return dab_MF, dots


def up_tile(plan: Plan, dtype: torch.dtype) -> Tile:
    """For `project_up`, whose product is twice as wide; chosen by measurement on an H200."""
    if plan.rows < 128:
        return Tile(32, 64, 4, 3)
    if dtype == torch.float32:
        return Tile(32, 32, 8, 2)
    return Tile(128, 64, 8, 3)


@triton.jit
def factors(a, b, kind, HAS_PATTERN: tl.constexpr):
    """(p, p′, q, q′) of an inner function p(a) · q(b): SiLU(a) · b, or ReLU(a)² · sigmoid(b) of a pattern expert."""
    s = tl.sigmoid(a)
    p, dp, q, dq = a * s, s * (1.0 + a * (1.0 - s)), b, tl.full(b.shape, 1.0, tl.float32)
    if HAS_PATTERN:
        pattern = kind == PATTERN
        r, t = tl.maximum(a, 0.0), tl.sigmoid(b)
        p, dp = tl.where(pattern, r * r, p), tl.where(pattern, 2.0 * r, dp)
        q, dq = tl.where(pattern, t, q), tl.where(pattern, t * (1.0 - t), dq)
    return p, dp, q, dq


@triton.jit
def _up_kernel(x_desc, up_desc, ab_desc, gh_desc, gate_ptr, pair_ptr, expert_ptr, start_ptr, table_ptr, tiles, D,
               experts, HAS_PATTERN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
               PROGRAMS: tl.constexpr):  # fmt: skip
    """Rows of ab = x @ upᵀ and gate · inner(ab); the two halves of ab are the two halves of one product."""
    blocks = tl.load(start_ptr + experts) // ROWS
    for job in tl.range(tl.program_id(0), blocks * tiles, PROGRAMS, flatten=True):
        block, tile = tile_of(job, blocks, tiles)
        expert = tl.load(expert_ptr + block)
        total = tl.zeros((ROWS, 2 * COLUMNS), tl.float32)
        for k in range(0, D, DEPTH):
            w = tl.reshape(up_desc.load([expert * 2, tile * COLUMNS, k]), (2 * COLUMNS, DEPTH))
            total = tl.dot(x_desc.load([block * ROWS, k]), w.T, total, input_precision="ieee")
        a, b = halves(total.to(gh_desc.dtype), ROWS, 2 * COLUMNS)
        ab_desc.store([block * ROWS, 0, tile * COLUMNS], tl.reshape(a, (ROWS, 1, COLUMNS)))
        ab_desc.store([block * ROWS, 1, tile * COLUMNS], tl.reshape(b, (ROWS, 1, COLUMNS)))
        p, _, q, _ = factors(a.to(tl.float32), b.to(tl.float32), tl.load(table_ptr + expert), HAS_PATTERN)
        pair = tl.load(pair_ptr + block * ROWS + tl.arange(0, ROWS))
        gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
        gh_desc.store([block * ROWS, tile * COLUMNS], (gate * p * q).to(gh_desc.dtype))


@triton.jit
def _inner_back_kernel(dh_ptr, ab_ptr, gate_ptr, pair_ptr, expert_ptr, table_ptr, dab_ptr, dot_ptr, F,
                       HAS_PATTERN: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                       COLUMNS: tl.constexpr):  # fmt: skip
    """Some rows of one expert: dab = gate · dh · (p′q, pq′) and ⟨pq, dh⟩."""
    first = tl.program_id(0) * ROWS
    expert = tl.load(expert_ptr + first // BLOCK)
    if expert < 0:
        return
    kind = tl.load(table_ptr + expert)
    if kind >= GENERATIVE:
        return
    row = first + tl.arange(0, ROWS)
    pair = tl.load(pair_ptr + row)
    gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
    wide = row.to(tl.int64)[:, None]
    dot = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, F, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (column < F)[None, :]
        at = wide * 2 * F + column[None, :]
        a = tl.load(ab_ptr + at, inside, 0.0).to(tl.float32)
        b = tl.load(ab_ptr + at + F, inside, 0.0).to(tl.float32)
        dh = tl.load(dh_ptr + wide * F + column[None, :], inside, 0.0).to(tl.float32)
        p, dp, q, dq = factors(a, b, kind, HAS_PATTERN)
        dot += p * q * dh
        dh *= gate
        tl.store(dab_ptr + at, (dh * dp * q).to(dab_ptr.dtype.element_ty), inside)
        tl.store(dab_ptr + at + F, (dh * p * dq).to(dab_ptr.dtype.element_ty), inside)
    tl.store(dot_ptr + row, tl.sum(dot, 1))
