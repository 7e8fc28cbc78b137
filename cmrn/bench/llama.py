"""The Transformer everything is measured against: a Llama with QK-norm, tuned as far as ours is.

It has the model's own signature, head, loss, norm and initialisation, so that the same training step, optimizer and
evaluation serve both; nothing but the blocks differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.layers import CausalConv, Linear, Norm
from cmrn.loss import IGNORED, token_nats
from cmrn.records import Losses, Segments

__all__ = ["Cache", "Llama", "LlamaBlock", "LlamaConfig", "LlamaOutput"]


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a baseline.

    hidden: inner width of SwiGLU. head_dim divides d_model. window: tokens back that a token attends to, itself among
    them, in every layer but `full_layers`; None everywhere the whole past. conv: a causal depthwise convolution of
    4 on q, k and v. mask_documents: whether attention stops at a document's first token; off is the usual packing,
    in which only the loss knows of documents. dropout: of each branch and of the embedding, as ours.
    """

    vocab_size: int
    d_model: int
    layers: int
    hidden: int
    head_dim: int = 64
    window: int | None = None
    full_layers: tuple[int, ...] = ()
    conv: bool = False
    mask_documents: bool = False
    rope_base: float = 10_000.0
    eps: float = 1e-5
    output_scale: float = 0.5
    dropout: float = 0.0

    @property
    def heads(self) -> int:
        """Attention heads, all with keys and values of their own."""
        return self.d_model // self.head_dim

    def window_of(self, layer: int) -> int | None:
        """The window of a layer, None where it sees the whole past."""
        return None if layer in self.full_layers else self.window


@dataclass(frozen=True)
class Cache:
    """Keys and values of what was read, in buffers of fixed size, so that a decoding step can be captured.

    keys, values: (B,H,S,C) a layer, after QK-norm and RoPE; the first `length` places of S are filled. Forward writes
    the next tokens behind them, in place. tails: the last inputs of each layer's convolution.
    last_hidden_BD: the output before the head at the last token read.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tails: tuple[Tensor | None, ...]
    length: int
    last_hidden_BD: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size of the filled part, all layers."""
        places = self.keys[0].shape[2]
        return sum(each.nbytes for each in (*self.keys, *self.values)) * self.length // places


