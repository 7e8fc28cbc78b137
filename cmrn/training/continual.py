"""A new domain for a trained model: its experts are trained, and not a bit of anything else changes.

Training reads the domain's text alone, with the new experts on for every token of it, so that all it costs goes into
them. What keeps old domains is the router's row, which is fitted, not trained (`cmrn.training.row`): a classifier of
new text from old, and a margin, the smallest that keeps a sample of old text as it was. Frozen weights alone would not
do: a row trained on new text takes old tokens too. (FlexOlmo, Shi et al. 2025, sets rows apart from training likewise.)
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cmrn.config import TrainingConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset
from cmrn.domain_expert import routing_networks
from cmrn.errors import GuaranteeError, UsageError
from cmrn.experts.growth import expert_named, hash_tensors, without_expert
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer
from cmrn.training.metrics import evaluate
from cmrn.training.row import OLD_TIMES, Margin, choose_margin, fit_rows, fitting_tokens, forced, tried_tokens

if TYPE_CHECKING:
    from cmrn.training.trainer import CMRNTrainer

__all__ = [
    "DomainResult",
    "OldText",
    "Rows",
    "continual_train",
    "domain_batches",
    "only_expert",
    "owners_of",
    "train_experts",
]

REPLAY_SHARE = 0.5
"""Share of the rows that hold old text, where all is trained and there is any."""
PIECE, TOKENS_A_PIECE = 600, 150
"""Characters of a piece of text that rows are fitted to, and about how many tokens that is."""
LONGEST_TOKEN = 16
"""Characters that a token has at most, on the mean of a document."""


@dataclass(frozen=True)
class OldText:
    """Documents of the old domains to read again, and the weight of each of their sources; no weights: all alike."""

    documents: tuple[Document, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Text to add a domain from.

    new: of the domain, to train on. pieces, old_pieces: short pieces of as many documents as can be, of the domain and
    of the old ones, to fit rows to. sample: of the old domains, to choose a margin on.
    """

    new: PackedDataset
    pieces: PackedDataset
    old_pieces: PackedDataset | None = None
    sample: EvaluationSet | None = None


@dataclass(frozen=True)
class DomainResult:
    """What the training of a domain's experts ended with.

    margin: what was chosen on old text, None without any. trained_tokens: read with gradient. read_tokens: read without
    it, to fit the rows and to choose the margin. sha256: of everything but the experts, before and after; None where
    all was trained. seconds: time of the training; fitting_seconds: of the rows and the margin.
    """

    experts: tuple[str, ...]
    margin: Margin | None
    trained_tokens: int
    read_tokens: int
    sha256: str | None
    bits_per_byte: dict[str, float]
    routing_purity: dict[str, float]
    seconds: float
    fitting_seconds: float = 0.0


def owners_of(model: CMRN, domain: str) -> tuple[str, ...]:
    """The experts that own the domain, of those the ones added last, one after the other.

    Raises:
        UsageError: no expert owns it.
    """
    experts = model.config.named_experts
    last = [domain in expert.domains for expert in experts]
    if not any(last):
        raise UsageError(f"no expert owns the domain {domain!r}", hint="add one: trainer.add_domain_expert(name)")
    end = len(last) - last[::-1].index(True)
    start = next((place + 1 for place in range(end - 1, -1, -1) if not last[place]), 0)
    return tuple(expert.name for expert in experts[start:end])


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
    experts: Sequence[str] = (),
) -> DomainResult:
    """Train the domain's experts in `trainer.model`; see `CMRNTrainer.continual_train`."""
    model, names = trainer.model, tuple(experts) or owners_of(trainer.model, domain)
    if freeze:
        result = train_experts(trainer, names, _rows(trainer, data, domain, old, phrase_share), keep_threshold)
    else:
        started = time.monotonic()
        _inner(trainer, trainer.config).train(domain_batches(trainer, data, domain, old, phrase_share))
        result = DomainResult(names, None, _tokens(trainer.config), 0, None, {}, {}, time.monotonic() - started)
    if eval_dataset is None:
        return result
    final = evaluate(model, eval_dataset, None, trainer.precision)
    return replace(result, bits_per_byte=final.bits_per_byte, routing_purity=final.routing_purity)


def train_experts(trainer: CMRNTrainer, names: Sequence[str], rows: Rows, keep_threshold: float) -> DomainResult:
    """Train these experts of `trainer.model` on `rows.new`, and nothing else, to the bit; then place their rows.

    Raises:
        GuaranteeError: what was to stand still has changed, or the loss was not finite three times in a row.
        InterruptedRunError: SIGINT or SIGTERM; nothing was saved.
    """
    model, precision = trainer.model, trainer.precision
    config = trainer.config.model_copy(update={"routing_temperature_schedule": "constant"})
    before, started = _rest(model, names), time.monotonic()
    fit = fit_rows(model, names, rows.pieces, rows.old_pieces, config, precision, trained=False)
    read = fit.tokens
    with only_expert(model, *names), forced(model, names):
        seconds = _inner(trainer, config).train(rows.new).seconds
    fit = fit_rows(model, names, rows.pieces, rows.old_pieces, config, precision, trained=True)
    read, margin = read + fit.tokens, None
    if rows.sample is not None:
        tokens = tried_tokens(_tokens(config))
        margin = choose_margin(model, names, fit, rows.sample, keep_threshold, precision, tokens)
        read += margin.tokens
    if _rest(model, names) != before:
        where = f"training of {', '.join(names)}"
        raise GuaranteeError("something that was to stand still has changed", where=where)
    apart = time.monotonic() - started - seconds
    return DomainResult(tuple(names), margin, _tokens(config), read, before, {}, {}, seconds, apart)


