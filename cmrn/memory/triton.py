"""The read of working memory on CUDA as operators that a compiler sees whole; `triton_kernels` computes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from cmrn.memory.triton_kernels import entry_kernel, query_kernel, read_kernel

__all__ = ["read_window"]


def read_window(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> Tensor:
    """What each token reads, (B,T,H,C) in the type of q; q, k, v, null and the carried entries carry gradient.

    All floating tensors have one type, float32, bfloat16 or float16, and a dense last dimension. first_BT: int32,
    where each token's document began, negative for the one the carried entries belong to; None where none starts.
    """
    read: Tensor
    read, _ = _read(q_BTHC, k_BTHC, v_BTHC, null_HC, first_BT, carried_k_BHWC, carried_v_BHWC, valid_BW, window)
    return read


class _Tiles(NamedTuple):
    """Queries and entries a program takes at a time, its warps, and the loads it keeps in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def _tiles(q_BTHC: Tensor, kernel: str) -> _Tiles:
    """Sizes for the kernel `read`, `query` or `entry`, the fastest measured on an H200."""
    length, width = q_BTHC.shape[1], q_BTHC.shape[3]
    if q_BTHC.dtype == torch.float32:
        return _Tiles(32, 32, 4, 1) if width <= 128 else _Tiles(16, 16, 4, 1)
    if length <= 16:
        return _Tiles(16, 64, 4, 2)
    if width > 128:
        return _Tiles(32, 32, 4, 2)
    if kernel != "entry":
        return _Tiles(64, 32, 4, 3)
    return _Tiles(64, 64, 4, 2) if width > 64 else _Tiles(32, 64, 4, 3)


@torch.library.custom_op("cmrn::read_window", mutates_args=())
def _read(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, width = q_BTHC.shape
    read = q_BTHC.new_empty(batch, length, heads, width)
    total_BHT = q_BTHC.new_empty(batch, heads, length, dtype=torch.float32)
    tiles = _tiles(q_BTHC, "read")
    arguments = _arguments(q_BTHC, k_BTHC, v_BTHC, null_HC, first_BT, carried_k_BHWC, carried_v_BHWC, valid_BW, window)
    read_kernel[triton.cdiv(length, tiles.queries), batch * heads](
        *arguments, read, total_BHT, **_constants(q_BTHC, first_BT, valid_BW, tiles)
    )
    return read, total_BHT


@_read.register_fake
def _(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q_BTHC.shape
    return q_BTHC.new_empty(q_BTHC.shape), q_BTHC.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("cmrn::read_window_backward", mutates_args=())
def _read_backward(
    grad_BTHC: Tensor,
    read_BTHC: Tensor,
    total_BHT: Tensor,
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, width = q_BTHC.shape
    tiles = _tiles(q_BTHC, "query")
    places = triton.cdiv(length, tiles.queries)
    arguments = _arguments(q_BTHC, k_BTHC, v_BTHC, null_HC, first_BT, carried_k_BHWC, carried_v_BHWC, valid_BW, window)
    grad_q, grad_k, grad_v = (q_BTHC.new_empty(q_BTHC.shape) for _ in range(3))
    along_BHT = torch.empty_like(total_BHT)
    partial = total_BHT.new_empty(batch, places, heads, width)
    query_kernel[places, batch * heads](
        *arguments, grad_BTHC, read_BTHC, total_BHT, along_BHT, grad_q, partial,
        **_constants(q_BTHC, first_BT, valid_BW, tiles),
    )  # fmt: skip
    tiles = _tiles(q_BTHC, "entry")
    entries = 0 if valid_BW is None else window
    carried_k, carried_v = (q_BTHC.new_empty(batch, heads, entries, width) for _ in range(2))
    own = triton.cdiv(length, tiles.keys)
    entry_kernel[own + triton.cdiv(entries, tiles.keys), batch * heads](
        *arguments, grad_BTHC, total_BHT, along_BHT, grad_k, grad_v, carried_k, carried_v,
        **_constants(q_BTHC, first_BT, valid_BW, tiles),
    )  # fmt: skip
    return grad_q, grad_k, grad_v, partial.sum((0, 1)).to(null_HC.dtype), carried_k, carried_v


@_read_backward.register_fake
def _(
    grad_BTHC: Tensor,
    read_BTHC: Tensor,
    total_BHT: Tensor,
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, heads, width = q_BTHC.shape
    entries = 0 if valid_BW is None else window
    own, carried = q_BTHC.shape, (batch, heads, entries, width)
    return (
        q_BTHC.new_empty(own), q_BTHC.new_empty(own), q_BTHC.new_empty(own), torch.empty_like(null_HC),
        q_BTHC.new_empty(carried), q_BTHC.new_empty(carried),
    )  # fmt: skip


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_BTHC: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, read_BTHC, total_BHT = ctx.saved_tensors
    grads = _read_backward(grad_BTHC.contiguous(), read_BTHC, total_BHT, *tensors, ctx.window)
    carried = grads[4:] if tensors[-1] is not None else (None, None)
    return *grads[:4], None, *carried, None, None


_read.register_autograd(_differentiate, setup_context=_remember)


def _arguments(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    first_BT: Tensor | None,
    carried_k_BHWC: Tensor | None,
    carried_v_BHWC: Tensor | None,
    valid_BW: Tensor | None,
    window: int,
) -> tuple[Any, ...]:
    """Pointers, strides and sizes that every kernel reads; q stands in for what is absent."""
    streams: list[Tensor] = []
    strides: list[int] = []
    for stream in (q_BTHC, k_BTHC, v_BTHC, carried_k_BHWC, carried_v_BHWC):
        dense = q_BTHC if stream is None else stream if stream.stride(3) == 1 else stream.contiguous()
        streams.append(dense)
        strides.extend(dense.stride()[:3])
    first = q_BTHC if first_BT is None else first_BT.contiguous()
    valid = q_BTHC if valid_BW is None else valid_BW.contiguous()
    return *streams, *strides, null_HC.contiguous(), first, valid, q_BTHC.shape[1], window, q_BTHC.shape[2]


def _constants(q_BTHC: Tensor, first_BT: Tensor | None, valid_BW: Tensor | None, tiles: _Tiles) -> dict[str, Any]:
    width = q_BTHC.shape[3]
    return {
        "WIDTH": width,
        "BLOCK": max(16, triton.next_power_of_2(width)),
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "CARRIED": valid_BW is not None,
        "STARTED": first_BT is not None,
        "PRECISION": "tf32x3" if q_BTHC.dtype == torch.float32 else "tf32",
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
