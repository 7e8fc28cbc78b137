"""The gated delta rule on CUDA: forward and backward in Triton, as two operators that `torch.compile` sees whole.

Forward, for each head: a parallel kernel prepares every chunk of 64 tokens, one walks the chunks in turn and keeps the
state before each, a parallel one reads the output. Backward: one walks the chunks from the end, a parallel one gives
every gradient. Where heads are few and sequences long, segments of chunks are walked at once (`triton_segments`).
Source: Yang et al. 2024, "Gated Delta Networks", section 3.3; the equations stand in `chunked`, `triton_forward` and
`triton_backward`. Differs: g = -inf starts a document afresh; the state and U are held transposed; the chunk's inverse
is applied in the walk, so that no W and no WY form of the values is ever written.

Sizes are fixed, measured on an H200 with Triton 3.6, never tuned at run time. Widths are padded to 64, 128 or 256.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cmrn.temporal.triton_backward import gradient_kernel, reverse_scan_kernel
from cmrn.temporal.triton_forward import output_kernel, prepare_kernel, scan_kernel
from cmrn.temporal.triton_segments import combine_kernel, reverse_segment_kernel, segment_kernel

__all__ = ["CHUNK", "gated_delta_rule"]

CHUNK = 64
TILE = 64
FEW_COLUMNS = 16
ENOUGH_PROGRAMS, PROCESSORS = 64, 132
FEWEST_SEGMENTS, FEWEST_CHUNKS = 3, 8
THREE_PROGRAMS = 168
"""Registers a thread with which three programs of four warps share a processor."""


class _Saved(NamedTuple):
    """What the forward leaves for the backward, chunk by chunk.

    transitions: for each segment of a head, what it makes of the rows of the transposed state before it.
    """

    rates: Tensor
    inverse: Tensor
    scores: Tensor
    u: Tensor
    states: Tensor
    transitions: Tensor


def gated_delta_rule(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, beta_BTH: Tensor, state_BHKV: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same results as `reference.gated_delta_rule`; matrix products in the type of q, all else in float32.

    q, k and v are bfloat16, float16 or float32 (then in three TF32 products), of any strides whose last is 1; g, β and
    the state float32; K and V at most 256. Returns o_BTHV in the type of q, the last state and the surprise_BTH, both
    float32. Output and state carry gradient; the surprise, a by-product, does not. Nothing waits for the device.
    """
    k_BTHK, v_BTHV = k_BTHK.to(q_BTHK.dtype), v_BTHV.to(q_BTHK.dtype)
    o, last, surprise, *_ = _forward(q_BTHK, k_BTHK, v_BTHV, g_BTH, beta_BTH, state_BHKV)
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


class _Walk(NamedTuple):
    """How the chunks of a head are walked: columns of the state to a program, segments, and chunks to a segment."""

    columns: int
    segments: int
    length: int


