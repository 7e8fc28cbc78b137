"""The state a model carries from batch to batch in training: gradients stop at a batch's edge, values do not.

Truncated backpropagation through time (Williams and Peng 1990), with chunks of one batch's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cmrn.data.packing import Batch
from cmrn.errors import CheckpointError
from cmrn.records import CMRNState, map_tensors, tensors_of
from cmrn.training.device import Precision, autocast
from cmrn.training.random_state import restore_random, save_random

__all__ = ["Carried", "fill_states", "fresh_states", "join_rows", "keep_finite", "rows_of", "state_tensors"]

NO_DOCUMENT = -1


def fresh_states(model: nn.Module, batch: Batch, precision: Precision) -> CMRNState:
    """States of as many rows as the batch has, before any text: in buffers of their own, for `keep_finite` to fill.

    Their shapes and types are those the model gives when it reads the batch; no random number is drawn.
    """
    document, tensors = save_random()
    device = next(model.parameters()).device
    with torch.no_grad(), autocast(device, precision):
        states = model(batch.input_ids_BT.to(device), document_ids=batch.document_ids_BT.to(device)).states
    restore_random(document, tensors)
    fresh: CMRNState = map_tensors(states, lambda each: torch.zeros_like(each, memory_format=torch.contiguous_format))
    assert fresh.document_B is not None
    fresh.document_B.fill_(NO_DOCUMENT)
    return fresh


def rows_of(states: CMRNState, rows: slice) -> CMRNState:
    """Some rows of the states."""
    return map_tensors(states, lambda each: each[rows])


def join_rows(parts: Sequence[CMRNState]) -> CMRNState:
    """States of the parts' rows, in order."""
    if len(parts) == 1:
        return parts[0]
    columns = iter(zip(*(tensors_of(part) for part in parts), strict=True))
    return map_tensors(parts[0], lambda _: torch.cat(next(columns)))


def keep_finite(states: CMRNState, new: CMRNState, finite: Tensor) -> None:
    """Put `new` into the buffers of `states`, unless `finite`, a scalar, is 0; without a word to the host."""
    for old, value in zip(tensors_of(states), tensors_of(new), strict=True):
        old.copy_(torch.where(finite.bool(), value.to(old.dtype), old))


def state_tensors(states: CMRNState | None) -> dict[str, Tensor]:
    """The tensors of the states by place, for a checkpoint; none where nothing is carried."""
    return {} if states is None else {f"{i:03d}": each for i, each in enumerate(tensors_of(states))}


def fill_states(states: CMRNState, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave into the buffers of `states`.

    Raises:
        CheckpointError: the tensors are not those of such states.
    """
    own = state_tensors(states)
    if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
        raise CheckpointError("the carried state in the checkpoint is not of this model and batch")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


class Carried:
    """What a training step carries from batch to batch: buffers made at the first one, and saved with a checkpoint.

    on: whether anything is carried; without it `states` stays None.
    """

    def __init__(self, on: bool) -> None:
        self.on = on
        self.states: CMRNState | None = None
        self._saved: Mapping[str, Tensor] = {}

    def begin(self, model: nn.Module, batch: Batch, precision: Precision) -> None:
        """Make the buffers, if there are none yet: fresh ones, or as they were saved."""
        if not self.on or self.states is not None:
            return
        self.states = fresh_states(model, batch, precision)
        if self._saved:
            fill_states(self.states, self._saved)

    def keep(self, new: CMRNState | None, finite: Tensor) -> None:
        """Carry `new` on, unless `finite`, a scalar, is 0."""
        if self.states is not None and new is not None:
            keep_finite(self.states, new, finite)

    def tensors(self) -> dict[str, Tensor]:
        """The states by name, for a checkpoint; nothing where nothing is carried."""
        return state_tensors(self.states)

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Begin from what `tensors` gave; for before the first step."""
        self._saved = saved
