"""The read of memory: a soft, causal look at the last W entries and at long-term ones, or at nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import CausalConv, Linear, Norm, narrow_type, project, reads_one, unit
from cmrn.memory.recall import Recall, recall_carried, recall_stored
from cmrn.memory.rotary import placeless, rotate, rotate_carried, rotated
from cmrn.memory.salience import Salience
from cmrn.memory.window import document_begins, windowed_read
from cmrn.records import MemoryRead, Segments, WorkingMemory

__all__ = ["MemoryAttention"]


class MemoryAttention(nn.Module):
    """x + read(norm(x)): softmax attention over the W tokens before each token, one null slot beside them.

    Token t reads the entries of tokens t−W … t−1 of its own document, so the cost is linear in the text's length. Keys
    pass a short causal convolution; queries and keys are L2-normalised and compared at a learned temperature, half of
    their features turned by their places (`rotary`); the null slot has a learned key without a place and the value
    zero. This is windowed softmax attention.
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.config = config
        self.window, self.heads = config.working_memory, config.memory_heads
        self.width = config.memory_dim // config.memory_heads
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.query = Linear(config.d_model, config.memory_dim)
        self.key = Linear(config.d_model, config.memory_dim)
        self.value = Linear(config.d_model, config.memory_dim)
        self.gate = Linear(config.d_model, config.memory_dim)
        self.key_conv = CausalConv(config.memory_dim)
        self.log_temperature = nn.Parameter(torch.full((self.heads,), math.log(math.sqrt(self.width))))
        self.null_key = nn.Parameter(torch.randn(self.heads, self.width - rotated(self.width)) / math.sqrt(self.width))
        self.output = Linear(config.memory_dim, config.d_model, scale=0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.salience = Salience(config) if config.episodic_memory else None

    def initial_state(self, x_BTD: Tensor) -> WorkingMemory:
        """An empty working memory."""
        batch, dim = x_BTD.shape[0], self.heads * self.width
        entries = x_BTD.new_zeros(()).expand(batch, self.heads, self.window, self.width)
        valid = torch.zeros(batch, self.window, dtype=torch.bool, device=x_BTD.device)
        return WorkingMemory(entries, entries, valid, x_BTD.new_zeros(batch, self.key_conv.width - 1, dim))

    def forward(
        self, x_BTD: Tensor, previous: WorkingMemory | None, segments: Segments
    ) -> tuple[Tensor, WorkingMemory]:
        """(x_BTD, working memory after the chunk). Queries, keys and values carry gradient, carried entries too."""
        if reads_one(self, x_BTD, segments):
            return self._one(x_BTD, previous or self.initial_state(x_BTD), segments)
        _, q_BTHC, k_BTHC, v_BTHC, gate, tail = self._project(x_BTD, previous, segments)
        first_BT = document_begins(segments, x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        carried, null_HC = None if previous is None else rotate_carried(previous), placeless(self.null_key, self.width)
        read = windowed_read(rotate(q_BTHC), rotate(k_BTHC), v_BTHC, null_HC, self.window, first_BT, carried)
        x_BTD = x_BTD + self.dropout(self.output(read.flatten(2) * F.silu(gate)))
        return x_BTD, self._keep(k_BTHC, v_BTHC, first_BT, previous or self.initial_state(x_BTD), tail, segments)

    def recall(
        self, x_BTD: Tensor, previous: WorkingMemory | None, segments: Segments, recalled: Recall
    ) -> tuple[Tensor, WorkingMemory, Tensor, MemoryRead | None]:
        """`forward` with long-term entries readable too.

        Beyond its results: the mean share of the tokens that are worth remembering, a scalar that carries gradient, and
        which entries were read, where the episodic memory is to show them. Stored entries carry no gradient.
        """
        assert self.salience is not None
        assert recalled.events is not None
        u_BTD, q_BTHC, k_BTHC, v_BTHC, gate, tail = self._project(x_BTD, previous, segments)
        first_BT = document_begins(segments, x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        before = previous or self.initial_state(x_BTD)
        salience_BT = self.salience.gate(u_BTD, recalled.events)
        null_HC = placeless(self.null_key, self.width)
        tokens = (q_BTHC, k_BTHC, v_BTHC, salience_BT)
        tuned = self.salience.reading(u_BTD, recalled.total_BT(self.config))
        shown, long = None, None
        if recalled.memory is None:
            read, long = recall_carried(tokens, tuned, null_HC, before, segments, recalled, self.config)
        else:
            read, shown = recall_stored(tokens, tuned, null_HC, before, recalled, self.config)
        x_BTD = x_BTD + self.dropout(self.output(read.flatten(2) * F.silu(gate)))
        kept = self._keep(k_BTHC, v_BTHC, first_BT, before, tail, segments)
        return x_BTD, replace(kept, long=long), _mean(salience_BT.exp(), segments.real_BT), shown

    def queries(self, x_BTD: Tensor, previous: WorkingMemory | None, segments: Segments) -> Tensor:
        """(B,T,H,C) what tokens ask of long-term entries: at the temperature of the read, not turned by places."""
        return self._project(x_BTD, previous, segments)[1]

    def _project(
        self, x_BTD: Tensor, previous: WorkingMemory | None, segments: Segments
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(normalised x_BTD, queries at their temperature, keys, values, output gate, the convolution's tail)."""
        u_BTD = self.norm(x_BTD)
        query, raw_key, value, gate = project(u_BTD, (self.query,), (self.key,), (self.value,), (self.gate,))
        tail_BTC = None if previous is None else previous.tail_BTC
        (k_BTHC,), tail = self.key_conv.heads(raw_key, tail_BTC, segments, self.width)
        v_BTHC = value.unflatten(-1, (self.heads, self.width))
        q_BTHC = unit(query.unflatten(-1, (self.heads, self.width))) * self.log_temperature.exp()[:, None]
        return u_BTD, q_BTHC.to(v_BTHC.dtype), k_BTHC.to(v_BTHC.dtype), v_BTHC, gate, tail

    def _one(self, x_B1D: Tensor, previous: WorkingMemory, segments: Segments) -> tuple[Tensor, WorkingMemory]:
        """`forward` for one token a row without gradient, in three launches."""
        from cmrn.memory.decode_triton import memory_one

        x_BD, tail, keys, values, valid = memory_one(
            x_B1D[:, 0],
            self.norm.weight,
            [layer.weight for layer in (self.query, self.key, self.value, self.gate)],
            self.key_conv.weight,
            self.log_temperature,
            placeless(self.null_key, self.width),
            self.output.weight,
            self.norm.eps,
            narrow_type(x_B1D),
            None if segments.start_BT is None else segments.start_BT[:, 0],
            previous.tail_BTC,
            previous.keys_BHWC,
            previous.values_BHWC,
            previous.valid_BW,
        )
        return x_BD[:, None], WorkingMemory(keys, values, valid, tail)

    def _keep(
        self,
        k_BTHC: Tensor,
        v_BTHC: Tensor,
        first_BT: Tensor | None,
        previous: WorkingMemory,
        tail: Tensor,
        segments: Segments,
    ) -> WorkingMemory:
        """The last W entries of the document each row is in."""
        length, real_BT = k_BTHC.shape[1], segments.real_BT
        valid = F.pad(previous.valid_BW, (0, length), value=True)
        if first_BT is not None:
            places = torch.arange(-self.window, length, device=k_BTHC.device)
            valid = valid & ((places >= first_BT[:, -1:]) | (first_BT[:, -1:] < 0))
        pairs = [(previous.keys_BHWC, k_BTHC.transpose(1, 2)), (previous.values_BHWC, v_BTHC.transpose(1, 2))]
        if real_BT is not None:
            last = real_BT.sum(1, keepdim=True) + torch.arange(self.window, device=k_BTHC.device)
            index = last[:, None, :, None].expand(-1, self.heads, -1, self.width)
            keys, values = (torch.cat([a.to(b.dtype), b], 2).gather(2, index) for a, b in pairs)
            valid = valid.gather(1, last)
        else:
            valid = valid[:, length:]
            if length >= self.window:
                keys, values = (new[:, :, length - self.window :] for _, new in pairs)
            else:
                keys, values = (torch.cat([a[:, :, length:].to(b.dtype), b], 2) for a, b in pairs)
        return WorkingMemory(keys, values, valid, tail)


def _mean(share_BT: Tensor, real_BT: Tensor | None) -> Tensor:
    """The mean over real tokens."""
    if real_BT is None:
        return share_BT.mean()
    return (share_BT * real_BT).sum() / real_BT.sum().clamp(min=1)
