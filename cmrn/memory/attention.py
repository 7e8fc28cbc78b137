"""The read of working memory: a soft, causal look at the last W entries, with the option of reading nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import CausalConv, Linear, Norm, segment_numbers, unit
from cmrn.records import Segments, WorkingMemory

__all__ = ["MemoryAttention"]


class MemoryAttention(nn.Module):
    """x + read(norm(x)): softmax attention over the W tokens before each token, one null slot beside them.

    Token t reads the entries of tokens t−W … t−1 of its own document, so the cost is linear in the text's length. Keys
    pass a short causal convolution; queries and keys are L2-normalised and compared at a learned temperature; the null
    slot has a learned key and the value zero. This is windowed softmax attention.
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.window, self.heads = config.working_memory, config.memory_heads
        self.width = config.memory_dim // config.memory_heads
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.query = Linear(config.d_model, config.memory_dim)
        self.key = Linear(config.d_model, config.memory_dim)
        self.value = Linear(config.d_model, config.memory_dim)
        self.gate = Linear(config.d_model, config.memory_dim)
        self.key_conv = CausalConv(config.memory_dim)
        self.log_temperature = nn.Parameter(torch.full((self.heads,), math.log(math.sqrt(self.width))))
        self.null_key = nn.Parameter(torch.randn(self.heads, self.width) / math.sqrt(self.width))
        self.output = Linear(config.memory_dim, config.d_model, scale=0.5)
        self.dropout = nn.Dropout(config.dropout)

    def initial_state(self, x_BTD: Tensor) -> WorkingMemory:
        """An empty working memory."""
        batch, dim = x_BTD.shape[0], self.heads * self.width
        entries = x_BTD.new_zeros(batch, self.heads, self.window, self.width)
        valid = torch.zeros(batch, self.window, dtype=torch.bool, device=x_BTD.device)
        return WorkingMemory(entries, entries, valid, x_BTD.new_zeros(batch, self.key_conv.width - 1, dim))

    def forward(
        self, x_BTD: Tensor, previous: WorkingMemory | None, segments: Segments
    ) -> tuple[Tensor, WorkingMemory]:
        """(x_BTD, working memory after the chunk). Queries, keys and values carry gradient, carried entries too."""
        previous = previous or self.initial_state(x_BTD)
        u_BTD = self.norm(x_BTD)
        raw_key, tail = self.key_conv(self.key(u_BTD), previous.tail_BTC, segments)
        query = unit(self._heads(self.query(u_BTD))) * self.log_temperature.exp()[:, None, None]
        key = unit(self._heads(raw_key))
        value = self._heads(self.value(u_BTD))
        keys = torch.cat([previous.keys_BHWC.to(key.dtype), key], 2)
        values = torch.cat([previous.values_BHWC.to(value.dtype), value], 2)
        number = segment_numbers(segments, x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        owner = torch.cat([torch.where(previous.valid_BW, 0, -1), number], 1)
        read = self._read(query.to(value.dtype), keys.to(value.dtype), values, number, owner)
        read_BTC = read.transpose(1, 2).flatten(2) * F.silu(self.gate(u_BTD))
        x_BTD = x_BTD + self.dropout(self.output(read_BTC))
        return x_BTD, self._keep(keys, values, owner, tail, segments)

    def _heads(self, x_BTC: Tensor) -> Tensor:
        heads: Tensor = x_BTC.unflatten(-1, (self.heads, self.width))
        return heads.transpose(1, 2)

    def _read(self, q: Tensor, keys: Tensor, values: Tensor, number_BT: Tensor, owner: Tensor) -> Tensor:
        """(B,H,T,C): each block of up to W queries against the 2W entries that any of them may read."""
        length = q.shape[2]
        size = min(self.window, length)
        pad = -length % size
        span = self.window + size
        q = F.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, size))
        keys, values = (F.pad(x, (0, 0, 0, pad)).unfold(2, span, size).mT for x in (keys, values))
        asks = F.pad(number_BT, (0, pad)).unflatten(1, (-1, size))
        owns = F.pad(owner, (0, pad), value=-1).unfold(1, span, size)
        place = torch.arange(span, device=q.device) - torch.arange(size, device=q.device)[:, None]
        readable = (place >= 0) & (place < self.window) & (asks[..., :, None] == owns[..., None, :])
        null = (q * self.null_key.to(q.dtype)[:, None, None]).sum(-1, keepdim=True)
        scores = (q @ keys.mT).masked_fill(~readable[:, None], -torch.inf)
        weights = torch.cat([null, scores], -1).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
        read = weights[..., 1:].to(values.dtype) @ values
        return read.flatten(2, 3)[:, :, :length]

    def _keep(self, keys: Tensor, values: Tensor, owner: Tensor, tail: Tensor, segments: Segments) -> WorkingMemory:
        """The last W entries of the document each row is in."""
        if segments.real_BT is None:
            keys, values, owner = keys[:, :, -self.window :], values[:, :, -self.window :], owner[:, -self.window :]
        else:
            last = segments.real_BT.sum(1, keepdim=True) + torch.arange(self.window, device=keys.device)
            index = last[:, None, :, None].expand(-1, self.heads, -1, self.width)
            keys, values, owner = keys.gather(2, index), values.gather(2, index), owner.gather(1, last)
        current = segment_count(segments, owner)
        return WorkingMemory(keys, values, owner == current, tail)


def segment_count(segments: Segments, like: Tensor) -> Tensor:
    """(B,1): the number of the document each row ends in."""
    if segments.start_BT is None:
        return torch.zeros_like(like[:, :1])
    return segments.start_BT.sum(1, keepdim=True)