def _walk(k: Tensor, shapes: dict[str, Any], rows: int, chunks: int) -> _Walk:
    """The walk for so many heads and chunks; segments cost a second walk, so they pay only where programs are few."""
    programs = rows * shapes["V"] // TILE
    if k.dtype == torch.float32 or max(shapes["K"], shapes["V"]) > 128:
        return _Walk(FEW_COLUMNS, 1, chunks)
    wanted = max(1, min(PROCESSORS // rows, chunks // FEWEST_CHUNKS))
    length = -(-chunks // wanted)
    segments = -(-chunks // length)
    if segments >= FEWEST_SEGMENTS:
        return _Walk(TILE, segments, length)
    return _Walk(TILE if programs >= ENOUGH_PROGRAMS else FEW_COLUMNS, 1, chunks)


def _state_strides(shapes: dict[str, Any]) -> tuple[int, int, int]:
    """Strides of a state by head, value and key."""
    return shapes["KEY"] * shapes["VALUE"], 1, shapes["VALUE"]


def _combine(
    outer: Tensor, ends: Tensor, transitions: Tensor, shapes: dict[str, Any], reverse: bool
) -> tuple[int, int, int]:
    """Put the state that each segment is entered with into `ends`; returns its strides by segment, value and key."""
    rows, segments = ends.shape[:2]
    sizes = {name: shapes[name] for name in ("KEY", "VALUE", "K", "V")}
    combine_kernel[(shapes["V"] // FEW_COLUMNS, rows)](
        outer, ends, transitions, segments, **sizes, BV=FEW_COLUMNS, REVERSE=reverse, num_warps=8, num_stages=2
    )
    return ends.stride()[1:]  # type: ignore[return-value]


def _total(parts: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _rows(x: Tensor) -> Tensor:
    """x, copied only if neighbours along the head's width are not neighbours in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _scratch(k: Tensor, v: Tensor) -> _Saved:
    batch, length, heads, _ = k.shape
    shapes = _shapes(k, v)
    head = (batch * heads, -(-length // CHUNK))
    segments = _walk(k, shapes, *head).segments
    return _Saved(
        k.new_empty(*head, 5, CHUNK, dtype=torch.float32),
        k.new_empty(*head, CHUNK, CHUNK),
        k.new_empty(*head, CHUNK, CHUNK),
        k.new_empty(*head, shapes["V"], CHUNK),
        k.new_empty(*head, shapes["V"], shapes["K"]),
        k.new_empty(head[0], segments if segments > 1 else 0, shapes["K"], shapes["K"], dtype=torch.float32),
    )


@torch.library.custom_op("cmrn::gated_delta_rule", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (_rows(x) for x in (q, k, v))
    g, beta, state = (x.contiguous() for x in (g, beta, state))
    shapes, saved, length = _shapes(k, v), _scratch(k, v), q.shape[1]
    rates, inverse, scores, u, states, transitions = saved
    o, last, surprise = q.new_empty(v.shape), torch.empty_like(state), state.new_empty(q.shape[:3])
    rows, chunks = rates.shape[:2]
    walk, warps = _walk(k, shapes, rows, chunks), _warps(shapes)
    q_strides, k_strides, v_strides = (x.stride()[:3] for x in (q, k, v))
    narrow = k.dtype != torch.float32
    exact = "bf16x3" if k.is_cuda and narrow else "tf32x3"
    prepare_kernel[(chunks, rows)](
        q, k, g, beta, rates, inverse, scores, *q_strides, *k_strides, length,
        **shapes, INVERSE=exact, num_warps=warps, num_stages=1, maxnreg=THREE_PROGRAMS if narrow else None,
    )  # fmt: skip
    starts, strides = state, _state_strides(shapes)
    if walk.segments > 1:
        starts = state.new_empty(rows, walk.segments, shapes["V"], shapes["K"])
        segment_kernel[((shapes["V"] + shapes["K"]) // TILE, walk.segments, rows)](
            k, v, rates, inverse, starts, transitions, *k_strides, *v_strides, length, chunks, walk.length,
            **shapes, BV=TILE, num_warps=4, num_stages=3,
        )  # fmt: skip
        strides = _combine(state, starts, transitions, shapes, reverse=False)
    scan_kernel[(shapes["V"] // walk.columns, walk.segments, rows)](
        k, v, rates, inverse, u, states, starts, last, *k_strides, *v_strides, *strides, length, chunks, walk.length,
        **shapes, BV=walk.columns, num_warps=warps, num_stages=3,
    )  # fmt: skip
    output_kernel[(chunks, rows)](
        q, rates, u, states, scores, o, surprise, *q_strides, length, **shapes, num_warps=warps, num_stages=1
    )
    return o, last, surprise, *saved


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    results = q.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(q.shape[:3])
    return *results, *_scratch(k, v)


@torch.library.custom_op("cmrn::gated_delta_rule_backward", mutates_args=())
def _backward(
    grad_o: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor,
    rates: Tensor, inverse: Tensor, scores: Tensor, u: Tensor, states: Tensor, transitions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v, grad_o = (_rows(x) for x in (q, k, v, grad_o))
    grad_last = grad_last.contiguous()
    shapes, length, (rows, chunks) = _shapes(k, v), q.shape[1], rates.shape[:2]
    walk, warps, blocks = _walk(k, shapes, rows, chunks), _warps(shapes), shapes["K"] // TILE
    q_strides, k_strides, v_strides, o_strides = (x.stride()[:3] for x in (q, k, v, grad_o))
    walked = (*q_strides, *k_strides, *o_strides)
    z, grad_states, grad_first = torch.empty_like(u), torch.empty_like(states), torch.empty_like(grad_last)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_g, grad_beta = (rates.new_empty(blocks, *q.shape[:3]) for _ in range(2))
    ends, strides = grad_last, _state_strides(shapes)
    if walk.segments > 1:
        ends = grad_last.new_empty(rows, walk.segments, shapes["V"], shapes["K"])
        reverse_segment_kernel[(1, walk.segments, rows)](
            q, k, grad_o, rates, inverse, scores, ends, *walked, length, chunks, walk.length,
            **shapes, BV=shapes["V"], num_warps=shapes["V"] // 16, num_stages=3,
        )  # fmt: skip
        strides = _combine(grad_last, ends, transitions, shapes, reverse=True)
    reverse_scan_kernel[(shapes["V"] // walk.columns, walk.segments, rows)](
        q, k, grad_o, rates, inverse, scores, z, grad_states, ends, grad_first,
        *walked, *strides, length, chunks, walk.length, **shapes, BV=walk.columns, num_warps=warps, num_stages=2,
    )  # fmt: skip
    gradient_kernel[(chunks * blocks, rows)](
        q, k, v, grad_o, rates, u, z, states, grad_states, grad_q, grad_k, grad_v, grad_g, grad_beta,
        *q_strides, *k_strides, *v_strides, *o_strides, length,
        **shapes, BK=TILE, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return grad_q, grad_k, grad_v, _total(grad_g), _total(grad_beta), grad_first


@_backward.register_fake
def _(
    grad_o: Tensor, grad_last: Tensor, q: Tensor, k: Tensor, v: Tensor,
    rates: Tensor, inverse: Tensor, scores: Tensor, u: Tensor, states: Tensor, transitions: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_g, grad_beta = (rates.new_empty(q.shape[:3]) for _ in range(2))
    return grad_q, grad_k, grad_v, grad_g, grad_beta, grad_last.new_empty(grad_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, _, state = inputs
    ctx.save_for_backward(q, k, v, *output[3:])
    ctx.state = (state.shape, state.dtype)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_o: Tensor | None, grad_last: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    q, k, v, *saved = ctx.saved_tensors
    if grad_o is None:
        grad_o = q.new_zeros(v.shape)
    if grad_last is None:
        shape, dtype = ctx.state
        grad_last = q.new_zeros(shape, dtype=dtype)
    gradients: tuple[Tensor, ...] = _backward(grad_o, grad_last, q, k, v, *saved)
    return gradients


_forward.register_autograd(_differentiate, setup_context=_save)
