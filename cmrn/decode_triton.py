"""What layers share in reading one token a row: a norm with its projections, and the way back to the stream.

When a text is written, a step costs what its launches cost. So a layer of one token is three launches: its norm and all
projections; its own kernel; the gate, the output projection and the residual. A router is one launch, experts are two.
Nothing here carries gradient. Sums and products are float32 whatever the types; each program computes anew what all
need, a norm, rather than waits for it.

A token of `small.yaml`, 6 blocks of which 2 read memory, takes 54 launches in a captured step: 6 · (3 + 1 + 2) + 2 · 3
in the blocks, 1 for the final norm and the head, 1 for the events, 7 of torch for the embedding, places, mean of the
routing and results, 1 to copy the state, 2 to draw.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["convolve_one", "normalised", "output_one", "pick", "project_one", "unit_length"]

PROGRAM_VALUES = 4096
"""Weights that a program multiplies: 32 a thread, all asked for at once."""


def project_one(x_ND: Tensor, norm: Tensor, eps: float, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """[y_NR, u_ND] in `dtype`: u = norm(x), y = u through every weight, side by side; one launch."""
    result: list[Tensor] = torch.ops.cmrn.project_one(x_ND, norm, eps, weights, dtype)
    return result


def output_one(
    o_NI: Tensor,
    projected_NR: Tensor,
    norm: Tensor | None,
    eps: float,
    heads: int,
    weight_DI: Tensor,
    x_ND: Tensor,
    squares_NHS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(x + W (norm(o) · SiLU(gate)), surprise_N): the residual stream after a layer, one launch.

    The norm is over each head of o and left out where it is None; the gate stands in `projected_NR` behind three times
    the width of o. surprise_N: the mean over heads of the root of the sum of squares_NHS, 0 without them; float32.
    """
    x_ND, surprise_N = torch.ops.cmrn.output_one(o_NI, projected_NR, norm, eps, heads, weight_DI, x_ND, squares_NHS)
    return x_ND, surprise_N


