"""Optimizers: Muon for the matrices inside the blocks or AdamW for all, with a state that is a table of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cmrn.config import TrainingConfig
from cmrn.errors import CheckpointError
from cmrn.together import Together
from cmrn.training.muon import Muon

__all__ = ["OptimizerSet", "ParameterGroup", "parameter_groups"]

ADAM_BETAS = (0.9, 0.95)
NOT_MATRICES = ("decay", "beta", "salience", "recency")
"""Linear maps to one number a head or token: rows of gates, not matrices that mix features."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters, by name, that one optimizer moves alike. learning_rate is the peak."""

    optimizer: Literal["adamw", "muon"]
    parameters: dict[str, nn.Parameter]
    learning_rate: float
    weight_decay: float


def parameter_groups(model: nn.Module, config: TrainingConfig) -> tuple[ParameterGroup, ParameterGroup]:
    """(matrices, all else) of the parameters that require gradient.

    Matrices are the weights of linear maps inside blocks: mixers, memory reads, experts. All else (embedding, head,
    router, norms, convolutions, biases, decay and beta rows) is moved by AdamW and not decayed.
    """
    chosen = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and ".router." not in name
        and name.rpartition(".")[2] not in NOT_MATRICES
    }
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {name: parameter for name, parameter in trained.items() if name in chosen}
    others = {name: parameter for name, parameter in trained.items() if name not in chosen}
    rate = config.learning_rate
    if config.optimizer == "muon":
        rate = config.muon_learning_rate or rate
    return (
        ParameterGroup(config.optimizer, matrices, rate, config.weight_decay),
        ParameterGroup("adamw", others, config.learning_rate, 0.0),
    )


class OptimizerSet:
    """The optimizers of a model, stepped together.

    Their state is read and written as tensors named `<parameter>.<quantity>`, so that it needs no pickle. Float32
    parameters on CUDA are stepped without a word from the host: rates are tensors there, and `step` can be captured.
    """

    def __init__(self, groups: Iterable[ParameterGroup]) -> None:
        self.groups = tuple(group for group in groups if group.parameters)
        self._optimizers = tuple(_build(group) for group in self.groups)
        self._together = Together()

    @property
    def capturable(self) -> bool:
        """Whether every optimizer's rate is a tensor on its device."""
        return all(isinstance(optimizer.param_groups[0]["lr"], Tensor) for optimizer in self._optimizers)

    def set_share(self, share: float) -> None:
        """Let the next steps take `share` of each group's peak learning rate."""
        for group, optimizer in zip(self.groups, self._optimizers, strict=True):
            rate = group.learning_rate * share
            if isinstance(optimizer.param_groups[0]["lr"], Tensor):
                optimizer.param_groups[0]["lr"].fill_(rate)
            else:
                optimizer.param_groups[0]["lr"] = rate

    def guard(self, grad_scale: Tensor, found_inf: Tensor) -> None:
        """Divide gradients by `grad_scale` from now on, and do nothing in steps in which `found_inf` is 1.

        Both are float32 scalars on the device of the parameters, read when a step runs; only for `capturable` sets.
        """
        for optimizer in self._optimizers:
            optimizer.grad_scale = grad_scale  # type: ignore[attr-defined]
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]

    def move(self) -> None:
        """One step at the rates that are set; parameters without gradient stay as they are."""
        if self._optimizers:
            first, *others = (optimizer.step for optimizer in self._optimizers)
            self._together(next(iter(self.groups[0].parameters.values())).device, first, *others)

    def step(self, share: float) -> None:
        """One step at `share` of each group's peak learning rate; parameters without gradient stay as they are."""
        self.set_share(share)
        self.move()

    def tensors(self) -> dict[str, Tensor]:
        """The state, not copied."""
        return {
            f"{name}.{key}": value
            for name, state in self._states()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the state by a former `tensors()`.

        Raises:
            CheckpointError: a tensor belongs to no parameter, or has another shape than its parameter.
        """
        left = dict(tensors)
        for group, optimizer in zip(self.groups, self._optimizers, strict=True):
            for name, parameter in group.parameters.items():
                state: dict[str, Tensor] = {}
                for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                    value = left.pop(f"{name}.{key}", None)
                    if value is None:
                        continue
                    if key != "step" and value.shape != parameter.shape:
                        shapes = f"{tuple(value.shape)}, not {tuple(parameter.shape)}"
                        raise CheckpointError(f"the optimizer's state {name}.{key} is {shapes}")
                    # The type is kept too: a moment rounded to the parameter's type would not be the one saved.
                    state[key] = value.to(parameter.device, copy=True)
                optimizer.state[parameter] = state
        if left:
            raise CheckpointError(f"the optimizer's state {min(left)} belongs to no parameter of this model")

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for group, optimizer in zip(self.groups, self._optimizers, strict=True):
            for name, parameter in group.parameters.items():
                yield name, optimizer.state.get(parameter, {})


def _build(group: ParameterGroup) -> Optimizer:
    parameters = list(group.parameters.values())
    capturable = all(parameter.is_cuda and parameter.dtype == torch.float32 for parameter in parameters)
    rate = torch.tensor(group.learning_rate, device=parameters[0].device) if capturable else group.learning_rate
    if group.optimizer == "muon":
        return Muon(parameters, rate, group.weight_decay)
    fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in parameters)
    return AdamW(parameters, rate, ADAM_BETAS, weight_decay=group.weight_decay, fused=fused, capturable=capturable)
