"""One softmax over working memory, the null slot and long-term entries, as one operator with its gradient.

`longterm_blocks` defines it and computes it anywhere; on CUDA kernels do, unless reads are limited or tokens few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmrn.memory import longterm_blocks
from cmrn.memory.longterm_blocks import NEVER, Bounds, Far, Near, far_weights

__all__ = ["NEVER", "Bounds", "Far", "Near", "far_weights", "joint_read"]

TENSORS = 1 + 3 + 6
"""Of the operator's arguments, those that carry gradient: the null key, and what `Near` and `Far` hold but places."""


FEW = 16
"""Tokens up to which entries are what there is to share out among programs, as the kernels do not."""


def joint_read(near: Near, far: Far, null_HC: Tensor, bounds: Bounds, reads: int = 0) -> Tensor:
    """What each token reads, (B,T,H,C) in the type of the queries; gradient reaches all that is floating.

    null_HC: the null slot's key, to which the turned queries are compared; its value is zero. reads: most long-term
    entries that a token and head read, those of the largest scores; 0 for all.
    """
    narrow, near_tensors, far_tensors = near.q_BTHC.dtype, near.tensors(), far.tensors()
    typed = [each.to(narrow) for each in (null_HC, *near_tensors)]
    q_BTHC, sharp_BTH, slope_BTH, keys, values, *rest = far_tensors
    typed += [q_BTHC.to(narrow), sharp_BTH, slope_BTH, keys.to(narrow), values.to(narrow), *rest]
    read: Tensor = _joint_read([*typed, *bounds.tensors()], reads)[0]
    return read


def _arguments(tensors: list[Tensor]) -> tuple[Near, Far, Tensor, Bounds]:
    return Near(*tensors[1:4]), Far(*tensors[4:11]), tensors[0], Bounds(*tensors[11:])


def _by_kernels(near: Near, reads: int) -> bool:
    return near.q_BTHC.is_cuda and near.q_BTHC.dtype != torch.float64 and reads == 0 and near.q_BTHC.shape[1] > FEW


@torch.library.custom_op("cmrn::joint_read", mutates_args=())
def _joint_read(tensors: list[Tensor], reads: int) -> tuple[Tensor, Tensor]:
    """(what is read, logarithms of the denominators: natural ones, but to base 2 where kernels compute them)."""
    arguments = _arguments(tensors)
    if not _by_kernels(arguments[0], reads):
        return longterm_blocks.read(*arguments, reads)
    from cmrn.memory import longterm_triton

    return longterm_triton.read(*arguments)


@_joint_read.register_fake
def _(tensors: list[Tensor], reads: int) -> tuple[Tensor, Tensor]:
    batch, length, heads, width = tensors[1].shape
    wide = torch.promote_types(tensors[1].dtype, torch.float32)
    return tensors[1].new_empty(batch, length, heads, width), tensors[1].new_empty(batch, heads, length, dtype=wide)


@torch.library.custom_op("cmrn::joint_read_backward", mutates_args=())
def _joint_read_backward(
    grad_BTHC: Tensor, read_BTHC: Tensor, total_BHT: Tensor, tensors: list[Tensor], reads: int
) -> list[Tensor]:
    arguments = _arguments(tensors)
    if _by_kernels(arguments[0], reads):
        from cmrn.memory import longterm_triton

        grads = longterm_triton.differentiate(grad_BTHC, read_BTHC, total_BHT, *arguments)
    else:
        grads = longterm_blocks.differentiate(grad_BTHC, read_BTHC, total_BHT, *arguments, reads)
    return [grad.to(own.dtype).contiguous() for grad, own in zip(grads, tensors, strict=False)]


@_joint_read_backward.register_fake
def _(grad_BTHC: Tensor, read_BTHC: Tensor, total_BHT: Tensor, tensors: list[Tensor], reads: int) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in tensors[:TENSORS]]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.reads = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad_BTHC: Tensor, _: Tensor) -> tuple[list[Tensor | None], None]:
    *tensors, read_BTHC, total_BHT = ctx.saved_tensors
    grads = _joint_read_backward(grad_BTHC.contiguous(), read_BTHC, total_BHT, tensors, ctx.reads)
    return [*grads, *[None] * (len(tensors) - TENSORS)], None


_joint_read.register_autograd(_differentiate, setup_context=_remember)
