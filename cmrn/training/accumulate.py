"""One step's gradient, from as many micro-batches as memory asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmrn.data.packing import Batch
from cmrn.records import CMRNState, Routing
from cmrn.training.carry import join_rows, rows_of
from cmrn.training.device import Precision, autocast

__all__ = ["StepGradient", "accumulate", "out_of_memory"]


@dataclass(frozen=True)
class StepGradient:
    """What one batch said; the gradient itself is in the parameters.

    loss: nats per scored token, language only, scalar without gradient. loads: each block's (E,) share of choices; none
    of a model that does not route. states: to be carried to the next batch, without gradient; None where none came in.
    """

    loss: Tensor
    loads: tuple[Tensor, ...]
    states: CMRNState | None = None


def accumulate(
    model: nn.Module, batch: Batch, micro_batch: int, precision: Precision, states: CMRNState | None = None
) -> StepGradient:
    """Leave in the parameters the gradient of the batch's loss, computed `micro_batch` rows at a time.

    states: what each row reads on from.

    Each micro-batch counts by its scored tokens, so the language loss and its gradient are those of the whole batch.
    The small auxiliary losses are means over tokens of each micro-batch, weighted alike. model: called as CMRN is, and
    returns what has `losses` and `routing`. On CUDA the host waits for nothing, so the call can be captured.
    """
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    rows = batch.input_ids_BT.shape[0]
    losses, counts, loads, carried = [], [], [], []
    for start in range(0, rows, micro_batch):
        part = slice(start, start + micro_batch)
        ids_BT, labels_BT, domains_BT, documents_BT = (
            each[part].to(device, non_blocking=True)
            for each in (batch.input_ids_BT, batch.labels_BT, batch.domain_ids_BT, batch.document_ids_BT)
        )
        reads_on = {} if states is None else {"states": rows_of(states, part)}
        with autocast(device, precision):
            output = model(ids_BT, labels_BT, domain_ids=domains_BT, document_ids=documents_BT, **reads_on)
        assert output.losses is not None
        count = output.losses.scored_tokens.detach()
        whole = micro_batch >= rows
        (output.losses.total if whole else output.losses.total * count).backward()
        losses.append(output.losses.language.detach() * count)
        counts.append(count)
        if states is not None:
            carried.append(output.states.detach())
        if output.routing:
            loads.append(_loads(output.routing) * (len(ids_BT) / rows))
    scored = torch.stack(counts).sum().clamp(min=1)
    if micro_batch < rows:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_div_(gradients, scored.float() if device.type == "cuda" else float(scored))
    return StepGradient(
        torch.stack(losses).sum() / scored,
        tuple(torch.stack(loads).sum(0)) if loads else (),
        join_rows(carried) if carried else None,
    )


def _loads(routing: Sequence[Routing]) -> Tensor:
    """(L,E) `expert_load` of every block, all at once."""
    chosen_LBTE = torch.stack([each.weights_BTE.detach() for each in routing]) > 0
    counts_LE = chosen_LBTE.flatten(1, 2).sum(1).float()
    return counts_LE / counts_LE.sum(1, keepdim=True).clamp(min=1)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised this because an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
