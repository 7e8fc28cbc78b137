"""One training step: gradient, clipping, optimizers, balance; and skipped whole where a number is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from cmrn.data.packing import Batch
from cmrn.errors import ResourceError
from cmrn.training.accumulate import accumulate, out_of_memory
from cmrn.training.carry import Carried
from cmrn.training.device import Precision
from cmrn.training.optim import OptimizerSet

__all__ = ["PlainStep", "StepResult", "TrainingStep", "training_step"]


@dataclass(frozen=True)
class StepResult:
    """What a step did. loss: nats per scored token, language only. norm: of the gradient before clipping.

    load: share of choices each expert received, mean over blocks; empty for a model that does not route. finite: False
    where loss or gradient was not, so that nothing was changed.
    """

    loss: float
    norm: float
    load: tuple[float, ...]
    finite: bool


class TrainingStep(Protocol):
    """Takes a step with a batch, `micro_batch` rows at a time, at a share of the peak learning rates.

    What it returns gives the result when called, and only then waits for the device.
    """

    carried: Carried

    def __call__(self, batch: Batch, micro_batch: int, share: float) -> Callable[[], StepResult]:
        """Take the step."""


def training_step(
    model: nn.Module,
    optimizers: OptimizerSet,
    gradient_clip: float,
    precision: Precision,
    *,
    capture: bool = True,
    carry: bool = False,
) -> TrainingStep:
    """The fastest step for this model: on CUDA one graph that is replayed, elsewhere plain calls.

    model: any that is called as CMRN is, with its layers in `blocks`. capture: False for plain calls everywhere; a
    model that recomputes its blocks (gradient_checkpointing) or is not of float32 gets them too. carry: whether the
    model's state goes on from batch to batch, whose rows then go on too, as `LaneDataset` gives them.
    """
    recomputes = getattr(getattr(model, "config", None), "gradient_checkpointing", False)
    if capture and optimizers.capturable and not recomputes:
        from cmrn.training.capture import CapturedStep

        return CapturedStep(model, optimizers, gradient_clip, precision, carry=carry)
    return PlainStep(model, optimizers, gradient_clip, precision, carry=carry)


class PlainStep:
    """A step as it is defined; the host sees loss and norm before the optimizers move anything."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: OptimizerSet,
        gradient_clip: float,
        precision: Precision,
        *,
        carry: bool = False,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.gradient_clip, self.precision = gradient_clip, precision
        self.carried = Carried(carry)

    def __call__(self, batch: Batch, micro_batch: int, share: float) -> Callable[[], StepResult]:
        """Take the step; the result is there at once."""
        self.carried.begin(self.model, batch, self.precision)
        gradient = accumulate(self.model, batch, micro_batch, self.precision, self.carried.states)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norm = clip_grad_norm_(parameters, self.gradient_clip)
        parts = [torch.stack([gradient.loss.float(), norm.float()])]
        if gradient.loads:
            parts.append(torch.stack(gradient.loads).mean(0).float())
        loss, size, *load = torch.cat(parts).tolist()
        finite = bool(torch.isfinite(torch.tensor([loss, size])).all())
        if finite:
            self._move(share)
            if gradient.loads:
                self.model.update_balance(gradient.loads)  # type: ignore[operator]
            self.carried.keep(gradient.states, torch.ones((), device=gradient.loss.device))
        self.model.zero_grad(set_to_none=True)
        result = StepResult(loss, size, tuple(load), finite)
        return lambda: result

    def _move(self, share: float) -> None:
        """Step the optimizers; want of memory here is no reason to try again with smaller micro-batches."""
        try:
            self.optimizers.step(share)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            hint = "a smaller model, or optimizer=muon, which keeps half as much"
            raise ResourceError("out of memory for the optimizers' state", where="training", hint=hint) from error
