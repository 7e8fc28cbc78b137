"""A new domain for a trained model: its expert is trained, and not a bit of anything else changes.

Frozen weights alone do not keep old domains: the new router row would take tokens of old text. Three things stand
against it: the row starts where the tags of the domain's text lie and those of old text do not; old text is read beside
the new, and its labels push the row away; and after training a margin is taken off the row's logit for the choice, the
smallest that keeps a sample of old text as it was (Shi et al. 2025, "FlexOlmo", start rows alike, without the rest).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmrn.config import ExpertConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset
from cmrn.domain_expert import routing_networks
from cmrn.errors import GuaranteeError, UsageError
from cmrn.experts.growth import expert_named, hash_tensors, without_expert
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer
from cmrn.training.metrics import Evaluation, evaluate
from cmrn.training.row import Margin, choose_margin, place_row, tried_tokens

if TYPE_CHECKING:
    from cmrn.training.trainer import CMRNTrainer

__all__ = ["DomainResult", "OldText", "continual_train", "domain_batches", "only_expert", "owner_of"]

REPLAY_SHARE = 0.5
"""Share of the rows that hold old text, where there is any."""
LONGEST_TOKEN = 16
"""Characters that a token has at most, on the mean of a document."""


@dataclass(frozen=True)
class OldText:
    """Documents of the old domains to read again, and the weight of each of their sources; no weights: all alike."""

    documents: tuple[Document, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class DomainResult:
    """What the training of a domain's expert ended with.

    margin: what was chosen on old text, None without any. trained_tokens: replay included. read_tokens: read without
    gradient, to place the row and to choose the margin. sha256: of everything but the expert, before and after; None
    where all was trained. seconds: time of the training.
    """

    expert: str
    margin: Margin | None
    trained_tokens: int
    read_tokens: int
    sha256: str | None
    bits_per_byte: dict[str, float]
    routing_purity: dict[str, float]
    seconds: float


def owner_of(model: CMRN, domain: str) -> ExpertConfig:
    """The expert that was added last of those that own the domain.

    Raises:
        UsageError: no expert owns it.
    """
    owners = [expert for expert in model.config.named_experts if domain in expert.domains]
    if not owners:
        raise UsageError(f"no expert owns the domain {domain!r}", hint="add one: trainer.add_domain_expert(name)")
    return owners[-1]


def continual_train(
    trainer: CMRNTrainer,
    data: Sequence[Document],
    domain: str,
    old: OldText,
    *,
    freeze: bool,
    keep_threshold: float,
    phrase_share: float,
    eval_dataset: EvaluationSet | None,
) -> DomainResult:
    """Train the domain's expert in `trainer.model`; see `CMRNTrainer.continual_train`."""
    from cmrn.training.trainer import CMRNTrainer

    model, name = trainer.model, owner_of(trainer.model, domain).name
    dataset = domain_batches(trainer, data, domain, old, phrase_share)
    config = trainer.config.model_copy(update={"routing_temperature_schedule": "constant"})
    trained = config.max_steps * config.batch_size * config.sequence_length
    before = _rest(model, name)
    read = 0
    with ExitStack() as stack:
        if freeze:
            read = place_row(model, name, domain, dataset, config, trainer.precision)
            stack.enter_context(only_expert(model, name))
        inner = CMRNTrainer(
            model,
            config,
            seed=trainer.seed,
            reporter=trainer.reporter,
            device=str(trainer.device),
            resume_hint="begin again: an expert is trained in one go",
        )
        result = inner.train(dataset)
    margin = None
    if freeze and old.documents:
        tokens = tried_tokens(trained)
        sample = EvaluationSet.build(
            _some(old.documents, tokens), _tokenizer(model), model.config.domains, config.sequence_length,
            config.batch_size,
        )  # fmt: skip
        margin = choose_margin(model, name, sample, keep_threshold, trainer.precision, tokens)
        read += margin.tokens
    if freeze and _rest(model, name) != before:
        raise GuaranteeError("something that was to stand still has changed", where=f"training of the expert {name!r}")
    final = Evaluation({}, {}, 0) if eval_dataset is None else evaluate(model, eval_dataset, None, trainer.precision)
    sha256 = before if freeze else None
    return DomainResult(name, margin, trained, read, sha256, final.bits_per_byte, final.routing_purity, result.seconds)


def domain_batches(
    trainer: CMRNTrainer, data: Sequence[Document], domain: str, old: OldText, phrase_share: float = 0.0
) -> PackedDataset:
    """Rows of the domain's text, and as many of old text where there is any.

    Raises:
        DataError: there is no text.
    """
    new = [replace(document, domain=domain, source_index=0) for document in data]
    replayed = [replace(document, source_index=document.source_index + 1) for document in old.documents]
    sources = 1 + max((document.source_index for document in old.documents), default=-1)
    weights = old.weights or (1.0,) * sources
    share = REPLAY_SHARE if replayed else 0.0
    own = [1 - share, *(share * weight / sum(weights) for weight in weights if replayed)]
    packing = LaneDataset if trainer.config.carry_states else PackedDataset
    model, length = trainer.model, trainer.config.sequence_length
    return packing.build(
        [*new, *replayed], _tokenizer(model), model.config.domains, length, own, trainer.seed, phrase_share
    )


@contextmanager
def only_expert(model: CMRN, name: str) -> Iterator[None]:
    """Within it gradients reach one expert's weights and router rows alone, and the balance stands still.

    The n-gram features belong to it where it is the only pattern expert.
    """
    index, expert = expert_named(model.config, name)
    alone = expert.type == "pattern" and [each.type for each in model.config.named_experts].count("pattern") == 1
    required = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    config, networks = model.config, routing_networks(model)
    temperatures = [network.temperature.clone() for network in networks]
    handles = [network.weight_ER.register_hook(_only_row(network.weight_ER, index)) for network in networks]
    try:
        for key, parameter in model.named_parameters():
            ngram = alone and key.endswith(".experts.ngram.weight")
            parameter.requires_grad_(ngram or f".experts.experts.{name}." in key or key.endswith(".weight_ER"))
        model.config = config.model_copy(update={"balance_rate": 0.0})
        yield
    finally:
        model.config = config
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(required[key])
        for handle, network, temperature in zip(handles, networks, temperatures, strict=True):
            handle.remove()
            network.temperature.copy_(temperature)


def _only_row(weight_ER: Tensor, index: int) -> Callable[[Tensor], Tensor]:
    """A hook that leaves of a gradient (E,R) one row."""
    others_E1 = torch.arange(len(weight_ER), device=weight_ER.device)[:, None] != index
    return lambda gradient_ER: gradient_ER.masked_fill(others_E1, 0.0)


def _some(documents: Sequence[Document], tokens: int) -> list[Document]:
    """Of every domain documents enough for so many tokens, whichever order they come in."""
    taken: dict[str | None, int] = {}
    chosen = []
    for document in sorted(documents, key=lambda each: hashlib.blake2b(each.text.encode()).digest()):
        if taken.setdefault(document.domain, 0) < LONGEST_TOKEN * tokens:
            taken[document.domain] += len(document.text)
            chosen.append(document)
    return chosen


def _rest(model: CMRN, name: str) -> str:
    """A hash of everything but the expert."""
    return hash_tensors(without_expert(model.config, model.state_dict(), name)[1])


def _tokenizer(model: CMRN) -> CMRNTokenizer:
    if model.tokenizer is None:
        raise UsageError("the model has no tokenizer, so it cannot read documents", hint="CMRN(config, tokenizer)")
    return model.tokenizer
