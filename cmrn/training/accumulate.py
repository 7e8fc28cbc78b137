"""One step's gradient, from as many micro-batches as memory asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmrn.data.packing import Batch
from cmrn.model import CMRN
from cmrn.training.device import Precision, autocast

__all__ = ["StepGradient", "accumulate", "out_of_memory"]


@dataclass(frozen=True)
class StepGradient:
    """What one batch said; the gradient itself is in the parameters.

    loss: nats per scored token, language only, scalar without gradient. loads: each block's (E,) share of choices.
    """

    loss: Tensor
    loads: tuple[Tensor, ...]


def accumulate(model: CMRN, batch: Batch, micro_batch: int, precision: Precision) -> StepGradient:
    """Leave in the parameters the gradient of the batch's loss, computed `micro_batch` rows at a time.

    Each micro-batch counts by its scored tokens, so the language loss and its gradient are those of the whole batch.
    The small auxiliary losses are means over tokens of each micro-batch, weighted alike.
    """
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    rows = batch.input_ids_BT.shape[0]
    losses, counts, loads, sizes = [], [], [], []
    for start in range(0, rows, micro_batch):
        part = slice(start, start + micro_batch)
        ids_BT, labels_BT, domains_BT, documents_BT = (
            each[part].to(device, non_blocking=True)
            for each in (batch.input_ids_BT, batch.labels_BT, batch.domain_ids_BT, batch.document_ids_BT)
        )
        with autocast(device, precision):
            output = model(ids_BT, labels_BT, domain_ids=domains_BT, document_ids=documents_BT)
        assert output.losses is not None
        count = output.losses.scored_tokens.detach()
        whole = micro_batch >= rows
        (output.losses.total if whole else output.losses.total * count).backward()
        losses.append(output.losses.language.detach() * count)
        counts.append(count)
        loads.append(torch.stack(model.expert_loads(output.routing)))
        sizes.append(len(ids_BT))
    scored = torch.stack(counts).sum().clamp(min=1)
    if micro_batch < rows:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_div_(gradients, float(scored))
    share = torch.tensor(sizes, device=device) / rows
    loads_LE = (torch.stack(loads) * share[:, None, None]).sum(0)
    return StepGradient(torch.stack(losses).sum() / scored, tuple(loads_LE))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised this because an allocation failed, on a device or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
