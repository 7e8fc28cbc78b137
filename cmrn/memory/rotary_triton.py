"""The turn of queries and keys on CUDA: one pass over memory, one sine and cosine for all heads of a token."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rotate_rows"]

ROWS = 32


def rotate_rows(x_BTHC: Tensor, first: int, size: int, base: float) -> Tensor:
    """`rotate` of `rotary`, whose first `size` features of each head turn; x carries gradient."""
    turned: Tensor = _rotate(x_BTHC, first, size, base, False)
    return turned


@torch.library.custom_op("cmrn::rotate", mutates_args=())
def _rotate(x_BTHC: Tensor, first: int, size: int, base: float, back: bool) -> Tensor:
    x_BTHC = x_BTHC.contiguous()
    batch, length, heads, width = x_BTHC.shape
    result, half = torch.empty_like(x_BTHC), size // 2
    _rotate_kernel[(triton.cdiv(batch * length, ROWS),)](
        x_BTHC, result, batch * length, length, first, -1.0 if back else 1.0, heads, width, LOG_BASE=math.log2(base),
        HALF=half, PAIRS=triton.next_power_of_2(half), REST=triton.next_power_of_2(max(1, width - size)), ROWS=ROWS,
    )  # fmt: skip
    return result


@_rotate.register_fake
def _empty(x_BTHC: Tensor, first: int, size: int, base: float, back: bool) -> Tensor:
    return torch.empty(x_BTHC.shape, dtype=x_BTHC.dtype, device=x_BTHC.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.arguments = inputs[1:]


def _backward(ctx: Any, grad_BTHC: Tensor) -> tuple[Tensor, None, None, None, None]:
    first, size, base, back = ctx.arguments
    return _rotate(grad_BTHC, first, size, base, not back), None, None, None, None


_rotate.register_autograd(_backward, setup_context=_keep)


@triton.jit(do_not_specialize=["rows", "length", "first"])
def _rotate_kernel(x_ptr, y_ptr, rows, length, first, sign, heads, width, LOG_BASE: tl.constexpr, HALF: tl.constexpr,
                   PAIRS: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Some tokens, head by head."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    pair, rest = tl.arange(0, PAIRS), 2 * HALF + tl.arange(0, REST)
    rate = tl.exp2(pair.to(tl.float32) * (-LOG_BASE / HALF))
    angle = (first + row % length)[:, None].to(tl.float32) * rate[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle) * sign
    present = row < rows
    turned, still = present[:, None] & (pair < HALF)[None, :], present[:, None] & (rest < width)[None, :]
    start = row.to(tl.int64) * heads * width
    for head in range(heads):
        at = (start + head * width)[:, None]
        left = tl.load(x_ptr + at + pair[None, :], turned, 0.0).to(tl.float32)
        right = tl.load(x_ptr + at + HALF + pair[None, :], turned, 0.0).to(tl.float32)
        other = tl.load(x_ptr + at + rest[None, :], still, 0.0)
        tl.store(y_ptr + at + pair[None, :], left * cos - right * sin, turned)
        tl.store(y_ptr + at + HALF + pair[None, :], left * sin + right * cos, turned)
        tl.store(y_ptr + at + rest[None, :], other, still)
