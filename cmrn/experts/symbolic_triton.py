"""The symbolic expert's inner function on CUDA: rows that chose a symbolic expert, one group of propositions at a time.

The definition is `cmrn.experts.symbolic`. A group's 2·size literals lie in one vector of `WIDE` places, those for in
its first half and those against in its second; places beyond `size` hold 0 and have no rules.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.experts.products_triton import halves
from cmrn.experts.units_triton import SYMBOLIC
from cmrn.routing.dispatch_triton import Plan

__all__ = ["chain", "chain_back"]

STEPS = 2
SPLITS = 8


def chain(
    ab_MF: Tensor, gh_MF: Tensor, gates_NK: Tensor, rules: tuple[Tensor, Tensor, Tensor], plan: Plan, table_2E: Tensor
) -> None:
    """Write gate · h in the rows of symbolic experts, from the evidence in ab_MF.

    rules: premises (S, groups, 2·size, 4·size) whose columns sum to 1, conjunction and strength (S, groups, 2·size) in
    [0, 1]; float32, S symbolic experts.
    """
    premises, conjunction, strength = rules
    groups, size = premises.shape[1], premises.shape[2] // 2
    _chain_kernel[(plan.expert_Q.shape[0], groups)](
        ab_MF, gh_MF, gates_NK.contiguous(), premises, conjunction, strength, plan.pair_M, plan.expert_Q, table_2E,
        table_2E.shape[1], gh_MF.shape[1], groups, BLOCK=plan.rows, **_constants(ab_MF, plan, size),
    )  # fmt: skip


def chain_back(
    dh_MF: Tensor, ab_MF: Tensor, dab_MF: Tensor, dots: Tensor, gates_NK: Tensor,
    rules: tuple[Tensor, Tensor, Tensor], plan: Plan, table_2E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the rules; writes dab and, for each group, ⟨h, dh⟩ (groups, M) in the rows of symbolic experts."""
    premises, conjunction, strength = rules
    count, groups, width, _ = premises.shape
    parts = premises.new_empty(SPLITS, *premises.shape)
    conjunctions, strengths = (premises.new_empty(SPLITS, *conjunction.shape) for _ in range(2))
    _chain_back_kernel[(table_2E.shape[1], groups, SPLITS)](
        dh_MF, ab_MF, dab_MF, dots, gates_NK.contiguous(), premises, conjunction, strength, plan.pair_M, plan.start_E,
        table_2E, parts, conjunctions, strengths, table_2E.shape[1], *dh_MF.shape, groups, count,
        **_constants(ab_MF, plan, width // 2),
    )  # fmt: skip
    return parts.sum(0), conjunctions.sum(0), strengths.sum(0)


def _constants(ab_MF: Tensor, plan: Plan, size: int) -> dict[str, int]:
    rows = min(64 if ab_MF.dtype != torch.float32 else 16, plan.rows)
    wide = max(16, triton.next_power_of_2(2 * size))
    return {"ROWS": rows, "SIZE": size, "WIDE": wide, "STEPS": STEPS, "num_warps": 4, "num_stages": 2}


@triton.jit
def _rule_places(slot, group, groups, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """(offset of each rule, that of its premises' weights, which of both exist) of a group's rules."""
    place = tl.arange(0, WIDE)
    half, inside = place // (WIDE // 2), place % (WIDE // 2)
    index, exists = half * SIZE + inside, inside < SIZE
    rule = (slot * groups + group) * 2 * SIZE
    weight = (rule + index[:, None]) * 4 * SIZE + index[None, :]
    return rule + index, weight, exists, exists[:, None] & exists[None, :]


@triton.jit
def _rules(premises_ptr, conjunction_ptr, strength_ptr, rule, weight, exists, both, SIZE: tl.constexpr):
    """(weights of the first premise, of the second, conjunction, strength) of a group's rules."""
    first = tl.load(premises_ptr + weight, both, 0.0)
    second = tl.load(premises_ptr + weight + 2 * SIZE, both, 0.0)
    conjunction = tl.load(conjunction_ptr + rule, exists, 0.0)[None, :]
    strength = tl.load(strength_ptr + rule, exists, 0.0)[None, :]
    return first, second, conjunction, strength


@triton.jit
def _evidence_places(row, group, F, SIZE: tl.constexpr, WIDE: tl.constexpr):
    """(offset of each literal's evidence, which exist)."""
    place = tl.arange(0, WIDE)
    half, inside = place // (WIDE // 2), place % (WIDE // 2)
    offset = row.to(tl.int64)[:, None] * 2 * F + (half * F + group * SIZE + inside)[None, :]
    return offset, (inside < SIZE)[None, :]


@triton.jit
def _apply(literals, first, second, conjunction, strength, narrow: tl.constexpr):
    """(first premise, second premise, body) of each rule, given the literals."""
    read = literals.to(narrow)
    f = tl.dot(read, first.to(narrow), input_precision="ieee")
    s = tl.dot(read, second.to(narrow), input_precision="ieee")
    return f, s, conjunction * f * s + (1.0 - conjunction) * (f + s - f * s)


@triton.jit
def _advance(literals, first, second, conjunction, strength, narrow: tl.constexpr, STEPS: tl.constexpr):
    """The literals after some steps."""
    for _ in tl.static_range(STEPS):
        body = _apply(literals, first, second, conjunction, strength, narrow)[2]
        literals += strength * body * (1.0 - literals)
    return literals


@triton.jit
def _chain_kernel(ab_ptr, gh_ptr, gate_ptr, premises_ptr, conjunction_ptr, strength_ptr, pair_ptr, expert_ptr,
                  table_ptr, experts, F, groups, BLOCK: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
                  WIDE: tl.constexpr, STEPS: tl.constexpr):  # fmt: skip
    block, group = tl.program_id(0), tl.program_id(1)
    expert = tl.load(expert_ptr + block)
    if expert < 0:
        return
    if tl.load(table_ptr + expert) != SYMBOLIC:
        return
    narrow: tl.constexpr = ab_ptr.dtype.element_ty
    rule, weight, exists, both = _rule_places(tl.load(table_ptr + experts + expert), group, groups, SIZE, WIDE)
    first, second, conjunction, strength = _rules(
        premises_ptr, conjunction_ptr, strength_ptr, rule, weight, exists, both, SIZE
    )
    for part in range(0, BLOCK, ROWS):
        row = block * BLOCK + part + tl.arange(0, ROWS)
        at, real = _evidence_places(row, group, F, SIZE, WIDE)
        literals = tl.where(real, tl.sigmoid(tl.load(ab_ptr + at, real, 0.0).to(tl.float32)), 0.0)
        literals = _advance(literals, first, second, conjunction, strength, narrow, STEPS)
        column = tl.arange(0, WIDE // 2)
        supporting, opposing = halves(literals, ROWS, WIDE)
        pair = tl.load(pair_ptr + row)
        gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
        out_ptrs = gh_ptr + row.to(tl.int64)[:, None] * F + (group * SIZE + column)[None, :]
        tl.store(out_ptrs, (gate * (supporting - opposing)).to(narrow), (column < SIZE)[None, :])


@triton.jit
def _chain_back_kernel(dh_ptr, ab_ptr, dab_ptr, dot_ptr, gate_ptr, premises_ptr, conjunction_ptr, strength_ptr,
                       pair_ptr, start_ptr, table_ptr, dpremises_ptr, dconjunction_ptr, dstrength_ptr, experts, M, F,
                       groups, count, ROWS: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr,
                       STEPS: tl.constexpr):  # fmt: skip
    """Every SPLITS-th stretch of an expert's rows, one group: gradient of the evidence, sums for the group's rules."""
    expert, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if tl.load(table_ptr + expert) != SYMBOLIC:
        return
    narrow: tl.constexpr = ab_ptr.dtype.element_ty
    slot = tl.load(table_ptr + experts + expert)
    rule, weight, exists, both = _rule_places(slot, group, groups, SIZE, WIDE)
    first, second, conjunction, strength = _rules(
        premises_ptr, conjunction_ptr, strength_ptr, rule, weight, exists, both, SIZE
    )
    dfirst, dsecond = tl.zeros((WIDE, WIDE), tl.float32), tl.zeros((WIDE, WIDE), tl.float32)
    dconjunction, dstrength = tl.zeros((WIDE,), tl.float32), tl.zeros((WIDE,), tl.float32)
    begin, end = tl.load(start_ptr + expert), tl.load(start_ptr + expert + 1)
    for start in range(begin + split * ROWS, end, tl.num_programs(2) * ROWS):
        row = start + tl.arange(0, ROWS)
        at, real = _evidence_places(row, group, F, SIZE, WIDE)
        evidence = tl.where(real, tl.sigmoid(tl.load(ab_ptr + at, real, 0.0).to(tl.float32)), 0.0)
        place = tl.arange(0, WIDE)
        half, inside = place // (WIDE // 2), place % (WIDE // 2)
        dh_ptrs = dh_ptr + row.to(tl.int64)[:, None] * F + (group * SIZE + inside)[None, :]
        dh = tl.load(dh_ptrs, real, 0.0).to(tl.float32) * (1.0 - 2.0 * half)[None, :]
        pair = tl.load(pair_ptr + row)
        gate = tl.load(gate_ptr + pair, pair >= 0, 0.0).to(tl.float32)[:, None]
        dliterals = gate * dh
        for back in tl.static_range(STEPS):
            literals = _advance(evidence, first, second, conjunction, strength, narrow, STEPS - 1 - back)
            f, s, body = _apply(literals, first, second, conjunction, strength, narrow)
            if back == 0:
                after = literals + strength * body * (1.0 - literals)
                tl.store(dot_ptr + group.to(tl.int64) * M + row, tl.sum(after * dh, 1))
            dadded = dliterals * (1.0 - literals)
            dstrength += tl.sum(dadded * body, 0)
            dbody = dadded * strength
            dconjunction += tl.sum(dbody * (2.0 * f * s - f - s), 0)
            df = (dbody * (conjunction * s + (1.0 - conjunction) * (1.0 - s))).to(narrow)
            ds = (dbody * (conjunction * f + (1.0 - conjunction) * (1.0 - f))).to(narrow)
            read = tl.trans(literals.to(narrow))
            dfirst = tl.dot(read, df, dfirst, input_precision="ieee")
            dsecond = tl.dot(read, ds, dsecond, input_precision="ieee")
            dliterals *= 1.0 - strength * body
            dliterals = tl.dot(df, tl.trans(first.to(narrow)), dliterals, input_precision="ieee")
            dliterals = tl.dot(ds, tl.trans(second.to(narrow)), dliterals, input_precision="ieee")
        tl.store(dab_ptr + at, (dliterals * evidence * (1.0 - evidence)).to(narrow), real)
    part = split.to(tl.int64) * count * groups * 2 * SIZE
    tl.store(dpremises_ptr + part * 4 * SIZE + weight, dfirst, both)
    tl.store(dpremises_ptr + part * 4 * SIZE + weight + 2 * SIZE, dsecond, both)
    tl.store(dconjunction_ptr + part + rule, dconjunction, exists)
    tl.store(dstrength_ptr + part + rule, dstrength, exists)
