"""The router for one token a row on CUDA, in one launch: norm, convolution, tags, logits and the choice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import convolve_one
from cmrn.routing.choice_triton import pick_best

__all__ = ["route_one"]

TILE = 16384
"""Weights of the parser's projection that the program multiplies at once: as many as its registers hold."""


def route_one(
    x_ND: Tensor,
    norm: Tensor,
    eps: float,
    conv_JC: Tensor,
    tail_NRC: Tensor,
    start_N: Tensor | None,
    projection_RD: Tensor,
    weight_ER: Tensor,
    bias_E: Tensor,
    temperature: Tensor,
    k: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logits_NE, weights_NE, indices_NK, gates_NK, tail) of one token, without noise and without gradient.

    As `SemanticParser`, `RoutingNetwork` and `choose_experts` define them. dtype: what matrix products run in, and the
    tail's type; logits, weights and gates are float32.
    """
    logits_NE, weights_NE, indices_NK, gates_NK, tail_NRC = torch.ops.cmrn.route_one(
        x_ND, norm, eps, conv_JC, tail_NRC, start_N, projection_RD, weight_ER, bias_E, temperature, k, dtype
    )
    return logits_NE, weights_NE, indices_NK, gates_NK, tail_NRC


@torch.library.custom_op("cmrn::route_one", mutates_args=())
def _route_one(
    x_ND: Tensor,
    norm: Tensor,
    eps: float,
    conv_JC: Tensor,
    tail_NRC: Tensor,
    start_N: Tensor | None,
    projection_RD: Tensor,
    weight_ER: Tensor,
    bias_E: Tensor,
    temperature: Tensor,
    k: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    (rows, width), (experts, tags) = x_ND.shape, weight_ER.shape
    outputs: list[Tensor] = _empty_route(
        x_ND, norm, eps, conv_JC, tail_NRC, start_N, projection_RD, weight_ER, bias_E, temperature, k, dtype
    )
    wide, tall = triton.next_power_of_2(width), triton.next_power_of_2(tags)
    _route_kernel[(rows,)](
        x_ND.contiguous(), norm, conv_JC.contiguous(), tail_NRC.contiguous(),
        None if start_N is None else start_N.contiguous(), projection_RD.contiguous(), weight_ER.contiguous(), bias_E,
        temperature, *outputs, eps, width, tags, experts, REACH=conv_JC.shape[0] - 1, CHOICES=k, WIDTH=wide, TAGS=tall,
        EXPERTS=triton.next_power_of_2(experts), DEPTH=min(wide, max(16, TILE // tall)), num_warps=8,
    )  # fmt: skip
    return outputs


@_route_one.register_fake
def _empty_route(
    x_ND: Tensor,
    norm: Tensor,
    eps: float,
    conv_JC: Tensor,
    tail_NRC: Tensor,
    start_N: Tensor | None,
    projection_RD: Tensor,
    weight_ER: Tensor,
    bias_E: Tensor,
    temperature: Tensor,
    k: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    rows, experts = x_ND.shape[0], weight_ER.shape[0]
    logits_NE, weights_NE = (x_ND.new_empty(rows, experts, dtype=torch.float32) for _ in range(2))
    indices_NK = x_ND.new_empty(rows, k, dtype=torch.int64)
    gates_NK = x_ND.new_empty(rows, k, dtype=torch.float32)
    return [logits_NE, weights_NE, indices_NK, gates_NK, x_ND.new_empty(tail_NRC.shape, dtype=dtype)]


@triton.jit
def _route_kernel(x_ptr, norm_ptr, conv_ptr, tail_ptr, start_ptr, projection_ptr, weight_ptr, bias_ptr,
                  temperature_ptr, logit_ptr, share_ptr, index_ptr, gate_ptr, after_ptr, eps, D, tags, experts,
                  REACH: tl.constexpr, CHOICES: tl.constexpr, WIDTH: tl.constexpr, TAGS: tl.constexpr,
                  EXPERTS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    token, d, tag = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, TAGS)
    joined = tags > 0
    if start_ptr is not None:
        joined = tl.load(start_ptr + token) == 0
    x_ptr += token.to(tl.int64) * D
    tail_ptr += token.to(tl.int64) * REACH * D
    after_ptr += token.to(tl.int64) * REACH * D
    x = tl.load(x_ptr + d, d < D, 0.0).to(tl.float32)
    mean = tl.sum(x, 0) / D
    centred = tl.where(d < D, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / D + eps)
    total = tl.zeros((TAGS, DEPTH), tl.float32)
    for first in range(0, D, DEPTH):
        at = first + tl.arange(0, DEPTH)
        inside = at < D
        weight = tl.load(projection_ptr + tag[:, None] * D + at[None, :], (tag < tags)[:, None] & inside[None, :], 0.0)
        u = (tl.load(x_ptr + at, inside, 0.0).to(tl.float32) - mean) * scale
        u *= tl.load(norm_ptr + at, inside, 0.0).to(tl.float32)
        u = u.to(after_ptr.dtype.element_ty).to(tl.float32)
        mixed = convolve_one(u, conv_ptr, tail_ptr, after_ptr, joined, tags > 0, at, inside, D, REACH)
        total += weight.to(tl.float32) * mixed[None, :]
    spoken = tl.sum(total, 1)
    spoken *= tl.sigmoid(spoken)

    expert = tl.arange(0, EXPERTS)
    exists = expert < experts
    inside = exists[:, None] & (tag < tags)[None, :]
    weight = tl.load(weight_ptr + expert[:, None] * tags + tag[None, :], inside, 0.0).to(tl.float32)
    logits = tl.sum(weight * spoken[None, :], 1)
    tl.store(logit_ptr + token * experts + expert, logits, exists)
    scaled = (logits / tl.load(temperature_ptr).to(tl.float32))[None, :]
    ranked = scaled + tl.load(bias_ptr + expert, exists, 0.0).to(tl.float32)[None, :]
    row = token + tl.arange(0, 1)
    pick_best(scaled, ranked, share_ptr, index_ptr, gate_ptr, row, expert[None, :], row >= 0, experts, CHOICES, 1,
              EXPERTS)  # fmt: skip
