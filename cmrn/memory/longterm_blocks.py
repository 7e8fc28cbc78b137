"""The long-term read as it is defined, by blocks of queries on any device: scores, weights and gradients.

With n_t = q_t·k_0 for the null slot and b_j an entry's salience, token t reads
    o_t = Σ_j p_tj v_j,    p_tj = e^{a_tj} / (e^{n_t} + Σ_i e^{a_ti}),    where
    a_tj = q_t·k_j, both turned by their places,       for an entry j of working memory,
    a_tj = sharp_t q_t·k_j + b_j + slope_t log(total_t / (start_t − j))    for a long-term one, neither turned:
start_t is where the chunk of t begins and total_t how many tokens lie before it, so that an entry's age counts as a
share of all that was read, whatever its length. The backward pass computes p again, block by block.

Letters: N entries, Q queries of a block. Places are of the row, 0 at the call's first token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["NEVER", "Bounds", "Far", "Near", "differentiate", "far_weights", "read"]

NEVER = 1 << 30
"""The place of a long-term entry that no token may read."""

BLOCK_SCORES = 1 << 25
"""Scores held at once."""


@dataclass(frozen=True)
class Near:
    """Queries and entries of working memory, turned, and the values; all carry gradient.

    q_BTHC; keys_BHNC and values_BHNC: the W entries before the first query, then those of the queries' own tokens.
    """

    q_BTHC: Tensor
    keys_BHNC: Tensor
    values_BHNC: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields, in order."""
        return self.q_BTHC, self.keys_BHNC, self.values_BHNC


@dataclass(frozen=True)
class Far:
    """Queries and long-term entries. All but the places, place_BN int32, carry gradient.

    q_BTHC: not turned. sharp_BTH, slope_BTH: how a token weighs likeness, and how recent an entry is.
    """

    q_BTHC: Tensor
    sharp_BTH: Tensor
    slope_BTH: Tensor
    keys_BHNC: Tensor
    values_BHNC: Tensor
    salience_BN: Tensor
    place_BN: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields, in order."""
        tuned = (self.q_BTHC, self.sharp_BTH, self.slope_BTH)
        return *tuned, self.keys_BHNC, self.values_BHNC, self.salience_BN, self.place_BN


@dataclass(frozen=True)
class Bounds:
    """What each token may read, int32 (B,T): working memory in [low, place), long-term entries in [lower, limit).

    start_BT: where its chunk begins. total_BT: tokens read before that, at least 1 where a long-term entry is readable.
    """

    place_BT: Tensor
    low_BT: Tensor
    lower_BT: Tensor
    limit_BT: Tensor
    start_BT: Tensor
    total_BT: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The fields, in order."""
        return self.place_BT, self.low_BT, self.lower_BT, self.limit_BT, self.start_BT, self.total_BT

    def part(self, piece: slice) -> Bounds:
        """Those of some tokens."""
        return Bounds(*(each[:, piece] for each in self.tensors()))


def read(near: Near, far: Far, null_HC: Tensor, bounds: Bounds, reads: int) -> tuple[Tensor, Tensor]:
    """(what each token reads (B,T,H,C), the logarithm of each softmax's denominator (B,H,T))."""
    reading, totals = [], []
    for part in _blocks(near, far):
        block = _Block(near, far, null_HC, bounds, reads, part)
        total = block.total()
        near_weights, far_weights = ((x - total[..., None]).exp() for x in (block.near_scores, block.far_scores))
        read = near_weights.to(null_HC.dtype) @ block.near_values
        read = read + far_weights.to(null_HC.dtype) @ far.values_BHNC
        reading.append(read.transpose(1, 2))
        totals.append(total)
    return torch.cat(reading, 1), torch.cat(totals, 2)


