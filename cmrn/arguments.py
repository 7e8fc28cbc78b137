"""What the arguments of a model's calls must be."""

from __future__ import annotations

import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.errors import UsageError
from cmrn.loss import IGNORED
from cmrn.records import CMRNState

__all__ = ["check_ids", "check_range", "check_shapes", "check_targets", "document_before", "new_tokens"]


def check_ids(input_ids: Tensor, config: CMRNConfig) -> None:
    """Refuse what is no batch of token ids."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise UsageError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (batch, tokens), not empty")
    check_range("token id", input_ids, config.vocab_size, "vocabulary of {} tokens")


def check_targets(
    batch: int, length: int, labels: Tensor | None, domain_ids: Tensor | None, config: CMRNConfig
) -> None:
    """Refuse labels outside the vocabulary, and domains that are none or of another shape."""
    if labels is not None:
        check_range("label", labels.masked_fill(labels == IGNORED, 0), config.vocab_size, "vocabulary of {} tokens")
    if domain_ids is not None:
        if tuple(domain_ids.shape) != (batch,):
            check_shapes(batch, length, domain_ids=domain_ids)
        if config.domains:
            check_range("domain id", domain_ids.clamp(min=0), len(config.domains), "{} domains")


def document_before(states: CMRNState | None, document_ids: Tensor | None) -> Tensor | None:
    """The document each row was in; a text read without ids so far is document 0."""
    if states is None or (states.document_B is None and document_ids is None):
        return None
    return torch.zeros_like(states.position_B) if states.document_B is None else states.document_B


def check_shapes(batch: int, length: int, **arguments: Tensor | None) -> None:
    """Refuse what is not shaped as input_ids are."""
    for name, tensor in arguments.items():
        if tensor is not None and tuple(tensor.shape) != (batch, length):
            raise UsageError(f"{name} has the shape {tuple(tensor.shape)}; input_ids has {(batch, length)}")


def check_range(name: str, values: Tensor, count: int, whole: str) -> None:
    """Refuse what lies outside [0, count); where looking would hold up a device, the device's own check must do."""
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise UsageError(
            f"{name} {low if low < 0 else high} is outside the {whole.format(count)}",
            hint="ids are those of model.tokenizer; domain ids index into model.config.domains",
        )


def new_tokens(prompt: int, max_length: int | None, max_new_tokens: int | None) -> int:
    """How many tokens may follow a prompt of so many."""
    if max_new_tokens is not None and max_new_tokens < 0:
        raise UsageError(f"max_new_tokens is {max_new_tokens}, below 0")
    limits = [] if max_new_tokens is None else [max_new_tokens]
    if max_length is not None:
        if max_length < prompt:
            raise UsageError(
                f"max_length is {max_length} but the prompt has {prompt} tokens already", hint="use max_new_tokens"
            )
        limits.append(max_length - prompt)
    return min(limits, default=128)
