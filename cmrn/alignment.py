"""Padding and documents: real tokens moved to the left of each row, and where documents begin among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmrn.records import Segments

__all__ = ["Alignment", "align", "document_places"]


@dataclass(frozen=True)
class Alignment:
    """How one call's rows were rearranged. order_BT: the old place of each new one; None where nothing moved."""

    order_BT: Tensor | None
    segments: Segments

    def apply(self, values_BT: Tensor) -> Tensor:
        """Values in the new order."""
        return values_BT if self.order_BT is None else values_BT.gather(1, self.order_BT)

    def undo(self, values: Tensor) -> Tensor:
        """Values (B,T,…) back in the caller's order; gradient flows through."""
        if self.order_BT is None:
            return values
        back_BT = self.order_BT.argsort(1)
        index = back_BT.view(*back_BT.shape, *[1] * (values.dim() - 2)).expand_as(values)
        return values.gather(1, index)


def align(
    attention_mask_BT: Tensor | None, document_BT: Tensor | None, carried_B: Tensor | None, batch: int, length: int
) -> tuple[Alignment, Tensor | None]:
    """Rows with their real tokens first, and the id of the document each row ends in (None where no ids are used).

    carried_B: the document each row was in before this call, None before any. A document starts where its id differs
    from the token's before it; without ids a row is one document, 0, going on from call to call. On a CPU a mask or
    ids that say nothing are looked through; elsewhere looking would hold up the device, and they are followed.
    """
    order_BT, real_BT = None, None
    if attention_mask_BT is not None and not _known(attention_mask_BT.all()):
        real_BT = attention_mask_BT.bool()
        order_BT = real_BT.int().argsort(dim=1, descending=True, stable=True)
        real_BT = real_BT.gather(1, order_BT)
    if document_BT is None:
        if carried_B is None or _known(carried_B.eq(0).all()):
            return Alignment(order_BT, Segments(real_BT, None)), carried_B
        document_BT = carried_B.new_zeros(batch, length)
    if order_BT is not None:
        document_BT = document_BT.gather(1, order_BT)
    before_B1 = document_BT[:, :1] if carried_B is None else carried_B[:, None]
    start_BT = document_BT != torch.cat([before_B1, document_BT[:, :-1]], 1)
    if real_BT is None:
        return Alignment(order_BT, Segments(None, start_BT)), document_BT[:, -1]
    last_B1 = (real_BT.sum(1, keepdim=True) - 1).clamp(min=0)
    ends_B = torch.where(real_BT.any(1), document_BT.gather(1, last_B1)[:, 0], before_B1[:, 0])
    return Alignment(order_BT, Segments(real_BT, start_BT & real_BT)), ends_B


def _known(flag: Tensor) -> bool:
    """Whether `flag` is True and the host can see it without waiting for a device."""
    return flag.device.type == "cpu" and bool(flag)


def document_places(segments: Segments, carried_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """(B,T) place of each token in its document, and the place the next token of each row would have."""
    if length == 1 and segments.start_BT is None and segments.real_BT is None:
        return carried_B[:, None], carried_B + 1
    place_BT = torch.arange(length, device=carried_B.device).expand(carried_B.shape[0], length)
    within_BT = place_BT + carried_B[:, None]
    if segments.start_BT is not None:
        first_BT = torch.where(segments.start_BT, place_BT, -1).cummax(1).values
        within_BT = torch.where(first_BT >= 0, place_BT - first_BT, within_BT)
    if segments.real_BT is None:
        return within_BT, within_BT[:, -1] + 1
    last_B1 = segments.real_BT.sum(1, keepdim=True) - 1
    after_B = within_BT.gather(1, last_B1.clamp(min=0))[:, 0] + 1
    return within_BT, torch.where(last_B1[:, 0] >= 0, after_B, carried_B)
