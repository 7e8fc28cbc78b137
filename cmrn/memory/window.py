"""The read itself, by the form that is fastest where the tensors are: kernels, blocks of queries, or one token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.records import Segments, WorkingMemory

__all__ = ["document_begins", "windowed_read"]

QUERIES = 128


def document_begins(segments: Segments, batch: int, length: int, device: torch.device) -> Tensor | None:
    """(B,T) int32: the place where each token's document began, -1 if before the chunk; None where none starts."""
    if segments.start_BT is None:
        return None
    places_T = torch.arange(length, dtype=torch.int32, device=device)
    return torch.where(segments.start_BT, places_T, -1).cummax(1).values


def windowed_read(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    window: int,
    first_BT: Tensor | None,
    carried: WorkingMemory | None,
) -> Tensor:
    """What each token reads of the `window` entries before it in its document and the null slot, (B,T,H,C).

    Softmax over q·k without further scale; the null slot has the key null_HC and the value zero. first_BT is what
    `document_begins` says; `carried` are the entries before the chunk. All else carries gradient, carried entries too.
    """
    null_HC = null_HC.to(q_BTHC.dtype)
    if q_BTHC.is_cuda and q_BTHC.dtype != torch.float64:
        from cmrn.memory.triton import read_window

        keys = values = valid_BW = None
        if carried is not None:
            keys, values = carried.keys_BHWC.to(q_BTHC.dtype), carried.values_BHWC.to(q_BTHC.dtype)
            valid_BW = carried.valid_BW
        return read_window(q_BTHC, k_BTHC, v_BTHC, null_HC, first_BT, keys, values, valid_BW, window)
    if q_BTHC.shape[1] == 1 and carried is not None:
        return _read_one(q_BTHC, null_HC, first_BT, carried)
    return _read_blocks(q_BTHC, k_BTHC, v_BTHC, null_HC, window, first_BT, carried)


def _read_one(q_B1HC: Tensor, null_HC: Tensor, first_B1: Tensor | None, carried: WorkingMemory) -> Tensor:
    """One token reads just what was carried."""
    keys, values = carried.keys_BHWC.to(q_B1HC.dtype), carried.values_BHWC.to(q_B1HC.dtype)
    q_BH1C = q_B1HC.transpose(1, 2)
    readable = carried.valid_BW if first_B1 is None else carried.valid_BW & (first_B1 < 0)
    scores = (q_BH1C @ keys.mT).masked_fill(~readable[:, None, None], -torch.inf)
    null = (q_BH1C * null_HC[:, None]).sum(-1, keepdim=True)
    weights = torch.cat([null, scores], -1).softmax(-1, dtype=torch.promote_types(q_B1HC.dtype, torch.float32))
    return (weights[..., 1:].to(values.dtype) @ values).transpose(1, 2)


def _read_blocks(
    q_BTHC: Tensor,
    k_BTHC: Tensor,
    v_BTHC: Tensor,
    null_HC: Tensor,
    window: int,
    first_BT: Tensor | None,
    carried: WorkingMemory | None,
) -> Tensor:
    """Each block of queries against all entries that one of them may read, the null slot as one entry more."""
    batch, length, heads, width = q_BTHC.shape
    if carried is None:
        keys, values = (F.pad(x.transpose(1, 2), (0, 0, window, 0)) for x in (k_BTHC, v_BTHC))
        kept = F.pad(torch.ones(batch, length, dtype=torch.bool, device=q_BTHC.device), (window, 0))
    else:
        before = carried.keys_BHWC.to(k_BTHC.dtype), carried.values_BHWC.to(v_BTHC.dtype)
        keys, values = (torch.cat([a, b.transpose(1, 2)], 2) for a, b in zip(before, (k_BTHC, v_BTHC), strict=True))
        kept = F.pad(carried.valid_BW, (0, length), value=True)
    size = min(QUERIES, length)
    pad, span = -length % size, window + size
    place = torch.arange(span, device=q_BTHC.device) - torch.arange(size, device=q_BTHC.device)[:, None]
    readable = F.pad(kept, (0, pad)).unfold(1, span, size)[:, :, None] & ((place >= 0) & (place < window))
    if first_BT is not None:
        least = window + first_BT - torch.arange(length, device=q_BTHC.device)
        least = F.pad(least.masked_fill(first_BT < 0, 0), (0, pad)).unflatten(1, (-1, size))
        readable = readable & (place >= least[..., None])
    mask = torch.where(F.pad(readable, (1, 0), value=True), 0.0, -torch.inf).to(q_BTHC.dtype)
    blocks = readable.shape[1]
    q = F.pad(q_BTHC, (0, 0, 0, 0, 0, pad)).unflatten(1, (-1, size)).transpose(2, 3)
    keys, values = (F.pad(x, (0, 0, 0, pad)).unfold(2, span, size).permute(0, 2, 1, 4, 3) for x in (keys, values))
    null = null_HC[:, None].expand(batch, blocks, heads, 1, width)
    keys, values = torch.cat([null, keys], 3), F.pad(values, (0, 0, 1, 0))
    read = F.scaled_dot_product_attention(
        q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), mask.flatten(0, 1)[:, None], scale=1.0
    )
    return read.transpose(1, 2).reshape(batch, -1, heads, width)[:, :length]
