"""Optimizers: Muon for the matrices inside the blocks or AdamW for all, with a state that is a table of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cmrn.config import TrainingConfig
from cmrn.errors import CheckpointError

__all__ = ["Muon", "OptimizerSet", "ParameterGroup", "orthogonalise", "parameter_groups"]

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
ELEMENTS_AT_ONCE = 1 << 26
ADAM_BETAS = (0.9, 0.95)
NOT_MATRICES = ("decay", "beta")
"""Linear maps to one number a head: rows of gates, not matrices that mix features."""


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

    Their state is read and written as tensors named `<parameter>.<quantity>`, so that it needs no pickle.
    """

    def __init__(self, groups: Iterable[ParameterGroup]) -> None:
        self.groups = tuple(group for group in groups if group.parameters)
        self._optimizers = tuple(_build(group) for group in self.groups)

    def step(self, share: float) -> None:
        """One step at `share` of each group's peak learning rate; parameters without gradient stay as they are."""
        for group, optimizer in zip(self.groups, self._optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = group.learning_rate * share
            optimizer.step()

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
    if group.optimizer == "muon":
        return Muon(parameters, group.learning_rate, group.weight_decay)
    fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in parameters)
    return AdamW(parameters, group.learning_rate, ADAM_BETAS, weight_decay=group.weight_decay, fused=fused)


class Muon(Optimizer):
    """Orthogonalised momentum: m ← μm + (1−μ)g; W ← (1 − lr·decay)W − lr · 0.2√max(rows, columns) · NS(μm + (1−μ)g).

    Source: Jordan et al. 2024, "Muon"; the scale, which lets it share AdamW's learning rate, from Liu et al. 2025,
    "Muon is Scalable for LLM Training", eq. 4.
    Differs from `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`: matrices of one shape, or of its transpose, go
    through the Newton–Schulz iteration together, as batched products, which halves its time on a CPU and shields it
    from contention; the norm that scales them is taken in float32. Values agree to bfloat16's rounding.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient; return what `closure`, run first with gradients on, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameters in _by_shape(group["params"]):
                    self._move(parameters, group["lr"], group["weight_decay"])
        return loss

    def _move(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        updates = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
            update = gradient.lerp(momentum, MOMENTUM)
            updates.append(update if update.shape[0] <= update.shape[1] else update.T)
        scale = 0.2 * lr * math.sqrt(max(parameters[0].shape))
        directions = orthogonalise(torch.stack(updates))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            aligned = direction if parameter.shape[0] <= parameter.shape[1] else direction.T
            parameter.add_(aligned, alpha=-scale)


def orthogonalise(x_NRC: Tensor) -> Tensor:
    """bfloat16 matrices with the singular vectors of x (R ≤ C) and singular values near 1, in about (0.7, 1.2).

    Five steps X ← aX + (bA + cA²)X with A = XXᵀ, of Jordan et al. 2024, on X = x / ‖x‖.
    """
    a, b, c = QUINTIC
    norm_N11 = torch.linalg.matrix_norm(x_NRC, keepdim=True, dtype=torch.float32)
    y: Tensor = (x_NRC / norm_N11.clamp(min=1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        gram = torch.bmm(y, y.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, gram, y, beta=a)
    return y


def _by_shape(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters with a gradient, those of one shape up to transposition together, in lists of bounded size."""
    buckets: dict[tuple[object, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            key = (*sorted(parameter.shape), parameter.device, parameter.dtype)
            buckets.setdefault(key, []).append(parameter)
    for bucket in buckets.values():
        size = max(1, ELEMENTS_AT_ONCE // max(1, bucket[0].numel()))
        for start in range(0, len(bucket), size):
            yield bucket[start : start + size]
