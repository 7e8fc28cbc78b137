"""How large a model is, and Llamas of the same size."""

from __future__ import annotations

from torch import nn

from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.config import CMRNConfig
from cmrn.experts import ExpertPool
from cmrn.model import CMRN

__all__ = ["active_parameters", "llama_of_equal_active", "llama_of_equal_total", "total_parameters"]

LAYERS_WIDTH = 8 / 3
"""Inner width of a Llama's SwiGLU as a multiple of d_model, before it is adjusted."""
TOLERANCE = 0.008


def total_parameters(model: nn.Module) -> int:
    """Parameters without the embedding and an untied head."""
    outside = {id(parameter) for name in ("embedding", "head") for parameter in _parameters(model, name)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in outside)


def active_parameters(model: CMRN | Llama) -> int:
    """Parameters that one token meets, without the embedding and an untied head.

    Mixers, memory reads, routers, norms, the shared expert, and of the routed experts routing_k times their mean, as
    types differ by a little. A model without experts is active as a whole.
    """
    idle = 0.0
    for module in model.modules():
        if isinstance(model, CMRN) and isinstance(module, ExpertPool):
            sizes = [sum(each.numel() for each in expert.parameters()) for expert in module.experts.values()]
            idle += sum(sizes) * (1 - model.config.routing_k / len(sizes))
    return round(total_parameters(model) - idle)


def llama_of_equal_active(config: CMRNConfig, active: int, **options: object) -> LlamaConfig:
    """A Llama as wide as the model and as deep as `active` parameters make it, its SwiGLU adjusted to match them.

    options: further fields of LlamaConfig.
    """
    layers = max(1, round(active / _layer_size(config.d_model, LAYERS_WIDTH * config.d_model)))
    return _fit(config.vocab_size, config.d_model, layers, active, options)


def llama_of_equal_total(config: CMRNConfig, active: int, total: int, **options: object) -> LlamaConfig:
    """A Llama of `total` parameters: as deep as that of equal active parameters, and wider by multiples of a head."""
    layers = llama_of_equal_active(config, active).layers
    head = _head_dim(config.d_model)
    wanted = (total / layers / _layer_size(1, LAYERS_WIDTH)) ** 0.5
    width = max(head, round(wanted / head) * head)
    return _fit(config.vocab_size, width, layers, total, {"head_dim": head, **options})


def _fit(vocab_size: int, width: int, layers: int, size: int, options: dict[str, object]) -> LlamaConfig:
    """The config whose SwiGLU makes up the size; its inner width is as round as a tolerance of 0.8 % allows."""
    wanted = (size / layers - _layer_size(width, 0)) / (3 * width)
    rounded = [max(step, round(wanted / step) * step) for step in (64, 32, 16, 8, 1)]
    near = [hidden for hidden in rounded if abs(layers * _layer_size(width, hidden) - size) <= TOLERANCE * size]
    fields = {"head_dim": _head_dim(width), **options}
    return LlamaConfig(vocab_size, width, layers, (near or rounded[-1:])[0], **fields)  # type: ignore[arg-type]


def _layer_size(width: float, hidden: float) -> float:
    return 4 * width * width + 3 * width * hidden


def _head_dim(width: int) -> int:
    """The largest even divisor of the width up to 64."""
    return next(size for size in range(min(64, width), 0, -1) if width % size == 0 and size % 2 == 0)


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    module = getattr(model, name, None)
    return [] if module is None else list(module.parameters())