@torch.library.custom_op("cmrn::project_one", mutates_args=())
def _project_one(x_ND: Tensor, norm: Tensor, eps: float, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    tokens, width = x_ND.shape
    y_NR, u_ND = _empty_projections(x_ND, norm, eps, weights, dtype)
    wide = triton.next_power_of_2(width)
    rows = max(1, PROGRAM_VALUES // wide)
    _project_kernel[(tokens, triton.cdiv(y_NR.shape[1], rows))](
        x_ND.contiguous(), norm, tuple(weight.contiguous() for weight in weights), y_NR, u_ND, eps, width,
        y_NR.shape[1], FIRST=tuple(accumulate([0, *(weight.shape[0] for weight in weights[:-1])])),
        COUNT=len(weights), ROWS=rows, WIDTH=wide,
    )  # fmt: skip
    return [y_NR, u_ND]


@_project_one.register_fake
def _empty_projections(
    x_ND: Tensor, norm: Tensor, eps: float, weights: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    outputs = sum(weight.shape[0] for weight in weights)
    return [x_ND.new_empty(x_ND.shape[0], outputs, dtype=dtype), x_ND.new_empty(x_ND.shape, dtype=dtype)]


@torch.library.custom_op("cmrn::output_one", mutates_args=())
def _output_one(
    o_NI: Tensor,
    projected_NR: Tensor,
    norm: Tensor | None,
    eps: float,
    heads: int,
    weight_DI: Tensor,
    x_ND: Tensor,
    squares_NHS: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (tokens, inner), width = o_NI.shape, x_ND.shape[1]
    y_ND, surprise_N = _empty_output(o_NI, projected_NR, norm, eps, heads, weight_DI, x_ND, squares_NHS)
    tile = triton.next_power_of_2(heads), triton.next_power_of_2(inner // heads)
    strips = 1 if squares_NHS is None else squares_NHS.shape[2]
    rows = max(1, PROGRAM_VALUES // (tile[0] * tile[1]))
    _output_kernel[(tokens, triton.cdiv(width, rows))](
        o_NI, projected_NR, norm, weight_DI.contiguous(), x_ND.contiguous(), squares_NHS, y_ND, surprise_N, eps, width,
        heads, inner // heads, projected_NR.shape[1], strips, ROWS=rows, HEADS=tile[0], WIDTH=tile[1],
        STRIPS=triton.next_power_of_2(strips),
    )  # fmt: skip
    return y_ND, surprise_N


@_output_one.register_fake
def _empty_output(
    o_NI: Tensor,
    projected_NR: Tensor,
    norm: Tensor | None,
    eps: float,
    heads: int,
    weight_DI: Tensor,
    x_ND: Tensor,
    squares_NHS: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(x_ND.shape[0], dtype=torch.float32)


@triton.jit
def pick(pointers, index, COUNT: tl.constexpr):
    """The pointer with that number."""
    pointer = pointers[0]
    for i in tl.static_range(1, COUNT):
        pointer = tl.where(index == i, pointers[i], pointer)
    return pointer


@triton.jit
def normalised(x, weight, width, eps, inside):
    """(x − mean) / sqrt(var + eps) · weight over the last dimension, which ends at `width`; zeros beyond it."""
    mean = tl.sum(x, -1, keep_dims=True) / width
    centred = tl.where(inside, x - mean, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred, -1, keep_dims=True) / width + eps) * weight


@triton.jit
def unit_length(x):
    """A vector over its norm, 0 for one shorter than 1e-6."""
    square = tl.sum(x * x, 0)
    return x * tl.where(square > 1e-12, tl.rsqrt(tl.maximum(square, 1e-12)), 0.0)


@triton.jit
def convolve_one(x, weight, tail, after, joined, writes, channel, inside, channels, REACH: tl.constexpr):
    """Σ_l w_{J-1-l} · x_{t-l} of one token; the tail after it goes to `after` where `writes`.

    joined: whether the token's document began before it, else the tail counts as zeros.
    """
    y = x * tl.load(weight + REACH * channels + channel, inside, 0.0).to(tl.float32)
    for lag in tl.static_range(1, REACH + 1):
        place = (REACH - lag) * channels + channel
        seen = tl.load(tail + place, inside & joined, 0.0).to(tl.float32)
        y += seen * tl.load(weight + place, inside, 0.0).to(tl.float32)
        if lag < REACH:
            tl.store(after + place - channels, seen, inside & writes)
    tl.store(after + (REACH - 1) * channels + channel, x, inside & writes)
    return y


@triton.jit
def _project_kernel(x_ptr, norm_ptr, weights, y_ptr, u_ptr, eps, D, outputs, FIRST: tl.constexpr, COUNT: tl.constexpr,
                    ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Some outputs of one token; the weights are asked for before the norm is computed."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, d = part * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    starts = weights[0] + row.to(tl.int64) * D
    for i in tl.static_range(1, COUNT):
        starts = tl.where(row >= FIRST[i], weights[i] + (row - FIRST[i]).to(tl.int64) * D, starts)
    inside = d < D
    weight = tl.load(starts[:, None] + d[None, :], (row < outputs)[:, None] & inside[None, :], 0.0)
    x = tl.load(x_ptr + token * D + d, inside, 0.0).to(tl.float32)
    u = normalised(x, tl.load(norm_ptr + d, inside, 0.0).to(tl.float32), D, eps, inside).to(u_ptr.dtype.element_ty)
    y = tl.sum(weight.to(tl.float32) * u.to(tl.float32)[None, :], 1)
    tl.store(y_ptr + token * outputs + row, y.to(y_ptr.dtype.element_ty), row < outputs)
    tl.store(u_ptr + token * D + d, u, inside & (part == 0))


@triton.jit
def _output_kernel(o_ptr, projected_ptr, norm_ptr, weight_ptr, x_ptr, square_ptr, y_ptr, surprise_ptr, eps, D, heads,
                   width, stride, strips, ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
                   STRIPS: tl.constexpr):  # fmt: skip
    """Some features of one token's stream; the first program also sums up the surprise."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head, c = part * ROWS + tl.arange(0, ROWS), tl.arange(0, HEADS), tl.arange(0, WIDTH)
    inner = heads * width
    inside = (head < heads)[:, None] & (c < width)[None, :]
    place = head[:, None] * width + c[None, :]
    weight = tl.load(
        weight_ptr + row[:, None, None] * inner + place[None], (row < D)[:, None, None] & inside[None], 0.0
    )
    o = tl.load(o_ptr + token * inner + place, inside, 0.0).to(tl.float32)
    if norm_ptr is not None:
        scale = tl.load(norm_ptr + c, c < width, 0.0).to(tl.float32)[None, :]
        o = normalised(o, scale, width, eps, inside)
    gate = tl.load(projected_ptr + token * stride + 3 * inner + place, inside, 0.0).to(tl.float32)
    o *= gate * tl.sigmoid(gate)
    x = tl.load(x_ptr + token * D + row, row < D, 0.0).to(tl.float32)
    y = x + tl.sum(tl.sum(weight.to(tl.float32) * o[None], 2), 1)
    tl.store(y_ptr + token * D + row, y.to(y_ptr.dtype.element_ty), row < D)
    if part == 0:
        surprise = tl.zeros((HEADS,), tl.float32)
        if square_ptr is not None:
            strip = tl.arange(0, STRIPS)[None, :]
            read = (head < heads)[:, None] & (strip < strips)
            surprise = tl.sum(tl.load(square_ptr + (token * heads + head[:, None]) * strips + strip, read, 0.0), 1)
        tl.store(surprise_ptr + token, tl.sum(tl.sqrt(surprise), 0) / heads)
