"""The gated delta rule on CUDA: forward and backward in Triton, as two operators that `torch.compile` sees whole.

Forward, for each head: a parallel kernel prepares the WY form of every chunk of 64 tokens, one walks the chunks in
turn and keeps the state before each, a parallel one reads the output. Backward: one walks the chunks from the end, a
parallel one gives every gradient. Source: Yang et al. 2024, "Gated Delta Networks", section 3.3; the equations stand
in `chunked` and `triton_backward`. Differs: g = -inf starts a document afresh; the state and U are held transposed.

Sizes are fixed, measured on an H200 with Triton 3.6, never tuned at run time: four warps for heads up to 128 wide,
eight above. A walking program carries 64 columns of the state, or 16 where 64 would leave fewer than 64 programs. No
tile is 32 columns wide, since Triton 3.6 multiplies such tiles wrongly on Hopper (`tests/temporal/test_triton.py` holds
a case): narrower heads are padded to 64.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cmrn.temporal.triton_backward import gradient_kernel, reverse_scan_kernel
from cmrn.temporal.triton_forward import output_kernel, prepare_kernel, scan_kernel

__all__ = ["CHUNK", "gated_delta_rule"]

CHUNK = 64
TILE = 64
FEW_COLUMNS = 16
ENOUGH_PROGRAMS = 64


class _Saved(NamedTuple):
    """What the forward leaves for the backward, chunk by chunk; inverse and scores are empty unless one will come."""

    decays: Tensor
    w: Tensor
    u: Tensor
    states: Tensor
    inverse: Tensor
    scores: Tensor


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same results as `reference.gated_delta_rule`; matrix products in the type of q, all else in float32.

    q, k and v are bfloat16, float16 or float32 (then in three TF32 products), of any strides whose last is 1; g, β and
    the state float32; K and V at most 256. Returns o_BTHV in the type of q, the last state and the surprise_BTH, both
    float32. Output and state carry gradient; the surprise, a by-product, does not. Nothing waits for the device.
    """
    inputs = (q_BTHK, k_BTHK.to(q_BTHK.dtype), v_BTHV.to(q_BTHK.dtype), g_BTH, beta_BTH, state_BHKV)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    o, last, surprise, *_ = _forward(*inputs, keep)
    return o, last, surprise.detach()


def _shapes(k: Tensor, v: Tensor) -> dict[str, Any]:
    """What every kernel is compiled for; K and V are the head widths padded to 64, 128 or 256."""
    key, value = k.shape[-1], v.shape[-1]
    return {
        "H": k.shape[2],
        "KEY": key,
        "VALUE": value,
        "C": CHUNK,
        "K": max(TILE, triton.next_power_of_2(key)),
        "V": max(TILE, triton.next_power_of_2(value)),
        "PRECISION": "tf32x3" if k.dtype == torch.float32 else "tf32",
    }


def _warps(shapes: dict[str, Any]) -> int:
    return 8 if max(shapes["K"], shapes["V"]) > 128 else 4


