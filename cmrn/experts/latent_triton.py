"""The generative expert's inner function on CUDA: the rows that chose a generative expert.

The definition is `cmrn.experts.generative`. The noise of the backward pass is drawn anew from the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.experts.units_triton import GENERATIVE, factors
from cmrn.routing.dispatch_triton import Plan

__all__ = ["Latents", "sample", "sample_back"]

ROWS, COLUMNS = 32, 64


@dataclass(frozen=True)
class Latents:
    """What generative experts need.

    log_sigma_GF: of each. seed: int64 (1,), whence the noise is drawn; None for none. real_N: bool, the tokens whose
    divergence counts; None for all.
    """

    log_sigma_GF: Tensor
    seed: Tensor | None
    real_N: Tensor | None


def sample(
    ab_MF: Tensor, gh_MF: Tensor, gates_NK: Tensor, latents: Latents, plan: Plan, table_2E: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean divergence, what it is the reciprocal count of); writes gate · h in the rows of generative experts.

    The mean is over real rows and features: nats a feature, a scalar, 0 where no real token chose such an expert.
    """
    rows, hidden = gh_MF.shape
    each = min(ROWS, plan.rows)
    nats = torch.zeros(rows // each, triton.cdiv(hidden, COLUMNS), dtype=torch.float32, device=ab_MF.device)
    counts = torch.zeros(rows // each, dtype=torch.float32, device=ab_MF.device)
    _sample_kernel[nats.shape](
        ab_MF, gh_MF, gates_NK.contiguous(), latents.log_sigma_GF, latents.seed, latents.real_N, plan.pair_M,
        plan.expert_Q, table_2E, nats, counts, hidden, table_2E.shape[1], **_constants(plan),
    )  # fmt: skip
    scale = 1.0 / (counts.sum().clamp(min=1.0) * hidden)
    return nats.sum() * scale, scale.view(1)


def sample_back(
    dh_MF: Tensor, ab_MF: Tensor, dab_MF: Tensor, dots: Tensor, gates_NK: Tensor, scale: Tensor, latents: Latents,
    plan: Plan, table_2E: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient of log_sigma_GF; writes dab and ⟨h, dh⟩ in the rows of generative experts.

    scale: (1,), the divergence's gradient times what `sample` returned second.
    """
    rows, hidden = dh_MF.shape
    each = min(ROWS, plan.rows)
    parts = torch.empty(rows // each, hidden, dtype=torch.float32, device=dh_MF.device)
    _sample_back_kernel[(rows // each,)](
        dh_MF, ab_MF, dab_MF, dots, gates_NK.contiguous(), latents.log_sigma_GF, latents.seed, latents.real_N, scale,
        plan.pair_M, plan.expert_Q, table_2E, parts, hidden, table_2E.shape[1], **_constants(plan),
    )  # fmt: skip
    gradient_GF = torch.empty_like(latents.log_sigma_GF, memory_format=torch.contiguous_format)
    _sum_kernel[(table_2E.shape[1], triton.cdiv(hidden, COLUMNS))](
        parts, plan.start_E, table_2E, gradient_GF, table_2E.shape[1], hidden, ROWS=each, COLUMNS=COLUMNS
    )
    return gradient_GF


def _constants(plan: Plan) -> dict[str, int]:
    each = min(ROWS, plan.rows)
    return {"CHOICES": plan.place_NK.shape[1], "BLOCK": plan.rows, "ROWS": each, "COLUMNS": COLUMNS}


@triton.jit
def _real_rows(real_ptr, pair, CHOICES: tl.constexpr):
    """Rows that hold a real token: neither padding of the dispatch nor of the text."""
    real = pair >= 0
    if real_ptr is not None:
        real = real & (tl.load(real_ptr + tl.maximum(pair, 0) // CHOICES) != 0)
    return real


@triton.jit
def _sample_kernel(ab_ptr, gh_ptr, gate_ptr, sigma_ptr, seed_ptr, real_ptr, pair_ptr, expert_ptr, table_ptr, nats_ptr,
                   count_ptr, F, experts, CHOICES: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr):  # fmt: skip
    first, tile = tl.program_id(0) * ROWS, tl.program_id(1)
    expert = tl.load(expert_ptr + first // BLOCK)
    if expert < 0:
        return
    kind, slot = tl.load(table_ptr + expert), tl.load(table_ptr + experts + expert)
    if kind != GENERATIVE:
        return
    row, column = first + tl.arange(0, ROWS), tile * COLUMNS + tl.arange(0, COLUMNS)
    pair, inside = tl.load(pair_ptr + row), (column < F)[None, :]
    real = _real_rows(real_ptr, pair, CHOICES)
    gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
    ab_ptrs = ab_ptr + row.to(tl.int64)[:, None] * 2 * F + column[None, :]
    a, b = tl.load(ab_ptrs, inside, 0.0).to(tl.float32), tl.load(ab_ptrs + F, inside, 0.0).to(tl.float32)
    p, _, z, _ = factors(a, b, kind, False)
    log_sigma = tl.load(sigma_ptr + slot * F + column, column < F, 0.0)[None, :]
    sigma = tl.exp(log_sigma)
    nats = 0.5 * (z * z + sigma * sigma - 1.0) - log_sigma
    tl.store(
        nats_ptr + tl.program_id(0) * tl.num_programs(1) + tile, tl.sum(tl.where(real[:, None] & inside, nats, 0.0))
    )
    if tile == 0:
        tl.store(count_ptr + tl.program_id(0), tl.sum(real.to(tl.float32)))
    if seed_ptr is not None:
        z += sigma * tl.randn(tl.load(seed_ptr), row[:, None] * F + column[None, :])
    gh_ptrs = gh_ptr + row.to(tl.int64)[:, None] * F + column[None, :]
    tl.store(gh_ptrs, (gate * p * z).to(gh_ptr.dtype.element_ty), inside)


@triton.jit
def _sample_back_kernel(dh_ptr, ab_ptr, dab_ptr, dot_ptr, gate_ptr, sigma_ptr, seed_ptr, real_ptr, scale_ptr, pair_ptr,
                        expert_ptr, table_ptr, part_ptr, F, experts, CHOICES: tl.constexpr, BLOCK: tl.constexpr,
                        ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The gate reaches the mixture's part of a gradient, not the divergence's."""
    first = tl.program_id(0) * ROWS
    expert = tl.load(expert_ptr + first // BLOCK)
    if expert < 0:
        return
    kind, slot = tl.load(table_ptr + expert), tl.load(table_ptr + experts + expert)
    if kind != GENERATIVE:
        return
    row = first + tl.arange(0, ROWS)
    pair = tl.load(pair_ptr + row)
    gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
    scale = tl.where(_real_rows(real_ptr, pair, CHOICES), tl.load(scale_ptr), 0.0)[:, None]
    wide = row.to(tl.int64)[:, None]
    dot = tl.zeros((ROWS,), tl.float32)
    for start in range(0, F, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (column < F)[None, :]
        at = wide * 2 * F + column[None, :]
        a = tl.load(ab_ptr + at, inside, 0.0).to(tl.float32)
        b = tl.load(ab_ptr + at + F, inside, 0.0).to(tl.float32)
        dh = tl.load(dh_ptr + wide * F + column[None, :], inside, 0.0).to(tl.float32)
        p, dp, z, _ = factors(a, b, kind, False)
        sigma = tl.exp(tl.load(sigma_ptr + slot * F + column, column < F, 0.0))[None, :]
        db = gate * dh * p + scale * z
        dsigma = scale * (sigma * sigma - 1.0)
        if seed_ptr is not None:
            noise = sigma * tl.randn(tl.load(seed_ptr), row[:, None] * F + column[None, :])
            dsigma += gate * dh * p * noise
            z += noise
        tl.store(part_ptr + tl.program_id(0) * F + column, tl.sum(dsigma, 0), column < F)
        dot += tl.sum(p * z * dh, 1)
        tl.store(dab_ptr + at, (gate * dh * dp * z).to(dab_ptr.dtype.element_ty), inside)
        tl.store(dab_ptr + at + F, db.to(dab_ptr.dtype.element_ty), inside)
    tl.store(dot_ptr + row, dot)


@triton.jit
def _sum_kernel(part_ptr, start_ptr, table_ptr, out_ptr, experts, F, ROWS: tl.constexpr,
                COLUMNS: tl.constexpr):  # fmt: skip
    """The sum of a generative expert's parts, in a fixed order."""
    expert, column = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if tl.load(table_ptr + expert) != GENERATIVE:
        return
    total = tl.zeros((COLUMNS,), tl.float32)
    for part in range(tl.load(start_ptr + expert) // ROWS, tl.load(start_ptr + expert + 1) // ROWS):
        total += tl.load(part_ptr + part * F + column, column < F, 0.0)
    tl.store(out_ptr + tl.load(table_ptr + experts + expert) * F + column, total, column < F)