def differentiate(
    grad_BTHC: Tensor,
    read_BTHC: Tensor,
    total_BHT: Tensor,
    near: Near,
    far: Far,
    null_HC: Tensor,
    bounds: Bounds,
    reads: int,
) -> list[Tensor]:
    """Gradients of the null key, of what `near` holds, and of what `far` holds but its places."""
    wide = total_BHT.dtype
    whole = [null_HC, near.keys_BHNC, near.values_BHNC, far.keys_BHNC, far.values_BHNC, far.salience_BN]
    grad_null, near_k, near_v, far_k, far_v, salience = (torch.zeros_like(each, dtype=wide) for each in whole)
    queries: list[tuple[Tensor, ...]] = []
    for part in _blocks(near, far):
        block = _Block(near, far, null_HC, bounds, reads, part)
        total, grad = total_BHT[:, :, part], grad_BTHC[:, part].transpose(1, 2)
        along = (grad.to(wide) * read_BTHC[:, part].transpose(1, 2).to(wide)).sum(-1)
        null_ds = -(block.null_BHQ - total).exp() * along
        grad_null += torch.einsum("bhq,bhqc->hc", null_ds, block.q_near_BHQC.to(wide))

        def through(scores: Tensor, values: Tensor, into: Tensor, total: Tensor = total, grad: Tensor = grad,
                    along: Tensor = along) -> Tensor:  # fmt: skip
            """The gradient of scores; that of values is added to `into`."""
            weights = (scores - total[..., None]).exp()
            into += (weights.to(grad.dtype).mT @ grad).to(wide)
            return weights * ((grad @ values.mT).to(wide) - along[..., None])

        at = block.near_slice
        near_ds = through(block.near_scores, block.near_values, near_v[:, :, at]).to(grad.dtype)
        near_k[:, :, at] += (near_ds.mT @ block.q_near_BHQC).to(wide)
        near_q = (near_ds @ block.near_keys).to(wide) + null_ds[..., None] * null_HC[:, None].to(wide)
        far_ds = through(block.far_scores, far.values_BHNC, far_v)
        dots_ds = (far_ds * block.sharp).to(grad.dtype)
        far_k += (dots_ds.mT @ block.q_far_BHQC).to(wide)
        salience += far_ds.sum((1, 2))
        of_queries = (
            near_q, (dots_ds @ far.keys_BHNC).to(wide), (far_ds * block.dots).sum(-1),
            (far_ds * block.recency).sum(-1),
        )  # fmt: skip
        queries.append(tuple(each.transpose(1, 2) for each in of_queries))
    near_q, far_q, sharp, slope = (torch.cat(each, 1) for each in zip(*queries, strict=True))
    return [grad_null, near_q, near_k, near_v, far_q, sharp, slope, far_k, far_v, salience]


@torch.no_grad()
def far_weights(near: Near, far: Far, null_HC: Tensor, bounds: Bounds, reads: int) -> Tensor:
    """(B,T,N) share that each token gives each long-term entry, mean over heads, float32."""
    shares = []
    for part in _blocks(near, far):
        block = _Block(near, far, null_HC.to(near.q_BTHC.dtype), bounds, reads, part)
        total = block.total()
        shares.append((block.far_scores - total[..., None]).exp().mean(1).float())
    return torch.cat(shares, 1)


def _blocks(near: Near, far: Far) -> list[slice]:
    batch, length, heads, _ = near.q_BTHC.shape
    size = max(1, BLOCK_SCORES // (batch * heads * max(1, far.keys_BHNC.shape[2])))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Block:
    """The scores of a block of queries, at least float32, -inf where nothing may be read."""

    def __init__(self, near: Near, far: Far, null_HC: Tensor, bounds: Bounds, reads: int, part: slice) -> None:
        window = near.keys_BHNC.shape[2] - near.q_BTHC.shape[1]
        self.near_slice = slice(part.start, window + part.stop)
        bounds = bounds.part(part)
        self.q_near_BHQC, self.q_far_BHQC = (q[:, part].transpose(1, 2) for q in (near.q_BTHC, far.q_BTHC))
        self.wide = torch.promote_types(self.q_near_BHQC.dtype, torch.float32)
        self.null_BHQ = torch.einsum("bhqc,hc->bhq", self.q_near_BHQC, null_HC).to(self.wide)
        self.near_keys, self.near_values = (x[:, :, self.near_slice] for x in (near.keys_BHNC, near.values_BHNC))
        places = torch.arange(self.near_keys.shape[2], device=null_HC.device) - window + bounds.place_BT[:, :1, None]
        seen_BQN = (places >= bounds.low_BT[..., None]) & (places < bounds.place_BT[..., None])
        near_scores = (self.q_near_BHQC @ self.near_keys.mT).to(self.wide)
        self.near_scores = near_scores.masked_fill(~seen_BQN[:, None], -torch.inf)

        self.dots = (self.q_far_BHQC @ far.keys_BHNC.mT).to(self.wide)
        self.sharp, slope = (
            each[:, part].transpose(1, 2)[..., None].to(self.wide) for each in (far.sharp_BTH, far.slope_BTH)
        )
        place_B1N = far.place_BN[:, None]
        age_BQN = (bounds.start_BT[..., None] - place_B1N).clamp(min=1).to(self.wide)
        self.recency = (bounds.total_BT[..., None].clamp(min=1).to(self.wide) / age_BQN).log()[:, None]
        readable_BQN = (place_B1N >= bounds.lower_BT[..., None]) & (place_B1N < bounds.limit_BT[..., None])
        scores = self.sharp * self.dots + far.salience_BN[:, None, None].to(self.wide) + slope * self.recency
        scores = scores.masked_fill(~readable_BQN[:, None], -torch.inf)
        if 0 < reads < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(reads, -1).values[..., -1:], -torch.inf)
        self.far_scores = scores

    def total(self) -> Tensor:
        """(B,H,Q) logarithm of the softmax's denominator."""
        parts = [self.null_BHQ, self.near_scores.logsumexp(-1)]
        if self.far_scores.shape[-1]:
            parts.append(self.far_scores.logsumexp(-1))
        return torch.stack(parts).logsumexp(0)