def _state_columns(k: Tensor, shapes: dict[str, Any], rows: int) -> int:
    """Columns of the state that one program carries through the chunks."""
    large = k.dtype == torch.float32 or max(shapes["K"], shapes["V"]) > 128
    return FEW_COLUMNS if large or rows * shapes["V"] < ENOUGH_PROGRAMS * TILE else TILE


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _rows(x: Tensor) -> Tensor:
    """x, copied only if neighbours along the head's width are not neighbours in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _scratch(k: Tensor, v: Tensor, keep: bool) -> _Saved:
    batch, length, heads, _ = k.shape
    shapes = _shapes(k, v)
    head = (batch * heads, -(-length // CHUNK))
    square = (*head, CHUNK, CHUNK) if keep else (0,)
    return _Saved(
        k.new_empty(*head, 4, CHUNK, dtype=torch.float32),
        k.new_empty(*head, CHUNK, shapes["K"]),
        k.new_empty(*head, shapes["V"], CHUNK),
        k.new_empty(*head, shapes["V"], shapes["K"]),
        k.new_empty(square),
        k.new_empty(square),
    )


@torch.library.custom_op("cmrn::gated_delta_rule", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (_rows(x) for x in (q, k, v))
    g, beta, state = (x.contiguous() for x in (g, beta, state))
    batch, length, heads, _ = q.shape
    shapes, saved = _shapes(k, v), _scratch(k, v, keep)
    decays, w, u, states, inverse, scores = saved
    o, last, surprise = q.new_empty(v.shape), torch.empty_like(state), state.new_empty(batch, length, heads)
    rows, chunks = decays.shape[:2]
    columns, warps = _state_columns(k, shapes, rows), _warps(shapes)
    q_strides, k_strides, v_strides = (x.stride()[:3] for x in (q, k, v))
    exact = "bf16x3" if k.is_cuda and k.dtype != torch.float32 else "tf32x3"
    prepare_kernel[(chunks, rows)](
        k, v, g, beta, decays, w, u, inverse, *k_strides, *v_strides, length,
        **shapes, KEEP=keep, INVERSE=exact, num_warps=warps, num_stages=1,
    )  # fmt: skip
    scan_kernel[(shapes["V"] // columns, rows)](
        k, decays, w, u, states, state, last, *k_strides, length, chunks,
        **shapes, BV=columns, num_warps=warps, num_stages=3,
    )  # fmt: skip
    output_kernel[(chunks, rows)](
        q, k, decays, u, states, o, surprise, scores, *q_strides, *k_strides, length,
        **shapes, KEEP=keep, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return o, last, surprise, *saved


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = q.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(q.shape[:3])
    return *results, *_scratch(k, v, keep)


@torch.library.custom_op("cmrn::gated_delta_rule_backward", mutates_args=())
def _backward(
    grad_o: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    decays: Tensor, w: Tensor, u: Tensor, states: Tensor, inverse: Tensor, scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, grad_o = (_rows(x) for x in (q, k, v, grad_o))
    beta, grad_last = beta.contiguous(), grad_last.contiguous()
    shapes, length, (rows, chunks) = _shapes(k, v), q.shape[1], decays.shape[:2]
    columns, warps = _state_columns(k, shapes, rows), _warps(shapes)
    blocks = shapes["K"] // TILE
    q_strides, k_strides, v_strides, o_strides = (x.stride()[:3] for x in (q, k, v, grad_o))
    grad_u, grad_states, grad_first = torch.empty_like(u), torch.empty_like(states), torch.empty_like(grad_last)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_g, grad_beta = beta.new_empty(blocks, *beta.shape), beta.new_empty(blocks, *beta.shape)
    reverse_scan_kernel[(shapes["V"] // columns, rows)](
        q, k, grad_o, decays, w, scores, grad_u, grad_states, grad_last, grad_first,
        *q_strides, *k_strides, *o_strides, length, chunks,
        **shapes, BV=columns, num_warps=warps, num_stages=3 if columns == TILE else 2,
    )  # fmt: skip
    gradient_kernel[(chunks * blocks, rows)](
        q, k, v, beta, grad_o, decays, inverse, u, grad_u, states, grad_states,
        grad_q, grad_k, grad_v, grad_g, grad_beta, *q_strides, *k_strides, *v_strides, *o_strides, length,
        **shapes, BK=TILE, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return grad_q, grad_k, grad_v, _total(grad_g), _total(grad_beta), grad_first


@_backward.register_fake
def _(
    grad_o: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor,
    decays: Tensor, w: Tensor, u: Tensor, states: Tensor, inverse: Tensor, scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    like = (q, k, v, beta, beta, grad_last)
    return tuple(x.new_empty(x.shape) for x in like)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, beta, state, _ = inputs
    ctx.save_for_backward(q, k, v, beta, *output[3:])
    ctx.state = (state.shape, state.dtype)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_o: Tensor | None, grad_last: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    q, k, v, beta, *saved = ctx.saved_tensors
    if grad_o is None:
        grad_o = q.new_zeros(v.shape)
    if grad_last is None:
        shape, dtype = ctx.state
        grad_last = q.new_zeros(shape, dtype=dtype)
    return (*_backward(grad_o, grad_last, q, k, v, beta, *saved), None)


_forward.register_autograd(_differentiate, setup_context=_save)
