"""One temporal layer: gated delta rule with a short convolution, an output norm and a gate, at one timescale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import CausalConv, Linear, Norm, narrow_type, project, reads_one, stacked
from cmrn.records import Segments, TemporalState
from cmrn.temporal.rule import WIDEST_FLOAT32, WIDEST_ON_CUDA, gated_delta_rule

__all__ = ["TemporalLayer"]

WIDEST_ONE = 256
"""Widest head whose rows the kernel for one token holds."""


class TemporalLayer(nn.Module):
    """x + mix(norm(x)): reads the past through a state of head_dim x head_dim a head, whatever the length.

    log α = −A · softplus(W_a x + b) / timescale, so that a timescale of 2**i tokens stretches what is kept; A and b as
    Gated DeltaNet draws them. q and k are L2-normalised after convolution and SiLU; β = sigmoid(W_b x).
    Source: Yang et al. 2024, "Gated Delta Networks", section 3.2. Differs: the timescale, and the carried tail.
    """

    def __init__(self, config: CMRNConfig, timescale: int = 1) -> None:
        super().__init__()
        self.heads, self.width, self.timescale = config.num_heads, config.head_dim, timescale
        inner = self.heads * self.width
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.query = Linear(config.d_model, inner)
        self.key = Linear(config.d_model, inner)
        self.value = Linear(config.d_model, inner)
        self.gate = Linear(config.d_model, inner)
        self.decay = Linear(config.d_model, self.heads)
        self.beta = Linear(config.d_model, self.heads)
        self.conv = CausalConv(3 * inner)
        self.log_rate = nn.Parameter(torch.empty(self.heads))
        self.decay_bias = nn.Parameter(torch.empty(self.heads))
        self.output_norm = Norm(self.width, config.layer_norm_eps)
        self.output = Linear(inner, config.d_model, scale=0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A uniformly from (1, 16) and the bias so that softplus(b) is log-uniform in (0.001, 0.1)."""
        with torch.no_grad():
            self.log_rate.uniform_(1.0, 16.0).log_()
            step = torch.empty(self.heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.decay_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def initial_state(self, x_BTD: Tensor) -> TemporalState:
        """The state before a document: zeros, float64 for a float64 model and float32 otherwise."""
        batch, wide = x_BTD.shape[0], torch.promote_types(x_BTD.dtype, torch.float32)
        memory = x_BTD.new_zeros(batch, self.heads, self.width, self.width, dtype=wide)
        tail = x_BTD.new_zeros(batch, self.conv.width - 1, 3 * self.heads * self.width)
        return TemporalState(memory, tail, memory.new_zeros(batch, 0))

    def forward(
        self, x_BTD: Tensor, previous: TemporalState | None = None, segments: Segments | None = None
    ) -> tuple[Tensor, TemporalState]:
        """(x_BTD, state): the stream with this layer's reading added, and what to carry to the next call."""
        segments = segments or Segments()
        previous = previous or self.initial_state(x_BTD)
        if reads_one(self, x_BTD, segments) and self.width <= WIDEST_ONE:
            return self._one(x_BTD, previous, segments)
        u_BTD = self.norm(x_BTD)
        mixed = self._together if self._runs_together(u_BTD) else self._one_by_one
        gated_BTI, tail, memory, surprise_BTH = mixed(u_BTD, previous, segments)
        x_BTD = x_BTD + self.dropout(self.output(gated_BTI))
        return x_BTD, TemporalState(memory, tail, surprise_BTH.detach().mean(-1))

    def _one_by_one(
        self, u_BTD: Tensor, previous: TemporalState, segments: Segments
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(what the output projection reads, next tail, next memory, surprise of each head), step by step."""
        qkv, gate, decay, beta = project(
            u_BTD, (self.query, self.key, self.value), (self.gate,), (self.decay,), (self.beta,)
        )
        (q, k, v), tail = self.conv.heads(qkv, previous.tail_BTC, segments, self.width, parts=3, units=2, silu=True)
        g_BTH, beta_BTH = self._rates(decay, beta, segments, previous.memory_BHKV.dtype)
        o_BTHV, memory, surprise_BTH = gated_delta_rule(q, k, v, g_BTH, beta_BTH, previous.memory_BHKV)
        gated_BTHV = self.output_norm(o_BTHV) * F.silu(gate).view_as(o_BTHV)
        return gated_BTHV.flatten(-2), tail, memory, surprise_BTH

    def _together(
        self, u_BTD: Tensor, previous: TemporalState, segments: Segments
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same as one product and one operator."""
        from cmrn.temporal.mix_triton import Mixing, mix

        product_BTP = stacked(u_BTD, self.query, self.key, self.value, self.gate, self.decay, self.beta)
        norm = self.output_norm
        held = Mixing(self.conv.weight, self.log_rate, self.decay_bias, norm.weight, norm.eps, float(self.timescale))
        return mix(product_BTP, held, previous.tail_BTC, previous.memory_BHKV, segments)

    def _runs_together(self, u_BTD: Tensor) -> bool:
        """Whether the kernels take it: on CUDA, more than one token a row, not in float64, heads not too wide."""
        widest = WIDEST_FLOAT32 if u_BTD.dtype == torch.float32 else WIDEST_ON_CUDA
        several = u_BTD.is_cuda and u_BTD.shape[1] > 1 and u_BTD.dtype != torch.float64
        return several and self.width <= widest

    def _one(self, x_B1D: Tensor, previous: TemporalState, segments: Segments) -> tuple[Tensor, TemporalState]:
        """`forward` for one token a row without gradient, in three launches."""
        from cmrn.temporal.decode_triton import layer_one

        layers = (self.query, self.key, self.value, self.gate, self.decay, self.beta)
        x_BD, tail, memory, surprise_B = layer_one(
            x_B1D[:, 0],
            self.norm.weight,
            [layer.weight for layer in layers],
            self.conv.weight,
            (self.log_rate, self.decay_bias, float(self.timescale)),
            self.output_norm.weight,
            self.output.weight,
            self.norm.eps,
            narrow_type(x_B1D),
            None if segments.start_BT is None else segments.start_BT[:, 0],
            previous.tail_BTC,
            previous.memory_BHKV,
        )
        return x_BD[:, None], TemporalState(memory, tail, surprise_B[:, None])

    def _rates(
        self, decay_BTH: Tensor, beta_BTH: Tensor, segments: Segments, wide: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """g = log α and β in the state's type: -inf where a document begins, and 0 for both at padding."""
        rate = self.log_rate.to(wide).exp() / self.timescale
        g_BTH = -rate * F.softplus(decay_BTH.to(wide) + self.decay_bias.to(wide))
        beta_BTH = beta_BTH.to(wide).sigmoid()
        if segments.real_BT is not None:
            padding = ~segments.real_BT[..., None]
            g_BTH, beta_BTH = g_BTH.masked_fill(padding, 0.0), beta_BTH.masked_fill(padding, 0.0)
        if segments.start_BT is not None:
            g_BTH = g_BTH.masked_fill(segments.start_BT[..., None], -torch.inf)
        return g_BTH, beta_BTH
