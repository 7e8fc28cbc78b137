"""The tensors of a state copied into those of another on CUDA, in one launch whatever their number and types."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cmrn.decode_triton import pick

__all__ = ["copy_all"]

BLOCK = 16384
"""Bytes that a program copies."""


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """targets[i].copy_(sources[i]); both of one shape and type, the targets contiguous."""
    torch.ops.cmrn.copy_all(targets, sources)


@torch.library.custom_op("cmrn::copy_all", mutates_args=("targets",))
def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    pairs = [
        (target.view(-1).view(torch.uint8), source.contiguous().view(-1).view(torch.uint8))
        for target, source in zip(targets, sources, strict=True)
        if target.numel()
    ]
    sizes = tuple(target.numel() for target, _ in pairs)
    _copy_kernel[(len(pairs), triton.cdiv(max(sizes), BLOCK))](
        tuple(target for target, _ in pairs), tuple(source for _, source in pairs), SIZES=sizes, COUNT=len(pairs),
        BLOCK=BLOCK,
    )  # fmt: skip


@triton.jit
def _copy_kernel(targets, sources, SIZES: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    number, first = tl.program_id(0), tl.program_id(1) * BLOCK
    size = tl.where(number == 0, SIZES[0], 0)
    for i in tl.static_range(1, COUNT):
        size = tl.where(number == i, SIZES[i], size)
    if first < size:
        source, target = pick(sources, number, COUNT), pick(targets, number, COUNT)
        whole = tl.multiple_of(size // 16 * 16, 16)
        at = first + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, at < whole, 0), at < whole)
        if first == 0:
            rest = whole + tl.arange(0, 16)
            tl.store(target + rest, tl.load(source + rest, rest < size, 0), rest < size)
