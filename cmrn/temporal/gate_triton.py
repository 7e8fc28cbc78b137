"""What stands on both sides of the delta rule on CUDA: the rates before it, the gated output norm after it.

Both read columns of the layer's one product, (B,T,P) with dense columns, and write their gradients into columns of its
gradient, so that nothing is cut out or put together. All computes in float32.
"""

# A kernel's arguments have no Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.convolution_kernels_triton import sigmoid
from cmrn.sums_triton import sum_rows

__all__ = ["Rates", "gate", "gate_back", "rates", "rates_back"]

TOKENS = 64
TILE_VALUES = 512
TILES = 16
"""Tiles of the gated norm whose gradients a program makes, one after the other."""


class Rates(NamedTuple):
    """What turns columns into rates: log A and the bias of each head, the timescale; starts and real tokens, if any."""

    log_rate_H: Tensor
    bias_H: Tensor
    timescale: float
    start_BT: Tensor | None
    real_BT: Tensor | None


def rates(columns_BTP: Tensor, given: Rates) -> tuple[Tensor, Tensor]:
    """(g, β), (B,T,H) float32, of the columns (decay, β): g = −A · softplus(decay + bias) / timescale, β = sigmoid.

    g is -inf where a document begins; both are 0 at padding.
    """
    batch, length, _ = columns_BTP.shape
    heads, tokens = given.log_rate_H.shape[0], batch * length
    g_BTH, beta_BTH = (columns_BTP.new_empty(batch, length, heads, dtype=torch.float32) for _ in range(2))
    _rates_kernel[(triton.cdiv(tokens, TOKENS),)](
        columns_BTP, *_conditions(columns_BTP, given), g_BTH, beta_BTH, tokens, _token_stride(columns_BTP),
        given.timescale, H=heads, BLOCK=triton.next_power_of_2(heads), TOKENS=TOKENS,
        START=given.start_BT is not None, REAL=given.real_BT is not None, num_warps=1,
    )  # fmt: skip
    return g_BTH, beta_BTH


def rates_back(
    grad_g_BTH: Tensor, grad_beta_BTH: Tensor, columns_BTP: Tensor, given: Rates, grad_BTP: Tensor
) -> tuple[Tensor, Tensor]:
    """(gradient of log A, of the bias): fills grad_BTP, as wide as the columns, zeros in what pads them."""
    heads, tokens = given.log_rate_H.shape[0], columns_BTP.shape[0] * columns_BTP.shape[1]
    programs = triton.cdiv(tokens, TOKENS)
    partial = columns_BTP.new_empty(2, programs, heads, dtype=torch.float32)
    _rates_back_kernel[(programs,)](
        grad_g_BTH.contiguous(), grad_beta_BTH.contiguous(), columns_BTP, *_conditions(columns_BTP, given), grad_BTP,
        partial, tokens, _token_stride(columns_BTP), _token_stride(grad_BTP), grad_BTP.shape[2], given.timescale,
        H=heads, BLOCK=triton.next_power_of_2(heads), TOKENS=TOKENS,
        PADDING=triton.next_power_of_2(max(1, grad_BTP.shape[2] - 2 * heads)),
        START=given.start_BT is not None, REAL=given.real_BT is not None, num_warps=1,
    )  # fmt: skip
    return sum_rows(partial[0], given.log_rate_H.dtype), sum_rows(partial[1], given.bias_H.dtype)


def gate(o_BTHV: Tensor, gate_BTI: Tensor, weight_V: Tensor, eps: float) -> Tensor:
    """norm(o) · weight · silu(gate), (B,T,H·V) in the type of o, the norm over each head's V channels."""
    batch, length, heads, width = o_BTHV.shape
    result = o_BTHV.new_empty(batch, length, heads * width)
    rows, block, tile = _tiles(o_BTHV)
    _gate_kernel[(triton.cdiv(rows, tile),)](
        o_BTHV.contiguous(), gate_BTI, weight_V, result, rows, heads, _token_stride(gate_BTI), eps,
        V=width, BLOCK=block, TILE=tile, num_warps=1,
    )  # fmt: skip
    return result


