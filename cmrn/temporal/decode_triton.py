"""A temporal layer for one token a row on CUDA: three launches, of which the second is the rule itself.

That one is the convolution, SiLU and unit length, the rates, the delta rule and the squares of its error, a strip of
the state a program. What is carried is written anew, never in place, since records do not change.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import convolve_one, output_one, project_one, unit_length

__all__ = ["layer_one"]

STRIP = 16
"""Columns of the state that a program holds."""


def layer_one(
    x_ND: Tensor,
    norm: Tensor,
    weights: list[Tensor],
    conv_JC: Tensor,
    rates: tuple[Tensor, Tensor, float],
    output_norm: Tensor,
    output_DI: Tensor,
    eps: float,
    dtype: torch.dtype,
    start_N: Tensor | None,
    tail_NRC: Tensor,
    state_NHKV: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_ND, tail, state, surprise_N) after one token, as `TemporalLayer.forward` defines them; no gradient.

    weights: of query, key, value, gate, decay and beta. rates: log A, b and the timescale. dtype: what matrix products
    run in, and the tail's type; the state is float32. start_N: True where a document starts with this token.
    """
    heads = state_NHKV.shape[1]
    projected_NR, _ = project_one(x_ND, norm, eps, weights, dtype)
    o_NI, tail_NRC, state_NHKV, squares_NHS = torch.ops.cmrn.rule_one(
        projected_NR, tail_NRC, conv_JC, *rates, start_N, state_NHKV
    )
    x_ND, surprise_N = output_one(o_NI, projected_NR, output_norm, eps, heads, output_DI, x_ND, squares_NHS)
    return x_ND, tail_NRC, state_NHKV, surprise_N


@torch.library.custom_op("cmrn::rule_one", mutates_args=())
def _rule_one(
    projected_NR: Tensor,
    tail_NRC: Tensor,
    conv_JC: Tensor,
    log_rate_H: Tensor,
    bias_H: Tensor,
    timescale: float,
    start_N: Tensor | None,
    state_NHKV: Tensor,
) -> list[Tensor]:
    """[o_NI in float32, tail, state, squares of the error of each head and strip]."""
    rows, heads, width = state_NHKV.shape[:3]
    o_NI, after_NRC, next_NHKV, squares_NHS = _empty_rule(
        projected_NR, tail_NRC, conv_JC, log_rate_H, bias_H, timescale, start_N, state_NHKV
    )
    _rule_kernel[(rows, heads, squares_NHS.shape[2])](
        projected_NR, tail_NRC.contiguous(), conv_JC.contiguous(), log_rate_H, bias_H,
        None if start_N is None else start_N.contiguous(), state_NHKV.contiguous(), o_NI, after_NRC, next_NHKV,
        squares_NHS, timescale, heads, width, projected_NR.shape[1], REACH=conv_JC.shape[0] - 1,
        WIDTH=triton.next_power_of_2(width), STRIP=STRIP,
    )  # fmt: skip
    return [o_NI, after_NRC, next_NHKV, squares_NHS]


@_rule_one.register_fake
def _empty_rule(
    projected_NR: Tensor,
    tail_NRC: Tensor,
    conv_JC: Tensor,
    log_rate_H: Tensor,
    bias_H: Tensor,
    timescale: float,
    start_N: Tensor | None,
    state_NHKV: Tensor,
) -> list[Tensor]:
    rows, heads, width = state_NHKV.shape[:3]
    return [
        state_NHKV.new_empty(rows, heads * width),
        projected_NR.new_empty(tail_NRC.shape),
        state_NHKV.new_empty(state_NHKV.shape),
        state_NHKV.new_empty(rows, heads, -(-width // STRIP)),
    ]


@triton.jit
def _softplus(x):
    """log(1 + e^x), exact where e^x is small."""
    power = tl.exp(tl.minimum(x, 20.0))
    whole = 1.0 + power
    small = tl.where(whole == 1.0, power, tl.log(whole) * (power / tl.where(whole == 1.0, 1.0, whole - 1.0)))
    return tl.where(x > 20.0, x, small)


@triton.jit
def _rule_kernel(p_ptr, tail_ptr, conv_ptr, rate_ptr, bias_ptr, start_ptr, state_ptr, o_ptr, after_ptr, next_ptr,
                 square_ptr, timescale, heads, width, stride, REACH: tl.constexpr, WIDTH: tl.constexpr,
                 STRIP: tl.constexpr):  # fmt: skip
    """One row, one head and a strip of its values; q and k are made by every strip, their tail written by the first."""
    token, head, strip = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    inner = heads * width
    channels = 3 * inner
    key, value = tl.arange(0, WIDTH), strip * STRIP + tl.arange(0, STRIP)
    inside, kept = key < width, value < width
    place = (token * heads + head) * width * width + key[:, None] * width + value[None, :]
    mask = inside[:, None] & kept[None, :]
    state = tl.load(state_ptr + place, mask, 0.0)

    joined = head < heads
    if start_ptr is not None:
        joined = tl.load(start_ptr + token) == 0
    p_ptr += token * stride
    tail_ptr += token * REACH * channels
    after_ptr += token * REACH * channels
    at = head * width + key
    q = tl.load(p_ptr + at, inside, 0.0).to(tl.float32)
    k = tl.load(p_ptr + inner + at, inside, 0.0).to(tl.float32)
    v = tl.load(p_ptr + 2 * inner + head * width + value, kept, 0.0).to(tl.float32)
    q = convolve_one(q, conv_ptr, tail_ptr, after_ptr, joined, strip == 0, at, inside, channels, REACH)
    k = convolve_one(k, conv_ptr, tail_ptr, after_ptr, joined, strip == 0, inner + at, inside, channels, REACH)
    at = 2 * inner + head * width + value
    v = convolve_one(v, conv_ptr, tail_ptr, after_ptr, joined, strip >= 0, at, kept, channels, REACH)
    q, k, v = unit_length(q * tl.sigmoid(q)), unit_length(k * tl.sigmoid(k)), v * tl.sigmoid(v)

    decay = tl.load(p_ptr + 4 * inner + head).to(tl.float32) + tl.load(bias_ptr + head).to(tl.float32)
    rate = tl.exp(tl.load(rate_ptr + head).to(tl.float32)) / timescale
    alpha = tl.where(joined, tl.exp(-rate * _softplus(decay)), 0.0)
    beta = tl.sigmoid(tl.load(p_ptr + 4 * inner + heads + head).to(tl.float32))
    state *= alpha
    error = beta * (v - tl.sum(state * k[:, None], 0))
    o = tl.sum(state * q[:, None], 0) + tl.sum(q * k, 0) * error
    tl.store(next_ptr + place, state + k[:, None] * error[None, :], mask)
    tl.store(o_ptr + token * inner + head * width + value, o, kept)
    strips = tl.num_programs(2)
    tl.store(square_ptr + (token * heads + head) * strips + strip, tl.sum(tl.where(kept, error * error, 0.0), 0))
