"""The mixture of a few tokens, as when a text is written: two launches that read the chosen experts' weights alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import pick
from cmrn.experts.units_triton import PATTERN, factors

__all__ = ["mixture_of_few"]


def mixture_of_few(
    x_ND: Tensor, context_ND: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, ups: list[Tensor],
    downs: list[Tensor], table_2E: Tensor, norm: Tensor | None = None, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """y_ND = Σ_k gate · expert(x), of general and pattern experts, which read `context_ND`; carries no gradient.

    Weights beyond those that table_2E counts are one expert's that every token reads, with a gate of 1. With the weight
    of a norm it is the residual stream x + Σ_k gate · expert(norm(x)). Sums and products are float32 whatever the
    types.
    """
    y_ND: Tensor = torch.ops.cmrn.mixture_of_few(
        x_ND, context_ND, indices_NK, gates_NK, ups, downs, table_2E, norm, eps
    )
    return y_ND


@torch.library.custom_op("cmrn::mixture_of_few", mutates_args=())
def _mixture_of_few(
    x_ND: Tensor, context_ND: Tensor | None, indices_NK: Tensor, gates_NK: Tensor, ups: list[Tensor],
    downs: list[Tensor], table_2E: Tensor, norm: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    (tokens, width), hidden, experts = x_ND.shape, downs[0].shape[1], table_2E.shape[1]
    reads = indices_NK.shape[1] + len(ups) - experts
    h_RF = torch.empty(tokens * reads, hidden, dtype=torch.float32, device=x_ND.device)
    y_ND = torch.empty_like(x_ND, memory_format=torch.contiguous_format)
    x_ND, indices_NK = x_ND.contiguous(), indices_NK.contiguous()
    same = {"CHOICES": indices_NK.shape[1], "READS": reads, "COUNT": len(ups), "FEATURES": 4, "num_warps": 4}
    _few_up_kernel[(tokens * reads, triton.cdiv(hidden, 4))](
        x_ND, None if context_ND is None else context_ND.contiguous(), norm, tuple(ups), indices_NK, table_2E, h_RF,
        eps, width, hidden, experts, WIDTH=triton.next_power_of_2(width), DEPTH=_depth(width), **same,
    )  # fmt: skip
    _few_down_kernel[(tokens, triton.cdiv(width, 4))](
        h_RF, tuple(downs), indices_NK, gates_NK.contiguous(), None if norm is None else x_ND, y_ND, width, hidden,
        experts, DEPTH=_depth(hidden), **same,
    )  # fmt: skip
    return y_ND


@_mixture_of_few.register_fake
def _(x_ND: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x_ND, memory_format=torch.contiguous_format)


def _depth(width: int) -> int:
    """Columns multiplied at once: all of a usual width, so that its weights are asked for together."""
    return min(512, int(triton.next_power_of_2(width)))


@triton.jit
def _few_up_kernel(x_ptr, context_ptr, norm_ptr, ups, index_ptr, table_ptr, h_ptr, eps, D, F, experts,
                   CHOICES: tl.constexpr, READS: tl.constexpr, COUNT: tl.constexpr, FEATURES: tl.constexpr,
                   WIDTH: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """Some features of h = inner(up x), of one token and one expert that reads it."""
    read = tl.program_id(0)
    token, k = read // READS, read % READS
    chosen = tl.load(index_ptr + token * CHOICES + k, k < CHOICES, 0).to(tl.int32)
    expert = tl.where(k < CHOICES, chosen, experts + k - CHOICES)
    kind = tl.load(table_ptr + expert, k < CHOICES, 0)
    source = x_ptr
    if context_ptr is not None:
        source = tl.where(kind == PATTERN, context_ptr, x_ptr)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = (feature < F)[:, None]
    weight = pick(ups, expert, COUNT) + feature[:, None] * D
    mean, scale = 0.0, 1.0
    if norm_ptr is not None:
        d = tl.arange(0, WIDTH)
        x = tl.load(x_ptr + token * D + d, d < D, 0.0).to(tl.float32)
        mean = tl.sum(x, 0) / D
        centred = tl.where(d < D, x - mean, 0.0)
        scale = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    a, b = tl.zeros((FEATURES, DEPTH), tl.float32), tl.zeros((FEATURES, DEPTH), tl.float32)
    for first in range(0, D, DEPTH):
        d = first + tl.arange(0, DEPTH)
        mask = inside & (d < D)[None, :]
        up_a, up_b = tl.load(weight + d[None, :], mask, 0.0), tl.load(weight + F * D + d[None, :], mask, 0.0)
        x = tl.load(source + token * D + d, d < D, 0.0).to(tl.float32)
        if norm_ptr is not None:
            x = (x - mean) * scale * tl.load(norm_ptr + d, d < D, 0.0).to(tl.float32)
        a += up_a.to(tl.float32) * x[None, :]
        b += up_b.to(tl.float32) * x[None, :]
    p, _, q, _ = factors(tl.sum(a, 1), tl.sum(b, 1), kind, context_ptr is not None)
    tl.store(h_ptr + read * F + feature, p * q, feature < F)


@triton.jit
def _few_down_kernel(h_ptr, downs, index_ptr, gate_ptr, x_ptr, y_ptr, D, F, experts, CHOICES: tl.constexpr,
                     READS: tl.constexpr, COUNT: tl.constexpr, FEATURES: tl.constexpr,
                     DEPTH: tl.constexpr):  # fmt: skip
    """Some features of y = Σ gate · down h, of one token; x is added where there is one."""
    token = tl.program_id(0)
    feature = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inside = (feature < D)[:, None]
    y = tl.zeros((FEATURES, DEPTH), tl.float32)
    for k in tl.static_range(READS):
        expert, gate = experts + k - CHOICES, 1.0
        if k < CHOICES:
            expert = tl.load(index_ptr + token * CHOICES + k).to(tl.int32)
            gate = tl.load(gate_ptr + token * CHOICES + k).to(tl.float32)
        weight = pick(downs, expert, COUNT) + feature[:, None] * F
        for first in range(0, F, DEPTH):
            f = first + tl.arange(0, DEPTH)
            h = tl.load(h_ptr + (token * READS + k) * F + f, f < F, 0.0)[None, :]
            y += gate * tl.load(weight + f[None, :], inside & (f < F)[None, :], 0.0).to(tl.float32) * h
    y = tl.sum(y, 1)
    if x_ptr is not None:
        y += tl.load(x_ptr + token * D + feature, feature < D, 0.0).to(tl.float32)
    tl.store(y_ptr + token * D + feature, y.to(y_ptr.dtype.element_ty), feature < D)
