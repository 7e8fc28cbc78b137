"""The mean of a document's recent tags, token by token: what a text is about is seen in more than one token of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cmrn.records import Segments

__all__ = ["recent_mean"]

CHUNK = 256


def recent_mean(tags_BTR: Tensor, carried_BC: Tensor | None, segments: Segments, span: int) -> tuple[Tensor, Tensor]:
    """(mean_BTR, carried_BC), in at least float32: Σ λ^(t−j) tag_j / Σ λ^(t−j) over the document's tokens up to t.

    λ = 1 − 1/span. carried_BC: both sums after the last real token, C = R + 1, to read on from. Tokens in chunks are
    weighed by one product, so that time is linear in T.
    """
    wide = torch.promote_types(tags_BTR.dtype, torch.float32)
    batch, length, width = tags_BTR.shape
    with torch.autocast(tags_BTR.device.type, enabled=False):
        terms_BTC = torch.cat([tags_BTR.to(wide), tags_BTR.new_ones(batch, length, 1, dtype=wide)], -1)
        real_BT = terms_BTC.new_ones(batch, length)
        if segments.real_BT is not None:
            real_BT = segments.real_BT.to(wide)
            terms_BTC = terms_BTC * real_BT[..., None]
        start_BT = torch.zeros_like(real_BT) if segments.start_BT is None else segments.start_BT.to(wide)
        carried = terms_BTC.new_zeros(batch, width + 1) if carried_BC is None else carried_BC.to(wide)
        log_decay = math.log2(1 - 1 / span) if span > 1 else -64.0
        sums = []
        for first in range(0, length, CHUNK):
            part = slice(first, first + CHUNK)
            age_BT, begun_BT = real_BT[:, part].cumsum(1), start_BT[:, part].cumsum(1)
            apart_BTT = age_BT[:, :, None] - age_BT[:, None, :]
            together_BTT = (begun_BT[:, :, None] == begun_BT[:, None, :]).tril()
            weight_BTT = torch.exp2(log_decay * apart_BTT.clamp(min=0)) * together_BTT
            kept_BT = torch.exp2(log_decay * age_BT) * (begun_BT == 0)
            summed_BTC = weight_BTT @ terms_BTC[:, part] + kept_BT[..., None] * carried[:, None]
            carried = summed_BTC[:, -1]
            sums.append(summed_BTC)
        sums_BTC = torch.cat(sums, 1)
        return sums_BTC[..., :-1] / sums_BTC[..., -1:].clamp(min=1e-6), carried
