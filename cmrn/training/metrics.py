"""What a model is worth on held-out text: bits per byte and routing purity, by domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from cmrn.data.evaluation import EvaluationBatch, EvaluationSet
from cmrn.model import CMRN
from cmrn.records import CMRNState
from cmrn.training.device import Precision, autocast
from cmrn.unseen import DocumentScores, unowned_share

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Figures by domain, each table with its "mean" over domains; tokens: how many were scored, over all domains.

    bits_per_byte: nats of the scored tokens over ln 2 over the UTF-8 bytes of their text.
    routing_purity: share of a domain's tokens whose largest routing weight belongs to an expert that owns the domain;
    only domains that an expert owns. unowned: each domain's documents as `cmrn.unseen` scores them; empty where no
    expert owns a domain.
    """

    bits_per_byte: dict[str, float]
    routing_purity: dict[str, float]
    tokens: int
    unowned: dict[str, DocumentScores] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class _Totals:
    nats: float = 0.0
    scored: int = 0
    bytes: int = 0
    read: int = 0
    pure: int = 0
    unowned: DocumentScores | None = None


def evaluate(
    model: CMRN,
    evaluation_set: EvaluationSet,
    max_tokens: int | None = None,
    precision: Precision = "float32",
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Read each domain's held-out text from the start, at most `max_tokens` of it, with states carried along.

    The model is in eval mode meanwhile, draws nothing at random, and is left as it was. between: called after every
    batch; what it raises ends the evaluation.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            totals = {
                domain: _read(model, batches, domain, precision, between)
                for domain, batches in evaluation_set.streams(max_tokens).items()
            }
    finally:
        model.train(was_training)
    bits = {name: total.nats / math.log(2) / total.bytes for name, total in totals.items() if total.bytes}
    purity = {name: total.pure / total.read for name, total in totals.items() if name in model.config.domains}
    unowned = {name: total.unowned for name, total in totals.items() if total.unowned is not None}
    return Evaluation(_with_mean(bits), _with_mean(purity), sum(total.scored for total in totals.values()), unowned)


def _read(
    model: CMRN,
    batches: Iterable[EvaluationBatch],
    domain: str,
    precision: Precision,
    between: Callable[[], None] | None,
) -> _Totals:
    device = next(model.parameters()).device
    owners = torch.tensor([domain in expert.domains for expert in model.config.named_experts], device=device)
    states: CMRNState | None = None
    nats, scored, text_bytes, read, pure = 0.0, 0, 0, 0, 0
    documents: DocumentScores | None = None
    for batch in batches:
        ids_BT, labels_BT, documents_BT, mask_BT = (
            each.to(device)
            for each in (batch.input_ids_BT, batch.labels_BT, batch.document_ids_BT, batch.attention_mask_BT)
        )
        # Looked through here, on the host: a device would have to be waited for, or follow a mask that hides nothing.
        padded = not bool(batch.attention_mask_BT.all())
        with autocast(device, precision):
            output = model(ids_BT, labels_BT, mask_BT if padded else None, document_ids=documents_BT, states=states)
        assert output.losses is not None
        count = int(output.losses.scored_tokens)
        nats += float(output.losses.language) * count
        scored += count
        text_bytes += batch.scored_bytes
        real_BT = mask_BT.bool()
        read += int(real_BT.sum())
        pure += int((owners[output.routing_weights.argmax(-1)] & real_BT).sum())
        unowned_BT = unowned_share(model.config, output.routing)
        if unowned_BT is not None:
            documents = documents or DocumentScores()
            documents.add(unowned_BT, documents_BT, real_BT)
        states = output.states
        if between is not None:
            between()
    return _Totals(nats, scored, text_bytes, read, pure, documents)


def _with_mean(table: dict[str, float]) -> dict[str, float]:
    return {**table, "mean": sum(table.values()) / len(table)} if table else {}
