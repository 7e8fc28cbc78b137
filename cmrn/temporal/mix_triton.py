"""The temporal layer between its two products on CUDA, as one operator each way.

Forward: convolution, SiLU and unit length; the rates; the delta rule; the norm and the gate. All of them read columns
of the one product of the layer's projections, and backward all of them write into columns of its gradient, which
nobody has to put together, and nobody has to cut the columns out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import cmrn.temporal.triton  # noqa: F401  (defines the delta rule's operators)
from cmrn.convolution_triton import Cut, Source, gradients, streams
from cmrn.records import Segments
from cmrn.temporal.gate_triton import Rates, gate, gate_back, rates, rates_back

__all__ = ["Mixing", "mix"]


@dataclass(frozen=True)
class Mixing:
    """What the layer holds beside its projections: taps (J,3I), log A and bias (H), the norm's weight (C), its eps."""

    taps_JC: Tensor
    log_rate_H: Tensor
    bias_H: Tensor
    norm_weight_V: Tensor
    eps: float
    timescale: float


def mix(
    product_BTP: Tensor, mixing: Mixing, tail_BRC: Tensor | None, state_BHKV: Tensor, segments: Segments
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gated (B,T,I), next tail, last state, surprise (B,T,H)): what the output projection reads, and what is carried.

    product_BTP holds queries, keys, values and gates (I each, I = H · V), decays and β (H each), then columns that
    nobody reads; it is float32, bfloat16 or float16, and so is what comes out; the state is float32. All but the
    surprise carry gradient.
    """
    real_BT, start_BT = segments.real_BT, segments.start_BT
    tail = None if tail_BRC is None else tail_BRC.to(product_BTP.dtype)
    parameters = (mixing.taps_JC, mixing.log_rate_H, mixing.bias_H, mixing.norm_weight_V)
    tensors = (product_BTP, *parameters, tail, state_BHKV)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    gated, last_tail, last, surprise, *_ = torch.ops.cmrn.temporal_mix(
        *tensors, start_BT, real_BT, mixing.eps, mixing.timescale, keep
    )
    return gated, last_tail, last, surprise.detach()


def _parts(product: Tensor, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The columns that the convolution reads, the gate's, and the rates' with what pads them."""
    inner = heads * width
    return product[..., : 3 * inner], product[..., 3 * inner : 4 * inner], product[..., 4 * inner :]


def _source(mixed: Tensor, taps: Tensor, tail: Tensor | None, start: Tensor | None, real: Tensor | None) -> Source:
    return Source(mixed, taps, tail, start, None if real is None else real.sum(1))


@torch.library.custom_op("cmrn::temporal_mix", mutates_args=())
def _mix(
    product: Tensor, taps: Tensor, log_rate: Tensor, bias: Tensor, norm_weight: Tensor, tail: Tensor | None,
    state: Tensor, start: Tensor | None, real: Tensor | None, eps: float, timescale: float, keep: bool,
) -> list[Tensor]:  # fmt: skip
    """Gated, next tail, last state and surprise; then q, k, v, o and what the delta rule keeps, if asked to."""
    product = product.contiguous()
    heads, width = state.shape[1], state.shape[3]
    mixed, opening, columns = _parts(product, heads, width)
    *qkv, last_tail = streams(_source(mixed, taps, tail, start, real), Cut(3, 2, width, True))
    q, k, v = (x.unflatten(-1, (heads, width)) for x in qkv)
    g, beta = rates(columns, Rates(log_rate, bias, timescale, start, real))
    o, last, surprise, *saved = torch.ops.cmrn.gated_delta_rule(q, k, v, g, beta, state)
    gated = gate(o, opening, norm_weight, eps)
    return [gated, last_tail, last, surprise, *([*qkv, o, *saved] if keep else [])]