def gate_back(
    grad_BTI: Tensor, o_BTHV: Tensor, gate_BTI: Tensor, weight_V: Tensor, eps: float, grad_gate_BTI: Tensor
) -> tuple[Tensor, Tensor]:
    """(gradient of o, of the weight): fills grad_gate_BTI."""
    rows, block, tile = _tiles(o_BTHV)
    heads, width = o_BTHV.shape[2:]
    programs = triton.cdiv(rows, tile * TILES)
    grad_o = torch.empty_like(o_BTHV, memory_format=torch.contiguous_format)
    partial = o_BTHV.new_empty(programs, width, dtype=torch.float32)
    _gate_back_kernel[(programs,)](
        grad_BTI.contiguous(), o_BTHV.contiguous(), gate_BTI, weight_V, grad_o, grad_gate_BTI, partial, rows, heads,
        _token_stride(gate_BTI), _token_stride(grad_gate_BTI), eps,
        V=width, BLOCK=block, TILE=tile, TILES=TILES, num_warps=1,
    )  # fmt: skip
    return grad_o, sum_rows(partial, weight_V.dtype)


def _token_stride(x_BTC: Tensor) -> int:
    """Values from one token's columns to the next's, the same within a row and from row to row."""
    assert x_BTC.stride() == (x_BTC.shape[1] * x_BTC.stride(1), x_BTC.stride(1), 1), "columns of a dense product"
    return x_BTC.stride(1)


