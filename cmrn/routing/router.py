"""Which experts read which token: a parser of local meaning, a network from meaning to logits, a choice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrn.config import CMRNConfig
from cmrn.layers import CausalConv, Linear, Norm, narrow_type, reads_one
from cmrn.records import Routing, Segments
from cmrn.routing.gating import MOST_TOGETHER, choose_experts, fixed_choice, hash_experts
from cmrn.routing.recent import recent_mean

__all__ = ["DynamicRouter", "RoutingNetwork", "SemanticParser"]


class SemanticParser(nn.Module):
    """Semantic tags of each token: SiLU(P · conv(norm(x))), over the token and the three before it.

    With `router_span` the recent mean of the document's tags stands beside them (`recent_mean`).
    """

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.conv = CausalConv(config.d_model)
        self.projection = Linear(config.d_model, config.router_dim)
        self.span = config.router_span

    def forward(
        self, x_BTD: Tensor, tail_BTC: Tensor | None, segments: Segments, sums_BC: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(tags (B,T,router_width), tail to carry, sums of the recent mean to carry or None)."""
        mixed, tail = self.conv(self.norm(x_BTD), tail_BTC, segments)
        tags = F.silu(self.projection(mixed))
        if not self.span:
            return tags, tail, None
        mean, sums_BC = recent_mean(tags, sums_BC, segments, self.span)
        return torch.cat([tags.to(mean.dtype), mean], -1), tail, sums_BC


class RoutingNetwork(nn.Module):
    """Tags to logits, in at least float32 whatever the precision of the rest.

    Buffers: `bias_E`, added for the choice only and moved by the balance; `temperature`, set by the trainer's schedule
    and kept in the checkpoint. `silent`: experts that no token may choose (see `cmrn.domain_expert`).
    """

    bias_E: Tensor
    temperature: Tensor

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        self.silent: frozenset[int] = frozenset()
        self.weight_ER = nn.Parameter(torch.empty(config.num_experts, config.router_width))
        nn.init.normal_(self.weight_ER, std=config.router_width**-0.5)
        self.register_buffer("bias_E", torch.zeros(config.num_experts))
        self.register_buffer("temperature", torch.tensor(config.routing_temperature))

    def forward(self, tags: Tensor) -> Tensor:
        """logits_BTE, float32, or float64 for a float64 model; -inf for silent experts.

        The others' logits are computed without the silent rows, so that every bit is that of a model without them.
        """
        wide = torch.promote_types(self.weight_ER.dtype, torch.float32)
        with torch.autocast(tags.device.type, enabled=False):
            if not self.silent:
                return F.linear(tags.to(wide), self.weight_ER.to(wide))
            heard = [expert for expert in range(len(self.weight_ER)) if expert not in self.silent]
            logits = F.linear(tags.to(wide), self.weight_ER[heard].to(wide))
            everyone = logits.new_full((*logits.shape[:-1], len(self.weight_ER)), -torch.inf)
            everyone[..., heard] = logits
            return everyone


class DynamicRouter(nn.Module):
    """Parses the stream and chooses routing_k experts for every token, by `routing_strategy`."""

    salt: Tensor

    def __init__(self, config: CMRNConfig, block: int) -> None:
        super().__init__()
        self.strategy, self.k, self.num_experts = config.routing_strategy, config.routing_k, config.num_experts
        # A tensor, so that compiled code serves every block.
        self.register_buffer("salt", torch.tensor(block), persistent=False)
        self.semantic_parser = SemanticParser(config) if self.strategy == "learned" else None
        self.routing_network = RoutingNetwork(config) if self.strategy == "learned" else None

    def forward(
        self, x_BTD: Tensor, tail_BTC: Tensor | None, segments: Segments, numbers_BT: Tensor
    ) -> tuple[Routing, Tensor | None]:
        """(routing, tail to carry). numbers_BT is what a fixed strategy hashes: token ids, or places in a document."""
        routing, tail, _ = self.read(x_BTD, tail_BTC, segments, numbers_BT, None)
        return routing, tail

    def read(
        self,
        x_BTD: Tensor,
        tail_BTC: Tensor | None,
        segments: Segments,
        numbers_BT: Tensor,
        sums_BC: Tensor | None,
    ) -> tuple[Routing, Tensor | None, Tensor | None]:
        """`forward`, and the sums of the recent mean, in and out; None without `router_span`."""
        if self.semantic_parser is None or self.routing_network is None:
            chosen_BTK = hash_experts(numbers_BT, self.num_experts, self.k, self.salt)
            return (
                fixed_choice(chosen_BTK, self.num_experts, torch.promote_types(x_BTD.dtype, torch.float32)),
                None,
                None,
            )
        alone = reads_one(self, x_BTD, segments) and not self.routing_network.silent and not self.semantic_parser.span
        if alone and self.num_experts <= MOST_TOGETHER:
            routing, tail = self._one(self.semantic_parser, self.routing_network, x_BTD, tail_BTC, segments)
            return routing, tail, None
        tags, tail, sums_BC = self.semantic_parser(x_BTD, tail_BTC, segments, sums_BC)
        network = self.routing_network
        routing = choose_experts(network(tags), network.bias_E, network.temperature, self.k, noisy=self.training)
        return routing, tail, sums_BC

    def _one(
        self,
        parser: SemanticParser,
        network: RoutingNetwork,
        x_B1D: Tensor,
        tail_BTC: Tensor | None,
        segments: Segments,
    ) -> tuple[Routing, Tensor]:
        """`forward` for one token a row without gradient and noise, in one launch."""
        from cmrn.routing.decode_triton import route_one

        logits, weights, indices, gates, tail = route_one(
            x_B1D[:, 0],
            parser.norm.weight,
            parser.norm.eps,
            parser.conv.weight,
            parser.conv.initial_tail(x_B1D) if tail_BTC is None else tail_BTC,
            None if segments.start_BT is None else segments.start_BT[:, 0],
            parser.projection.weight,
            network.weight_ER,
            network.bias_E,
            network.temperature,
            self.k,
            narrow_type(x_B1D),
        )
        return Routing(weights[:, None], indices[:, None], gates[:, None], logits[:, None]), tail
