"""The draw of a token from all of a vocabulary on CUDA, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["draw_one"]

BLOCK = 8192
"""Logits read at once."""


def draw_one(logits_BV: Tensor, waiting_BV: Tensor, temperature: float) -> Tensor:
    """argmax of logits/τ − log e of each row, int64 (B,), -1 where a row's largest logit is no finite number.

    That is argmax p/e, so a token is drawn with its probability where waiting_BV, float32, holds exponential draws e.
    Differs: the probabilities themselves are not needed. At equal scores the lowest id.
    """
    ids_B: Tensor = torch.ops.cmrn.draw_one(logits_BV, waiting_BV, temperature)
    return ids_B


@torch.library.custom_op("cmrn::draw_one", mutates_args=())
def _draw_one(logits_BV: Tensor, waiting_BV: Tensor, temperature: float) -> Tensor:
    rows, vocabulary = logits_BV.shape
    ids_B: Tensor = _empty_ids(logits_BV, waiting_BV, temperature)
    _draw_kernel[(rows,)](
        logits_BV.contiguous(), waiting_BV.contiguous(), ids_B, temperature, vocabulary,
        BLOCK=min(BLOCK, triton.next_power_of_2(vocabulary)), num_warps=16,
    )  # fmt: skip
    return ids_B


@_draw_one.register_fake
def _empty_ids(logits_BV: Tensor, waiting_BV: Tensor, temperature: float) -> Tensor:
    return logits_BV.new_empty(logits_BV.shape[0], dtype=torch.int64)


@triton.jit
def _draw_kernel(logits_ptr, waiting_ptr, id_ptr, temperature, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocabulary
    waiting_ptr += row * vocabulary
    nothing = float("-inf")
    top, best = tl.full((), nothing, tl.float32), tl.full((), nothing, tl.float32)
    broken, chosen = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    for first in range(0, vocabulary, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < vocabulary
        logits = tl.load(logits_ptr + at, inside, nothing).to(tl.float32)
        waiting = tl.maximum(tl.load(waiting_ptr + at, inside, 1.0), 1.1754943508222875e-38)
        broken |= tl.max((logits != logits).to(tl.int32), 0)
        logits = tl.where(logits != logits, nothing, logits)
        scores = logits / temperature - tl.log(waiting)
        largest, place = tl.max(scores, 0), tl.argmax(scores, 0)
        chosen = tl.where(largest > best, first + place, chosen)
        best = tl.maximum(best, largest)
        top = tl.maximum(top, tl.max(logits, 0))
    broken |= ((top == nothing) | (top == float("inf"))).to(tl.int32)
    tl.store(id_ptr + row, tl.where(broken != 0, -1, chosen).to(tl.int64))