def _inner(trainer: CMRNTrainer, config: TrainingConfig) -> CMRNTrainer:
    from cmrn.training.trainer import CMRNTrainer

    hint = "begin again: an expert is trained in one go"
    return CMRNTrainer(
        trainer.model, config, seed=trainer.seed, reporter=trainer.reporter, device=str(trainer.device),
        resume_hint=hint,
    )  # fmt: skip


def _tokens(config: TrainingConfig) -> int:
    return config.max_steps * config.batch_size * config.sequence_length


def _rows(trainer: CMRNTrainer, data: Sequence[Document], domain: str, old: OldText, phrase_share: float) -> Rows:
    """The documents as rows.

    Raises:
        DataError: there is no text.
    """
    model, config = trainer.model, trainer.config
    packing = LaneDataset if config.carry_states else PackedDataset
    domains, length, tokenizer = model.config.domains, config.sequence_length, _tokenizer(model)

    fitted = fitting_tokens(_tokens(config))

    def pieces(documents: Sequence[Document], weights: Sequence[float] | None, tokens: int) -> PackedDataset:
        cut = _pieces(documents, tokens, trainer.seed)
        return PackedDataset.build(cut, tokenizer, domains, length, weights, trainer.seed)

    own = [replace(document, domain=domain, source_index=0) for document in data]
    new = packing.build(own, tokenizer, domains, length, None, trainer.seed, phrase_share)
    if not old.documents:
        return Rows(new, pieces(own, None, fitted))
    some = _some(old.documents, tried_tokens(_tokens(config)))
    sample = EvaluationSet.build(some, tokenizer, domains, length, config.batch_size)
    old_pieces = pieces(old.documents, old.weights or None, OLD_TIMES * fitted)
    return Rows(new, pieces(own, None, fitted), old_pieces, sample)


def _pieces(documents: Sequence[Document], tokens: int, seed: int) -> list[Document]:
    """Pieces of PIECE characters, enough for so many tokens of each source, drawn from its documents by length."""
    found = []
    for index in sorted({document.source_index for document in documents}):
        own = [document for document in documents if document.source_index == index and document.text]
        if not own:
            continue
        draw = np.random.default_rng([seed, index])
        sizes = np.array([len(document.text) for document in own])
        count = 1 + tokens // TOKENS_A_PIECE
        for place, share in zip(draw.choice(len(own), count, p=sizes / sizes.sum()), draw.random(count), strict=True):
            start = int(share * max(1, sizes[place] - PIECE))
            found.append(replace(own[place], text=own[place].text[start : start + PIECE]))
    return found


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
def only_expert(model: CMRN, *names: str) -> Iterator[None]:
    """Within it gradients reach these experts' weights and router rows alone, and come from the language loss alone.

    The balance stands still. The n-gram features belong to the experts where no other is a pattern expert.
    """
    index = [expert_named(model.config, name)[0] for name in names]
    patterns = {each.name for each in model.config.named_experts if each.type == "pattern"}
    alone = bool(patterns) and patterns <= set(names)
    own = tuple(f".experts.experts.{name}." for name in names)
    required = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    config, networks = model.config, routing_networks(model)
    temperatures = [network.temperature.clone() for network in networks]
    handles = [network.weight_ER.register_hook(_only_rows(network.weight_ER, index)) for network in networks]
    try:
        for key, parameter in model.named_parameters():
            ngram = alone and key.endswith(".experts.ngram.weight")
            parameter.requires_grad_(ngram or any(part in key for part in own) or key.endswith(".weight_ER"))
        model.config = config.model_copy(update={"balance_rate": 0.0, "domain_loss_weight": 0.0})
        yield
    finally:
        model.config = config
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(required[key])
        for handle, network, temperature in zip(handles, networks, temperatures, strict=True):
            handle.remove()
            network.temperature.copy_(temperature)


def _only_rows(weight_ER: Tensor, index: list[int]) -> Callable[[Tensor], Tensor]:
    """A hook that leaves of a gradient (E,R) these rows."""
    others_E1 = torch.ones(len(weight_ER), 1, dtype=torch.bool, device=weight_ER.device)
    others_E1[index] = False
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


def _rest(model: CMRN, names: Sequence[str]) -> str:
    """A hash of everything but the experts."""
    config, tensors = model.config, model.state_dict()
    for name in names:
        config, tensors = without_expert(config, tensors, name)
    return hash_tensors(tensors)


def _tokenizer(model: CMRN) -> CMRNTokenizer:
    if model.tokenizer is None:
        raise UsageError("the model has no tokenizer, so it cannot read documents", hint="CMRN(config, tokenizer)")
    return model.tokenizer
