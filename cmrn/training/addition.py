"""A domain added to a model on disk: text read, expert trained, every domain measured before and after, model written.

The folder written also holds `origin.json`: what the base was trained with, for the next domain's settings and cost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from cmrn.config import DataConfig, ExpertConfig, SourceConfig, TrainingConfig
from cmrn.data.corpus import load_corpus
from cmrn.data.documents import Corpus, Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.errors import CheckpointError, CMRNError, GuaranteeError, UsageError
from cmrn.files import check_writable, read_json, verify_folder, write_folder
from cmrn.model import CMRN
from cmrn.pretrained import resolve_folder, write_model_files
from cmrn.recipe import load_recipe
from cmrn.training.checkpoint import STATE
from cmrn.training.continual import DomainResult
from cmrn.training.device import autocast
from cmrn.training.flops import TokenCost, token_cost
from cmrn.training.metrics import Evaluation, evaluate
from cmrn.training.progress import Notice, Reporter
from cmrn.training.row import OLD_TIMES, fitting_tokens, tried_tokens
from cmrn.training.run import RESOLVED
from cmrn.training.trainer import CMRNTrainer
from cmrn.unseen import UNSEEN, Unseen, measure_unseen

__all__ = ["Addition", "Origin", "Request", "add_domain", "origin_of", "save_with_origin"]

ORIGIN = "origin.json"
ORIGIN_FORMAT = 1
USUAL_FRACTION = 0.15
MARGIN_TRIALS = 6
CHOSEN_ON = 8_192
"""Tokens of the domain's text by which experts to copy are chosen."""
FITS = 2 * (1 + OLD_TIMES)
NO_ORIGIN = "how the base was trained is not known: the folder holds neither its training nor an origin.json"


@dataclass(frozen=True)
class Origin:
    """How a model's base was trained. tokens_a_domain: read of each; phrase_share: as in a recipe's data."""

    training: TrainingConfig
    tokens_a_domain: float
    phrase_share: float = 0.0


