"""The language loss on CUDA: one pass over the logits forward, one backward, whatever the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["token_nats"]

BLOCK = 8192
"""Logits read at once: a whole row of a vocabulary of up to 8,192; 16 bytes a thread and step."""
WARPS = 16


def token_nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """`cmrn.loss.token_nats` for float32, bfloat16 and float16 logits; sums are made in float32.

    Differs: the rows' nats are kept beside the partition, so that backward reads the logits once and writes once.
    """
    nats_N: Tensor = _nats(logits_NV, targets_N)[0]
    return nats_N.sum()


@torch.library.custom_op("cmrn::token_nats", mutates_args=())
def _nats(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """(nats, log-partition) of each row, float32; 0 where the target is negative."""
    logits_NV = logits_NV.contiguous()
    rows, vocabulary = logits_NV.shape
    nats_N, partition_N = (logits_NV.new_empty(rows, dtype=torch.float32) for _ in range(2))
    _forward_kernel[(rows,)](
        logits_NV, targets_N, nats_N, partition_N, vocabulary, BLOCK=_block(vocabulary), num_warps=WARPS
    )
    return nats_N, partition_N


@_nats.register_fake
def _(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits_NV.shape[0]
    return logits_NV.new_empty(rows, dtype=torch.float32), logits_NV.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("cmrn::token_nats_backward", mutates_args=())
def _slopes(logits_NV: Tensor, targets_N: Tensor, partition_N: Tensor, grad_N: Tensor) -> Tensor:
    """grad · (softmax(logits) − onehot(target)), in the type of the logits."""
    logits_NV, grad_N = logits_NV.contiguous(), grad_N.contiguous()
    rows, vocabulary = logits_NV.shape
    result_NV = torch.empty_like(logits_NV)
    _backward_kernel[(rows,)](
        logits_NV, targets_N, partition_N, grad_N, result_NV, vocabulary, BLOCK=_block(vocabulary), num_warps=WARPS
    )
    return result_NV


@_slopes.register_fake
def _(logits_NV: Tensor, targets_N: Tensor, partition_N: Tensor, grad_N: Tensor) -> Tensor:
    return torch.empty_like(logits_NV, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor, None]:
    logits_NV, targets_N, partition_N = ctx.saved_tensors
    return _slopes(logits_NV, targets_N, partition_N, grad_N), None


_nats.register_autograd(_backward, setup_context=_save)


def _block(vocabulary: int) -> int:
    return min(BLOCK, int(triton.next_power_of_2(vocabulary)))


@triton.jit
def _forward_kernel(logits, targets, nats, partition, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    if target < 0:
        tl.store(nats + row, 0.0)
        tl.store(partition + row, 0.0)
        return
    at = tl.arange(0, BLOCK)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, WIDTH, BLOCK):
        inside = start + at < WIDTH
        x = tl.load(logits + row * WIDTH + start + at, mask=inside, other=float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(before, tl.max(x, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(x - largest), 0)
    whole = largest + tl.log(total)
    picked = tl.load(logits + row * WIDTH + target).to(tl.float32)
    tl.store(partition + row, whole)
    tl.store(nats + row, whole - picked)


@triton.jit
def _backward_kernel(logits, targets, partition, grad, result, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    whole = tl.load(partition + row)
    scale = tl.load(grad + row)
    at = tl.arange(0, BLOCK)
    for start in range(0, WIDTH, BLOCK):
        place = start + at
        inside = place < WIDTH
        # A row without target is not read, whatever it holds: its slope is e^-inf · scale, with a partition of 0.
        x = tl.load(logits + row * WIDTH + place, mask=inside & (target >= 0), other=float("-inf")).to(tl.float32)
        slope = (tl.exp(x - whole) - tl.where(place == target, 1.0, 0.0)) * scale
        tl.store(result + row * WIDTH + place, slope.to(result.dtype.element_ty), mask=inside)
