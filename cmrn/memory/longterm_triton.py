"""The joint read on CUDA: working memory by the kernels of `triton`, then long-term entries by kernels of their own."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from cmrn.memory import triton as window_read
from cmrn.memory.longterm_blocks import Bounds, Far, Near
from cmrn.memory.longterm_kernels_triton import far_entry_kernel, far_query_kernel, far_read_kernel

__all__ = ["differentiate", "read"]


def read(near: Near, far: Far, null_HC: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """(what each token reads (B,T,H,C), the logarithm of each softmax's denominator (B,H,T), to base 2)."""
    near_read, near_total = window_read._read(*_window(near, null_HC, bounds))
    batch, length, heads, _ = near.q_BTHC.shape
    if not far.keys_BHNC.shape[2]:
        return near_read, near_total
    out_BTHC, total_BHT = torch.empty_like(near_read), torch.empty_like(near_total)
    constants = _constants(near.q_BTHC, 64, 64, 3)
    far_read_kernel[triton.cdiv(length, constants["QUERIES"]), batch * heads](
        *_arguments(far, bounds), near_read, near_total, *_sizes(far), out_BTHC, total_BHT, **constants
    )
    return out_BTHC, total_BHT


def differentiate(
    grad_BTHC: Tensor, read_BTHC: Tensor, total_BHT: Tensor, near: Near, far: Far, null_HC: Tensor, bounds: Bounds
) -> list[Tensor]:
    """Gradients of the null key, of what `near` holds, and of what `far` holds but its places."""
    grad_BTHC = grad_BTHC.contiguous()
    window = near.keys_BHNC.shape[2] - near.q_BTHC.shape[1]
    near_q, own_k, own_v, null, *carried = window_read._read_backward(
        grad_BTHC, read_BTHC, total_BHT, *_window(near, null_HC, bounds)
    )
    pairs = zip(carried, (own_k, own_v), strict=True)
    near_k, near_v = (torch.cat([before, own.transpose(1, 2)], 2) for before, own in pairs)
    assert near_k.shape[2] == window + own_k.shape[1]
    batch, length, heads, _ = far.q_BTHC.shape
    count = far.keys_BHNC.shape[2]
    along_BHT = (grad_BTHC.float() * read_BTHC.float()).sum(-1).transpose(1, 2).contiguous()
    far_q = torch.zeros_like(far.q_BTHC, memory_format=torch.contiguous_format)
    tuned = total_BHT.new_zeros(2, batch, length, heads)
    far_k, far_v = (far.q_BTHC.new_empty(far.keys_BHNC.shape) for _ in range(2))
    salience_BHN = total_BHT.new_empty(batch, heads, count)
    if count:
        shared = (*_arguments(far, bounds), grad_BTHC, along_BHT, total_BHT, *_sizes(far))
        constants = _constants(far.q_BTHC, 64, 32, 2)
        far_query_kernel[triton.cdiv(length, constants["QUERIES"]), batch * heads](*shared, far_q, tuned, **constants)
        constants = _constants(far.q_BTHC, 32, 64, 2)
        far_entry_kernel[triton.cdiv(count, constants["KEYS"]), batch * heads](
            *shared, far_k, far_v, salience_BHN, **constants
        )
    # An operator's results may not share memory.
    sharp_and_slope = (tuned[0].clone(), tuned[1].clone())
    return [null, near_q, near_k, near_v, far_q, *sharp_and_slope, far_k, far_v, salience_BHN.sum(1)]


def _window(near: Near, null_HC: Tensor, bounds: Bounds) -> tuple[Any, ...]:
    """Arguments of the read of working memory. A place below 0 in `low` is of what was carried."""
    window = near.keys_BHNC.shape[2] - near.q_BTHC.shape[1]
    low_BT = bounds.low_BT - bounds.place_BT[:, :1]
    places_W = torch.arange(-window, 0, device=low_BT.device)
    valid_BW = places_W >= low_BT[:, :1]
    keys, values = near.keys_BHNC, near.values_BHNC
    return (
        near.q_BTHC, keys[:, :, window:].transpose(1, 2), values[:, :, window:].transpose(1, 2), null_HC,
        low_BT.clamp(min=-1), keys[:, :, :window], values[:, :, :window], valid_BW, window,
    )  # fmt: skip


def _arguments(far: Far, bounds: Bounds) -> tuple[Any, ...]:
    """Pointers and strides that every kernel reads."""
    streams = [
        each if each.stride(-1) == 1 else each.contiguous() for each in (far.q_BTHC, far.keys_BHNC, far.values_BHNC)
    ]
    strides = [stride for each in streams for stride in each.stride()[:3]]
    planes = torch.stack([bounds.lower_BT, bounds.limit_BT, bounds.start_BT, bounds.total_BT])
    tuned = torch.stack([far.sharp_BTH.float(), far.slope_BTH.float()])
    return *streams, *strides, far.salience_BN.float().contiguous(), far.place_BN.contiguous(), planes, tuned


def _sizes(far: Far) -> tuple[int, int, int, int]:
    batch, length, heads, _ = far.q_BTHC.shape
    return batch, heads, length, far.keys_BHNC.shape[2]


def _constants(q_BTHC: Tensor, queries: int, keys: int, stages: int) -> dict[str, Any]:
    """Sizes of tiles; smaller ones for float32 and for wide heads, which take more of a program's memory."""
    width = q_BTHC.shape[3]
    if q_BTHC.dtype == torch.float32 or width > 128:
        queries, keys, stages = 32 if width <= 128 else 16, 32 if width <= 128 else 16, 1
    elif q_BTHC.shape[1] <= 16:
        queries = 16
    return {
        "WIDTH": width,
        "BLOCK": max(16, triton.next_power_of_2(width)),
        "QUERIES": queries,
        "KEYS": keys,
        "PRECISION": "tf32x3" if q_BTHC.dtype == torch.float32 else "tf32",
        "num_warps": 4,
        "num_stages": stages,
    }