def _conditions(columns_BTP: Tensor, given: Rates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    start = columns_BTP if given.start_BT is None else given.start_BT.contiguous()
    real = columns_BTP if given.real_BT is None else given.real_BT.contiguous()
    return given.log_rate_H, given.bias_H, start, real


def _tiles(o_BTHV: Tensor) -> tuple[int, int, int]:
    """Rows of all heads, the block of their width, and rows of a tile."""
    block = triton.next_power_of_2(o_BTHV.shape[-1])
    return o_BTHV.numel() // o_BTHV.shape[-1], block, max(1, TILE_VALUES // block)


@triton.jit
def _softplus(a):
    """max(a, 0) + log1p(e^-|a|), the logarithm corrected for the rounding of its argument (Kahan)."""
    small = tl.exp(-tl.abs(a))
    whole = 1.0 + small
    rest = tl.where(whole == 1.0, small, tl.log(whole) * (small / tl.where(whole == 1.0, 1.0, whole - 1.0)))
    return tl.maximum(a, 0.0) + rest


@triton.jit
def _inputs(
    columns, log_rate, bias, start, real, token, head, mask, stride, timescale, H: tl.constexpr, START: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """(decay + bias, β's column, A / timescale, whether the decay counts, whether β does) of tokens x heads."""
    place = columns + token[:, None].to(tl.int64) * stride + head[None, :]
    decay = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    beta = tl.load(place + H, mask=mask, other=0.0).to(tl.float32)
    decay += tl.load(bias + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    rate = tl.exp(tl.load(log_rate + head, mask=head < H, other=0.0).to(tl.float32))[None, :] / timescale
    counts = mask
    if REAL:
        counts = mask & (tl.load(real + token[:, None], mask=mask, other=0) != 0)
    decays = counts
    if START:
        decays = counts & (tl.load(start + token[:, None], mask=mask, other=0) == 0)
    return decay, beta, rate, decays, counts


@triton.jit(do_not_specialize=["tokens"])
def _rates_kernel(
    columns, log_rate, bias, start, real, g, beta, tokens, stride, timescale, H: tl.constexpr, BLOCK: tl.constexpr,
    TOKENS: tl.constexpr, START: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    mask = (token < tokens)[:, None] & (head < H)[None, :]
    decay, raw, rate, _, counts = _inputs(
        columns, log_rate, bias, start, real, token, head, mask, stride, timescale, H, START, REAL
    )
    result = tl.where(counts, -rate * _softplus(decay), 0.0)
    if START:
        begins = tl.load(start + token[:, None], mask=mask, other=0) != 0
        result = tl.where(begins, float("-inf"), result)
    place = token[:, None] * H + head[None, :]
    tl.store(g + place, result, mask=mask)
    tl.store(beta + place, tl.where(counts, sigmoid(raw), 0.0), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def _rates_back_kernel(
    grad_g, grad_beta, columns, log_rate, bias, start, real, grad, partial, tokens, stride, grad_stride, width,
    timescale, H: tl.constexpr, BLOCK: tl.constexpr, PADDING: tl.constexpr, TOKENS: tl.constexpr,
    START: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Besides the columns: ∂g/∂log A = g, and the bias gets what the decay gets."""
    token, head = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, BLOCK)
    mask = (token < tokens)[:, None] & (head < H)[None, :]
    decay, raw, rate, decays, counts = _inputs(
        columns, log_rate, bias, start, real, token, head, mask, stride, timescale, H, START, REAL
    )
    place = token[:, None] * H + head[None, :]
    back = -rate * tl.load(grad_g + place, mask=decays, other=0.0)
    partial += tl.program_id(0) * H + head
    tl.store(partial, tl.sum(back * _softplus(decay), 0), mask=head < H)
    back *= sigmoid(decay)
    tl.store(partial + tl.num_programs(0) * H, tl.sum(back, 0), mask=head < H)
    beta = sigmoid(raw)
    slope = beta * (1.0 - beta) * tl.load(grad_beta + place, mask=counts, other=0.0)
    row = grad + token[:, None].to(tl.int64) * grad_stride
    tl.store(row + head[None, :], back.to(grad.dtype.element_ty), mask=mask)
    tl.store(row + H + head[None, :], slope.to(grad.dtype.element_ty), mask=mask)
    padding = 2 * H + tl.arange(0, PADDING)
    rest = (token < tokens)[:, None] & (padding < width)[None, :]
    tl.store(row + padding[None, :], tl.zeros((TOKENS, PADDING), grad.dtype.element_ty), mask=rest)


@triton.jit
def _normed(o, weight, row, mask, channel, eps, V: tl.constexpr):
    """(n = (o − mean) · scale, weight, scale) of some rows, float32; n is 0 beyond the width."""
    value = tl.load(o + row[:, None].to(tl.int64) * V + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    value = tl.where(mask, value - (tl.sum(value, 1) / V)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, 1) / V + eps)[:, None]
    gain = tl.load(weight + channel, mask=channel < V, other=0.0).to(tl.float32)[None, :]
    return value * scale, gain, scale


@triton.jit(do_not_specialize=["rows"])
def _gate_kernel(
    o, gate, weight, result, rows, heads, stride, eps, V: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row, channel = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (channel < V)[None, :]
    value, gain, _ = _normed(o, weight, row, mask, channel, eps, V)
    place = (row // heads).to(tl.int64) * stride + (row % heads) * V
    opening = tl.load(gate + place[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    value = value * gain * opening * sigmoid(opening)
    place = row[:, None].to(tl.int64) * V + channel[None, :]
    tl.store(result + place, value.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _gate_back_kernel(
    grad, o, gate, weight, grad_o, grad_gate, partial, rows, heads, stride, grad_stride, eps, V: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for tile in tl.range(TILES):
        row = (tl.program_id(0) * TILES + tile) * TILE + tl.arange(0, TILE)
        mask = (row < rows)[:, None] & (channel < V)[None, :]
        value, gain, scale = _normed(o, weight, row, mask, channel, eps, V)
        token, within = (row // heads).to(tl.int64), ((row % heads) * V)[:, None] + channel[None, :]
        opening = tl.load(gate + token[:, None] * stride + within, mask=mask, other=0.0).to(tl.float32)
        place = row[:, None].to(tl.int64) * V + channel[None, :]
        back = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
        share = sigmoid(opening)
        slope = back * value * gain * (share + opening * share * (1.0 - share))
        tl.store(grad_gate + token[:, None] * grad_stride + within, slope.to(grad_gate.dtype.element_ty), mask=mask)
        back *= opening * share
        total += back * value
        back *= gain
        level, along = (tl.sum(back, 1) / V)[:, None], (tl.sum(back * value, 1) / V)[:, None]
        tl.store(grad_o + place, (scale * (back - level - value * along)).to(grad_o.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0) * V + channel, tl.sum(total, 0), mask=channel < V)