@dataclass(frozen=True)
class LlamaOutput:
    """What a forward pass returns; the fields that training and evaluation read are named as in CMRNOutput."""

    logits: Tensor
    loss: Tensor | None
    losses: Losses | None
    states: Cache | None
    routing: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What the blocks of one pass share. cos, sin: (T,C/2). documents_BT, segments: where reading stops, if at all."""

    cos: Tensor
    sin: Tensor
    documents_BT: Tensor | None
    segments: Segments


class Attention(nn.Module):
    """Causal softmax attention with RoPE (Su et al. 2021) and QK-norm (Henry et al. 2020)."""

    def __init__(self, config: LlamaConfig, window: int | None) -> None:
        super().__init__()
        self.heads, self.width, self.window = config.heads, config.head_dim, window
        self.query = Linear(config.d_model, config.d_model)
        self.key = Linear(config.d_model, config.d_model)
        self.value = Linear(config.d_model, config.d_model)
        self.conv = CausalConv(3 * config.d_model) if config.conv else None
        self.query_norm = Norm(config.head_dim, config.eps)
        self.key_norm = Norm(config.head_dim, config.eps)
        self.output = Linear(config.d_model, config.d_model, scale=config.output_scale)

    def forward(
        self, u_BTD: Tensor, reading: Reading, stored: tuple[Tensor, Tensor, Tensor | None, int] | None
    ) -> tuple[Tensor, Tensor | None]:
        """(what was read (B,T,D), the convolution's tail). stored: keys, values, tail and length of the cache."""
        # Three matrices for the optimizer, which orthogonalises each apart; one product here.
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        qkv, tail = F.linear(u_BTD, weight), None
        if self.conv is not None:
            qkv, tail = self.conv(qkv, stored and stored[2], reading.segments)
        q, k, v = (each.unflatten(-1, (-1, self.width)).transpose(1, 2) for each in qkv.chunk(3, -1))
        q = _rotate(self.query_norm(q), reading.cos, reading.sin).to(v.dtype)
        k = _rotate(self.key_norm(k), reading.cos, reading.sin).to(v.dtype)
        past = 0
        if stored is not None:
            keys, values, _, past = stored
            keys[:, :, past : past + k.shape[2]] = k
            values[:, :, past : past + v.shape[2]] = v
            first = 0 if self.window is None else max(0, past + 1 - self.window)
            k, v = (each[:, :, first : past + k.shape[2]].to(q.dtype) for each in (keys, values))
        read = attend(q, k, v, self.window, reading.documents_BT)
        return self.output(read.transpose(1, 2).flatten(2)), tail


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, documents_BT: Tensor | None) -> Tensor:
    """(B,H,T,C): the last T of the keys' S tokens ask; each reads itself and the `window` − 1 before it, or all.

    documents_BT: (B,T), only without stored keys; a token reads its own document.
    """
    length, span = q.shape[2], k.shape[2]
    if window is not None and window < length == span:
        return _attend_in_blocks(q, k, v, window, documents_BT)
    if length == span and documents_BT is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if length == 1 and documents_BT is None and (window is None or span <= window):
        return F.scaled_dot_product_attention(q, k, v)
    back = torch.arange(span - length, span, device=q.device)[:, None] - torch.arange(span, device=q.device)
    mask = back >= 0 if window is None else (back >= 0) & (back < window)
    if documents_BT is not None:
        mask = mask & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int, documents_BT: Tensor | None) -> Tensor:
    """Each block of `window` queries against its own keys and the block before: linear in the length."""
    length = q.shape[2]
    pad = -length % window
    q, k, v = (F.pad(each, (0, 0, 0, pad)).unflatten(2, (-1, window)).transpose(1, 2) for each in (q, k, v))
    k, v = (torch.cat([F.pad(each, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1], each], 3) for each in (k, v))
    place = torch.arange(2 * window, device=q.device)
    back = place[window:, None] - place
    mask = ((back >= 0) & (back < window)).expand(q.shape[1], -1, -1)
    within = torch.arange(q.shape[1], device=q.device)[:, None, None] > 0
    mask = (mask & (within | (place >= window)))[None, :, None]
    if documents_BT is not None:
        asks = F.pad(documents_BT, (0, pad)).unflatten(1, (-1, window))
        owns = torch.cat([F.pad(asks, (0, 0, 1, 0))[:, :-1], asks], 2)
        mask = mask & (asks[:, :, None, :, None] == owns[:, :, None, None, :])
    mask = mask.expand(q.shape[0], -1, q.shape[2], -1, -1).flatten(0, 1)
    read: Tensor = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
    read = read.unflatten(0, (-1, k.shape[1])).transpose(1, 2).flatten(2, 3)
    return read[:, :, :length]


def _starts(documents_BT: Tensor | None) -> Tensor | None:
    """(B,T) bool: where a document follows another."""
    if documents_BT is None:
        return None
    return F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0))


