"""Tokens to experts and back: `dispatch` sorts, `combine` is its inverse; nothing is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ROWS", "Dispatch", "combine", "dispatch", "gather_rows"]

ROWS = 64


@dataclass(frozen=True)
class Dispatch:
    """Where every (token, choice) pair went. Rows are sorted by expert, tokens in order within one.

    Each expert's rows are rounded up to a multiple of `ROWS`, so that matrix kernels, some of which are compiled for
    each new shape, meet few shapes; the M rows include that padding, which no result depends on. token_M: the token of
    each row, any token at padding. place_NK: the row of each pair. sizes_E: rows of each expert, on the host.
    """

    token_M: Tensor
    place_NK: Tensor
    sizes_E: tuple[int, ...]


def dispatch(indices_NK: Tensor, num_experts: int) -> Dispatch:
    """Sort the chosen (token, expert) pairs by expert, stably. indices_NK: int64, each row's experts distinct."""
    flat = indices_NK.flatten()
    counts_E = torch.bincount(flat, minlength=num_experts)
    sizes_E = (counts_E + ROWS - 1) // ROWS * ROWS
    shift_E = (sizes_E - counts_E).cumsum(0) - (sizes_E - counts_E)
    order = flat.argsort(stable=True)
    row = torch.arange(order.shape[0], device=order.device) + shift_E[flat[order]]
    place = torch.empty_like(order)
    place[order] = row
    token_M = order.new_zeros(int(sizes_E.sum()))
    token_M[row] = order // indices_NK.shape[1]
    return Dispatch(token_M, place.view_as(indices_NK), tuple(sizes_E.tolist()))


def gather_rows(x_ND: Tensor, plan: Dispatch) -> Tensor:
    """x_MD: each token's row, once for every expert that chose it; gradient flows back summed over them."""
    rows: Tensor = _Gather.apply(x_ND, plan.token_M, plan.place_NK)  # type: ignore[no-untyped-call]
    return rows


def combine(y_MD: Tensor, plan: Dispatch, gates_NK: Tensor) -> Tensor:
    """y_ND = Σ_k gate_k · y[place of (n, k)]: undoes `dispatch`. Gradient reaches rows and gates."""
    result: Tensor = _Combine.apply(y_MD, gates_NK.to(y_MD.dtype), plan.place_NK)  # type: ignore[no-untyped-call]
    return result


class _Gather(torch.autograd.Function):
    """x[token]; its gradient is read back through the places: a gather, so the sum over choices has one fixed order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_M: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(place_NK)
        return x_ND.index_select(0, token_M)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        (place_NK,) = ctx.saved_tensors
        return grad_MD[place_NK].sum(1), None, None


class _Combine(torch.autograd.Function):
    """Σ_k gate_k · y[place_k]; gradients go back to rows that are distinct, zero at padding, and to the gates."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, gates_NK: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_MD, gates_NK, place_NK)
        result_ND = y_MD[place_NK[:, 0]] * gates_NK[:, :1]
        for k in range(1, place_NK.shape[1]):
            result_ND.addcmul_(y_MD[place_NK[:, k]], gates_NK[:, k : k + 1])
        return result_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        y_MD, gates_NK, place_NK = ctx.saved_tensors
        grad_MD, grad_NK = torch.zeros_like(y_MD), torch.empty_like(gates_NK)
        for k in range(place_NK.shape[1]):
            grad_MD.index_copy_(0, place_NK[:, k], grad_ND * gates_NK[:, k : k + 1])
            grad_NK[:, k] = (y_MD[place_NK[:, k]] * grad_ND).sum(-1)
        return grad_MD, grad_NK, None
