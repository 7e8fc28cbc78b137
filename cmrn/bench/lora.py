"""Low-rank adaptation beside our experts: every linear map of the blocks gets W + (α/r)·BA, and only A and B learn.

The definition is that of Hu et al. 2021, "LoRA", as peft has it (tested against it). Written as a reparametrisation of
the weight, since kernels of ours read weights and not modules; what it computes is the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["LowRank", "adapt", "adapted_maps", "merge", "rank_for"]


class LowRank(nn.Module):
    """weight ↦ weight + scale·BA, with A (r, in) drawn and B (out, r) zero, so that it begins as it was."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = scale
        self.down_A = nn.Parameter(torch.empty(rank, columns, device=weight.device, dtype=weight.dtype))
        self.up_B = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.down_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.scale * (self.up_B @ self.down_A)


def adapted_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps that are adapted: those of mixers, memory reads and experts; gates and routers stay."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and ".router." not in name
        and name.rpartition(".")[2] not in ("decay", "beta")
    }


def rank_for(model: nn.Module, parameters: int) -> int:
    """The rank at which all adapted maps together have about so many parameters; at least 1."""
    a_rank = sum(sum(module.weight.shape) for module in adapted_maps(model).values())
    return max(1, round(parameters / a_rank))


def adapt(model: nn.Module, rank: int, alpha: float | None = None) -> dict[str, nn.Parameter]:
    """Freeze the model, adapt its maps in place, and return what learns, by name. alpha: 2·rank by default."""
    model.requires_grad_(False)
    for module in adapted_maps(model).values():
        parametrize.register_parametrization(
            module, "weight", LowRank(module.weight, rank, (2 * rank if alpha is None else alpha) / rank), unsafe=True
        )
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge(model: nn.Module) -> None:
    """Replace every adapted weight by its value; the model is then built as it was before."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