def _rotate(x_BHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs (i, i + C/2) turned by the angle of the token's place."""
    a, b = x_BHTC.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = Linear(config.d_model, config.hidden)
        self.up = Linear(config.d_model, config.hidden)
        self.down = Linear(config.hidden, config.d_model, scale=config.output_scale)

    def forward(self, u_BTD: Tensor) -> Tensor:
        """(B,T,D) to (B,T,D)."""
        a, b = F.linear(u_BTD, torch.cat([self.gate.weight, self.up.weight])).chunk(2, -1)
        down: Tensor = self.down(F.silu(a) * b)
        return down


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: LlamaConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config.d_model, config.eps)
        self.attention = Attention(config, config.window_of(index))
        self.feed_norm = Norm(config.d_model, config.eps)
        self.feed = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BTD: Tensor, reading: Reading, stored: tuple[Tensor, Tensor, Tensor | None, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(x_BTD, the convolution's tail)."""
        read, tail = self.attention(self.attention_norm(x_BTD), reading, stored)
        x_BTD = x_BTD + self.dropout(read)
        return x_BTD + self.dropout(self.feed(self.feed_norm(x_BTD))), tail


class Llama(nn.Module):
    """A Llama-style language model (Touvron et al. 2023) with tied embeddings and without biases."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(LlamaBlock(config, index) for index in range(config.layers))
        self.final_norm = Norm(config.d_model, config.eps)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        domain_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        states: Cache | None = None,
    ) -> LlamaOutput:
        """As CMRN's. A document's first token is not scored; domain_ids are ignored.

        attention_mask: 0 on padding, which must lie at the right; it only leaves those tokens out of the loss. states:
        `empty_cache`, or a former output's, to read on.
        """
        start = states.length if states else 0
        cos, sin = self._angles(start, input_ids.shape[1], input_ids.device)
        documents_BT = document_ids if self.config.mask_documents else None
        reading = Reading(cos, sin, documents_BT, Segments(None, _starts(documents_BT)))
        x_BTD, tails = self.dropout(self.embedding(input_ids)), []
        for index, block in enumerate(self.blocks):
            stored = (states.keys[index], states.values[index], states.tails[index], start) if states else None
            x_BTD, tail = block(x_BTD, reading, stored)
            tails.append(tail)
        hidden_BTD = self.final_norm(x_BTD)
        logits = F.linear(hidden_BTD, self.embedding.weight)
        losses = None if labels is None else self._losses(logits, labels, attention_mask, document_ids, states)
        after = None
        if states is not None:
            length = start + input_ids.shape[1]
            after = Cache(states.keys, states.values, tuple(tails), length, hidden_BTD[:, -1])
        return LlamaOutput(logits, losses.total if losses else None, losses, after)

    def empty_cache(self, batch: int, places: int, dtype: torch.dtype = torch.bfloat16) -> Cache:
        """Room for the keys and values of `places` tokens of each of `batch` texts."""
        config, weight = self.config, self.embedding.weight
        shape = (batch, config.heads, places, config.head_dim)
        keys, values = (
            tuple(torch.zeros(shape, dtype=dtype, device=weight.device) for _ in self.blocks) for _ in range(2)
        )
        tail = weight.new_zeros(batch, 3, 3 * config.d_model) if config.conv else None
        return Cache(keys, values, (tail,) * config.layers, 0)

    def _angles(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        half = torch.arange(self.config.head_dim // 2, device=device, dtype=wide) / (self.config.head_dim // 2)
        place = torch.arange(start, start + length, device=device, dtype=wide)
        angle = place[:, None] * self.config.rope_base**-half
        return angle.cos(), angle.sin()

    def _losses(
        self,
        logits: Tensor,
        labels_BT: Tensor,
        attention_mask: Tensor | None,
        document_BT: Tensor | None,
        states: Cache | None,
    ) -> Losses:
        if attention_mask is not None:
            labels_BT = labels_BT.masked_fill(attention_mask == 0, IGNORED)
        next_BT = F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
        if document_BT is not None:
            begins_BT = document_BT[:, 1:] != document_BT[:, :-1]
            next_BT = next_BT.masked_fill(F.pad(begins_BT, (0, 1)), IGNORED)
        nats, scored = token_nats(logits.flatten(0, 1), next_BT.flatten()), (next_BT != IGNORED).sum()
        if states is not None and states.last_hidden_BD is not None:
            edge = F.linear(states.last_hidden_BD, self.embedding.weight)
            nats = nats + token_nats(edge, labels_BT[:, 0])
            scored = scored + (labels_BT[:, 0] != IGNORED).sum()
        language, zero = nats / scored.clamp(min=1), nats.new_zeros(())
        return Losses(language, language, zero, zero, zero, scored)