@dataclass(frozen=True)
class Request:
    """What to add. data, replay: files, or `builtin://` text. steps or fraction: see `add_domain`.

    experts: how many own the domain together. Above 1 they are `<name>_1` and so on, each a copy of another expert, of
    those that read most of the domain's text, and of its type.
    """

    expert: ExpertConfig
    domain: str
    data: tuple[str, ...]
    replay: tuple[str, ...] = ()
    init_from: str | None = None
    experts: int = 1
    steps: int | None = None
    fraction: float | None = None
    keep_threshold: float = 0.003
    seed: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts that are added."""
        name = self.expert.name
        return (name,) if self.experts == 1 else tuple(f"{name}_{place}" for place in range(1, self.experts + 1))


@dataclass(frozen=True)
class Addition:
    """What came of it.

    flops_ratio: None where the base's training is not known. checkpoint: None where an old domain rose by more than
    the threshold, so that nothing was written.
    """

    request: Request
    before: Evaluation
    after: Evaluation
    result: DomainResult
    flops_ratio: float | None
    checkpoint: Path | None

    @property
    def worse(self) -> dict[str, float]:
        """Relative rise in bits per byte of every domain but the new one."""
        now = self.after.bits_per_byte
        apart = (self.request.domain, "mean")
        return {name: now[name] / bits - 1 for name, bits in self.before.bits_per_byte.items() if name not in apart}

    def require_kept(self) -> None:
        """Raises GuaranteeError where an old domain reads worse than allowed."""
        limit = self.request.keep_threshold
        over = {name: rise for name, rise in self.worse.items() if rise > limit}
        if over:
            listed = ", ".join(f"{name} by {rise:.2%}" for name, rise in over.items())
            raise GuaranteeError(
                f"worse than the {limit:.2%} allowed: {listed}; nothing was written",
                hint="give more old text with --replay, or allow more with --keep-threshold",
            )


def origin_of(folder: Path, links_within: Path | None = None) -> Origin | None:
    """How the model in `folder` was trained; None where the folder does not say. links_within: as `verify_folder`.

    Raises:
        CheckpointError: the folder is damaged, or says it in a way that cannot be read.
    """
    files = verify_folder(folder, links_within).files
    name = STATE if STATE in files else ORIGIN
    if name not in files:
        return None
    document = read_json(folder / name)
    try:
        if name == ORIGIN:
            if document["format_version"] != ORIGIN_FORMAT:
                raise CheckpointError("is of another version", where=str(folder / name))
            training = TrainingConfig.model_validate(document["training"])
            return Origin(training, float(document["tokens_a_domain"]), float(document["phrase_share"]))
        identity = document["identity"]
        training = TrainingConfig.model_validate(identity["training"])
        model = identity["model"]
        domains = {domain for expert in model["experts"] or () for domain in expert["domains"]}
        tokens = document["step"] * training.batch_size * training.sequence_length
        return Origin(training, tokens / max(1, len(domains)), (identity.get("data") or {}).get("phrase_share", 0.0))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("does not say how the model was trained", where=str(folder / name)) from error


def add_domain(
    model: CMRN, place: str, request: Request, out: Path, reporter: Reporter, device: str | None = None
) -> Addition:
    """Add an expert for a domain, or several, to the model in `place`, and write the model with it to `out`.

    Old text to read again is `request.replay`, else that of the run in which `place` lies. Training goes on for
    `steps`, or for as long as `fraction` of the cost of training on all domains anew allows (0.15 by default); its
    other settings are the base's. Where an old domain reads worse by more than `keep_threshold`, nothing is written.

    Raises:
        UsageError: the expert cannot be, a file is missing, or the base's training is not known and steps not given.
        DataError: the text cannot be used.
        CheckpointError: `out` cannot be written, or holds something else.
        CMRNError: as `CMRNTrainer.continual_train`.
    """
    folder, links_within = resolve_folder(place)
    origin = origin_of(folder, links_within)
    if origin is None and request.steps is None:
        raise UsageError(NO_ORIGIN, where=str(folder), hint="say how long to train: --steps N")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError("is there already, and is not written over", where=str(out), hint="--out another folder")
    check_writable(out)
    new = _read(request.data, request.domain, request.seed)
    old = _old_corpus(folder, request, reporter)
    held_out = (*(old.validation if old else ()), *new.validation)
    if request.domain not in {document.domain for document in new.validation}:
        raise UsageError("too little text to hold any of it out", where=", ".join(request.data), hint="give more files")
    training = (origin.training if origin else TrainingConfig()).model_copy(update={"max_steps": request.steps or 1})
    trainer = CMRNTrainer(model, training, seed=request.seed, reporter=reporter, device=device)
    chosen_on = _grow(trainer, request, new.train)
    cost = token_cost(trainer.model, request.names, training.sequence_length)
    domains = max(1, len(model.config.domains)) + 1
    whole = None if origin is None else cost.whole * origin.tokens_a_domain * domains
    budget = (whole or 0.0) * (request.fraction or USUAL_FRACTION) - cost.read * chosen_on
    steps = request.steps or _affordable(cost, training, budget, domains)
    reporter.notice(Notice("measuring every domain before"))
    before = _measure(trainer, model, held_out)
    warmup = min(training.warmup_steps, max(1, steps // 10))
    trainer.config = training.model_copy(update={"max_steps": steps, "warmup_steps": warmup})
    reporter.notice(Notice(f"training {', '.join(request.names)} for {steps} steps; all else stands still"))
    result = trainer.continual_train(
        new.train,
        request.domain,
        replay=old.train if old else (),
        replay_weights=old.weights if old else (),
        keep_threshold=request.keep_threshold,
        phrase_share=origin.phrase_share if origin else 0.0,
        experts=request.names,
    )
    spent = cost.expert * result.trained_tokens + cost.read * (result.read_tokens + chosen_on)
    reporter.notice(Notice("measuring every domain after"))
    after = _measure(trainer, trainer.model, held_out)
    addition = Addition(request, before, after, result, spent / whole if whole else None, out)
    if any(rise > request.keep_threshold for rise in addition.worse.values()):
        return Addition(request, before, after, result, addition.flops_ratio, None)
    # Without old text only the new domain could be measured, and everything else would seem unseen.
    unseen = measure_unseen(trainer.model, _built(trainer, trainer.model, held_out)) if old else None
    save_with_origin(out, trainer.model, origin, unseen)
    return addition


def _read(paths: Sequence[str], domain: str | None, seed: int) -> Corpus:
    """Files named on a command line: their paths start here, not at the data root."""
    try:
        sources = [SourceConfig(path=path, domain=domain) for path in paths]
    except ValidationError as error:
        raise UsageError(f"{domain!r} cannot be the name of a domain: {error.errors()[0]['msg']}") from error
    return load_corpus(DataConfig(sources=tuple(sources)), Path.cwd(), seed)


def _old_corpus(folder: Path, request: Request, reporter: Reporter) -> Corpus | None:
    """Text of the old domains, where there is any to be had."""
    if request.replay:
        return _read(request.replay, None, request.seed)
    resolved = folder.resolve().parent.parent / RESOLVED
    try:
        if resolved.is_file():
            recipe = load_recipe(str(resolved))
            return load_corpus(recipe.data, None, recipe.seed)
        reason = "this model lies in no run"
    except CMRNError as error:
        reason = str(error.message)
    reporter.notice(
        Notice(
            f"no old text to read again ({reason}): old domains are not measured; --replay FILE names some", "warning"
        )
    )
    return None


def _grow(trainer: CMRNTrainer, request: Request, documents: Sequence[Document]) -> int:
    """Add the experts to `trainer.model`; how many tokens were read to choose what they are copies of.

    Raises:
        UsageError: they cannot be, or more are asked for than there are to copy.
    """
    if request.experts == 1:
        trainer.add_domain_expert(request.expert.name, request.expert, init_from=request.init_from)
        return 0
    experts = trainer.model.config.named_experts
    if request.init_from is not None:
        raise UsageError("several experts begin as copies of those that read most of the text, not of one",
                         where=f"init_from {request.init_from}", hint="give the one, or how many")  # fmt: skip
    if not 1 <= request.experts <= len(experts):
        raise UsageError(f"each is a copy of another expert, and the model has {len(experts)}",
                         where=f"{request.experts} experts")  # fmt: skip
    order, read = _readers(trainer, request.domain, documents)
    for name, index in zip(request.names, order, strict=False):
        copied = experts[index]
        given = ExpertConfig(name=copied.name, type=copied.type, domains=(request.domain,))
        trainer.add_domain_expert(name, given, init_from=copied.name)
    return read


@torch.no_grad()
def _readers(trainer: CMRNTrainer, domain: str, documents: Sequence[Document]) -> tuple[list[int], int]:
    """The experts' places by their weight in the first tokens of the domain's text, the largest first; tokens read."""
    model = trainer.model.eval()
    device = next(model.parameters()).device
    weight_E, read = torch.zeros(model.config.num_experts, dtype=torch.float64), 0
    for batch in _built(trainer, model, documents).streams(CHOSEN_ON)[domain]:
        with autocast(device, trainer.precision):
            found = model(batch.input_ids_BT.to(device), document_ids=batch.document_ids_BT.to(device))
        real_BT = batch.attention_mask_BT.bool()
        weight_E += found.routing_weights.cpu().double()[real_BT].sum(0)
        read += int(real_BT.sum())
    return weight_E.argsort(descending=True, stable=True).tolist(), read


def _measure(trainer: CMRNTrainer, model: CMRN, documents: Sequence[Document]) -> Evaluation:
    return evaluate(model, _built(trainer, model, documents), None, trainer.precision)


def _built(trainer: CMRNTrainer, model: CMRN, documents: Sequence[Document]) -> EvaluationSet:
    config = trainer.config
    assert model.tokenizer is not None
    return EvaluationSet.build(
        documents, model.tokenizer, model.config.domains, config.sequence_length, config.batch_size
    )


def _affordable(cost: TokenCost, training: TrainingConfig, budget: float, domains: int) -> int:
    """Steps that the budget (FLOPs) pays for, with the reading that training does not need."""
    a_step = training.batch_size * training.sequence_length
    steps = int(budget / (cost.expert * a_step))
    read = FITS * (fitting_tokens(steps * a_step) + a_step)
    read += MARGIN_TRIALS * tried_tokens(steps * a_step) * (domains - 1)
    steps = int((budget - cost.read * read) / (cost.expert * a_step))
    if steps < 1:
        message = "the fraction does not pay for a single step"
        raise UsageError(message, where="--fraction", hint="a larger one, or --steps")
    return steps


def save_with_origin(out: Path, model: CMRN, origin: Origin | None, unseen: Unseen | None = None) -> None:
    """Write a model folder that also says how the base was trained, and what is usual, where that is known.

    Raises:
        ResourceError: the disk is full; what stood in `out` before is untouched.
        CheckpointError: `out` cannot be written, or holds something else.
    """
    text = None if model.tokenizer is None else model.tokenizer.to_json()
    with write_folder(out) as temporary:
        write_model_files(temporary, model.config, model.state_dict(), text)
        if origin is not None:
            document: dict[str, Any] = {
                "format_version": ORIGIN_FORMAT,
                "training": origin.training.model_dump(mode="json"),
                "tokens_a_domain": origin.tokens_a_domain,
                "phrase_share": origin.phrase_share,
            }
            (temporary / ORIGIN).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if unseen is not None:
            (temporary / UNSEEN).write_text(unseen.to_json(), encoding="utf-8")