@_mix.register_fake
def _(
    product: Tensor, taps: Tensor, log_rate: Tensor, bias: Tensor, norm_weight: Tensor, tail: Tensor | None,
    state: Tensor, start: Tensor | None, real: Tensor | None, eps: float, timescale: float, keep: bool,
) -> list[Tensor]:  # fmt: skip
    batch, length, _ = product.shape
    heads, width = state.shape[1], state.shape[3]
    q, k, v = (product.new_empty(batch, length, heads, width) for _ in range(3))
    beta = product.new_empty(batch, length, heads, dtype=torch.float32)
    o, last, surprise, *saved = torch.ops.cmrn.gated_delta_rule(q, k, v, beta, beta, state)
    last_tail = product.new_empty(batch, taps.shape[0] - 1, 3 * heads * width)
    kept = [*(x.flatten(2) for x in (q, k, v)), o, *saved] if keep else []
    return [product.new_empty(batch, length, heads * width), last_tail, last, surprise, *kept]


@torch.library.custom_op("cmrn::temporal_mix_backward", mutates_args=())
def _mix_backward(
    grad_gated: Tensor, grad_tail: Tensor | None, grad_last: Tensor, product: Tensor, taps: Tensor, log_rate: Tensor,
    bias: Tensor, norm_weight: Tensor, tail: Tensor | None, start: Tensor | None, real: Tensor | None,
    kept: list[Tensor], eps: float, timescale: float,
) -> list[Tensor]:  # fmt: skip
    """The gradients of product, taps, log A, bias, norm weight, tail and state."""
    product = product.contiguous()
    *qkv, o = kept[:4]
    heads, width = o.shape[2:]
    grad = torch.empty_like(product)
    mixed, opening, columns = _parts(product, heads, width)
    grad_mixed, grad_opening, grad_columns = _parts(grad, heads, width)
    grad_o, grad_weight = gate_back(grad_gated, o, opening, norm_weight, eps, grad_opening)
    q, k, v = (x.unflatten(-1, (heads, width)) for x in qkv)
    *grads, grad_g, grad_beta, grad_state = torch.ops.cmrn.gated_delta_rule_backward(
        grad_o, grad_last, q, k, v, *kept[4:]
    )
    given = Rates(log_rate, bias, timescale, start, real)
    grad_rate, grad_bias = rates_back(grad_g, grad_beta, columns, given, grad_columns)
    source = _source(mixed, taps, tail, start, real)
    cut = Cut(3, 2, width, True)
    grad_taps, grad_first = gradients([x.flatten(2) for x in grads], grad_tail, source, cut, grad_mixed)
    return [grad, grad_taps, grad_rate, grad_bias, grad_weight, grad_first, grad_state]


@_mix_backward.register_fake
def _(
    grad_gated: Tensor, grad_tail: Tensor | None, grad_last: Tensor, product: Tensor, taps: Tensor, log_rate: Tensor,
    bias: Tensor, norm_weight: Tensor, tail: Tensor | None, start: Tensor | None, real: Tensor | None,
    kept: list[Tensor], eps: float, timescale: float,
) -> list[Tensor]:  # fmt: skip
    grad = torch.empty_like(product, memory_format=torch.contiguous_format)
    grad_first = product.new_empty(product.shape[0], taps.shape[0] - 1, taps.shape[1])
    like = (torch.empty_like(x) for x in (taps, log_rate, bias, norm_weight))
    return [grad, *like, grad_first, torch.empty_like(grad_last, memory_format=torch.contiguous_format)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, tail, state, start, real, ctx.eps, ctx.timescale, _ = inputs
    ctx.save_for_backward(*tensors, tail, start, real, *output[4:])
    ctx.state = state.shape


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    *tensors, tail, start, real = ctx.saved_tensors[:8]
    grad, *parameters, grad_first, grad_state = _mix_backward(
        grads[0], grads[1], grads[2], *tensors, tail, start, real, list(ctx.saved_tensors[8:]), ctx.eps, ctx.timescale
    )
    first = None if tail is None else grad_first
    return grad, *parameters, first, grad_state, None, None, None, None, None


_mix.register_autograd(_differentiate, setup_context=_save)
