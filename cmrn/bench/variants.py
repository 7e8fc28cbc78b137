"""Models from plain data: ours with a part changed or taken out, and Llamas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmrn.bench.counts import active_parameters, total_parameters
from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.config import CMRNConfig
from cmrn.experts import ExpertModule
from cmrn.layers import CausalConv, Norm
from cmrn.model import CMRN, Block
from cmrn.records import Routing, Segments, TemporalState
from cmrn.temporal.layer import TemporalLayer

__all__ = ["CHANGES", "DenseLayer", "SilentLayer", "build_model", "cmrn_spec", "llama_spec", "sizes"]


class SilentLayer(nn.Module):
    """A temporal layer that reads nothing: x as it came, and a state that is never surprised."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(
        self, x_BTD: Tensor, previous: TemporalState | None = None, segments: Segments | None = None
    ) -> tuple[Tensor, TemporalState]:
        """(x_BTD, an empty state)."""
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        nothing = x_BTD.new_zeros(x_BTD.shape[0], self.heads, 1, 1, dtype=wide)
        return x_BTD, TemporalState(nothing, x_BTD[:, :0], nothing.new_zeros(x_BTD.shape[:2]))


class DenseLayer(nn.Module):
    """x + feed(norm(x)): one SwiGLU layer in the place of a pool of experts."""

    def __init__(self, config: CMRNConfig) -> None:
        super().__init__()
        chosen = config.routing_k + config.shared_expert
        self.norm = Norm(config.d_model, config.layer_norm_eps)
        self.feed = ExpertModule(config.d_model, chosen * config.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        routing: Routing,
        tail_BTC: Tensor | None,
        segments: Segments,
        u_BTD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(x_BTD, no tail, no latent divergence), whatever the routing. u_BTD: norm(x_BTD), where it is known."""
        y_ND, _ = self.feed((self.norm(x_BTD) if u_BTD is None else u_BTD).flatten(0, 1))
        return x_BTD + self.dropout(y_ND.view_as(x_BTD)), None, x_BTD.new_zeros(())


def _without_temporal(model: CMRN) -> None:
    for block in _blocks(model):
        block.temporal.layers = nn.ModuleList(SilentLayer(model.config.num_heads) for _ in block.temporal.layers)


def _dense(model: CMRN) -> None:
    for block in _blocks(model):
        block.experts = DenseLayer(model.config)  # type: ignore[assignment]


def _without_convolution(model: CMRN) -> None:
    """Every convolution of the mixers passes its input on; the layer's own code stays as it is."""
    for module in model.modules():
        if isinstance(module, CausalConv):
            with torch.no_grad():
                module.weight.zero_()
                module.weight[-1] = 1.0
            module.weight.requires_grad_(False)


def _one_timescale(model: CMRN) -> None:
    for module in model.modules():
        if isinstance(module, TemporalLayer):
            module.timescale = 1


CHANGES: dict[str, Callable[[CMRN], None]] = {
    "no-temporal": _without_temporal,
    "dense": _dense,
    "no-convolution": _without_convolution,
    "one-timescale": _one_timescale,
}
"""What can be done to a model that its configuration has no word for."""


def _blocks(model: CMRN) -> Iterable[Block]:
    return (cast(Block, block) for block in model.blocks)


def build_model(model: dict[str, Any]) -> CMRN | Llama:
    """The model of a RunSpec, drawn from torch's generator on the default device."""
    if model["kind"] == "llama":
        fields = {**model["config"], "full_layers": tuple(model["config"]["full_layers"])}
        return Llama(LlamaConfig(**fields))
    built = CMRN(CMRNConfig.model_validate(model["config"]))
    for change in model.get("changes", ()):
        CHANGES[change](built)
    return built


def cmrn_spec(config: CMRNConfig, changes: Iterable[str] = (), **fields: Any) -> dict[str, Any]:
    """The plain data of a model of ours; `fields` replace those of the configuration."""
    document = CMRNConfig.model_validate({**config.model_dump(mode="json"), **fields}).model_dump(mode="json")
    return {"kind": "cmrn", "config": document, "changes": list(changes)}


def llama_spec(config: LlamaConfig) -> dict[str, Any]:
    """The plain data of a Llama."""
    return {"kind": "llama", "config": {**vars(config), "full_layers": list(config.full_layers)}}


def sizes(model: dict[str, Any]) -> dict[str, int]:
    """Active and total parameters, embedding left out, without building any weights."""
    with torch.device("meta"):
        built = build_model(model)
    return {"active": active_parameters(built), "total": total_parameters(built)}
