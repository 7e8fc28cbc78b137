"""`cmrn bench domains`: a domain added to a model that has not read it, beside what else can be done about it.

The base is the recipe `small` without one domain, with a vocabulary that has not read it either. Gain is the share of
the bits per byte on the new domain that a full retrain wins; forgetting is the relative rise on each old domain.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cmrn.bench.domains_peers import Bench, Outcome, dense_branch, low_rank, retrain, tune
from cmrn.bench.domains_terms import read_terms, term_rows
from cmrn.bench.domains_text import prepare_without, read_domains
from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.settings import load_setting
from cmrn.config import ExpertConfig
from cmrn.domain_expert import add_expert, silenced
from cmrn.errors import UsageError
from cmrn.experts.growth import hash_tensors, without_expert
from cmrn.model import CMRN
from cmrn.training.checkpoint import find_checkpoint
from cmrn.training.continual import Rows, train_experts
from cmrn.training.device import autocast, resolve_device, resolve_precision
from cmrn.training.flops import TokenCost, token_cost
from cmrn.training.metrics import Evaluation
from cmrn.training.progress import SilentReporter, StepReport
from cmrn.training.row import OLD_TIMES, fitting_tokens, tried_tokens
from cmrn.training.trainer import CMRNTrainer

__all__ = ["METHODS", "DomainsOptions", "run"]

METHODS = ("add", "retrain", "tune", "lora", "dense")
GOAL, FORGOTTEN = 0.9, 0.003
MARGIN_TRIALS = 6
FITS = 2 * (1 + OLD_TIMES)


@dataclass(frozen=True)
class DomainsOptions:
    """What to measure. case: of METHODS, all by default; without the retrain there is no gain to state.

    Or `terms` alone: where `model`, a checkpoint, places single terms.

    fractions: of the retrain's FLOPs. experts: how many the new domain gets. rate: of every method but LoRA, as a share
    of the recipe's; lora_rate: of its AdamW.
    """

    device: str | None = None
    domain: str = "medical"
    case: tuple[str, ...] = ()
    fractions: tuple[float, ...] = (0.15, 0.05)
    experts: int | None = None
    rate: float = 1.0
    lora_rate: float = 2e-3
    seed: int = 1
    overrides: tuple[str, ...] = ()
    data_root: Path = Path(".")
    cache: Path = Path("runs/bench")
    prepare_only: bool = False
    model: str | None = None


def run(options: DomainsOptions, progress: Progress) -> Report:
    """Train the base, then add the domain in every way.

    Raises:
        UsageError: no such case or domain, or the texts are absent.
    """
    if options.case == ("terms",):
        return _terms(options)
    unknown = [case for case in options.case if case not in METHODS]
    if unknown:
        hint = f"{', '.join(METHODS)}; or terms, alone"
        raise UsageError(f"no case {unknown[0]!r} among others", where="--case", hint=hint)
    setting = load_setting("small", options.overrides)
    path = prepare_without(options.data_root, options.cache, setting.model.vocab_size, options.domain, progress)
    if options.prepare_only:
        return Report("domains", "none", (), {"tokens": str(path)}, (f"tokens are in {path}",))
    device = resolve_device(options.device)
    precision = resolve_precision(setting.training.precision, device)
    bench = Bench(
        options.domain, setting.model, setting.training, read_domains(path), device, precision, options.seed, progress
    )
    base = bench.fresh(bench.base_config)
    seconds = bench.train(base, bench.base_steps, bench.old)
    before = bench.measure(base)
    progress(f"base: {before.bits_per_byte[options.domain]:.4f} on {options.domain}, {seconds:.0f} s")
    outcomes, whole = [], None
    for outcome in _outcomes(bench, options, base, before):
        whole = outcome if outcome.name == "full retrain" else whole
        outcomes.append(outcome)
        progress(f"{outcome.name}: {outcome.after.bits_per_byte[options.domain]:.4f}, {outcome.seconds:.1f} s")
    rows = [row for outcome in outcomes for row in _rows(bench, outcome, before, whole)]
    settings = {
        "domain": options.domain,
        "seed": options.seed,
        "base": before.bits_per_byte,
        "purity": before.routing_purity,
        "base_seconds": seconds,
        **versions(),
    }
    notes = (f"gain: share of the retrain's on {options.domain}; forgetting: the worst relative rise of an old domain",)
    return Report("domains", describe_device(str(device)), tuple(rows), settings, notes)


def _terms(options: DomainsOptions) -> Report:
    if options.model is None:
        raise UsageError("terms are placed by a trained model", where="--case terms", hint="--model CKPT")
    terms = read_terms(options.data_root)
    device = resolve_device(options.device)
    place = find_checkpoint(Path(options.model)) if Path(options.model).exists() else options.model
    rows = term_rows(CMRN.from_pretrained(place).to(device), terms)
    settings = {"model": options.model, "terms": len(terms), **versions()}
    return Report("domains", describe_device(str(device)), tuple(rows), settings)


def _outcomes(bench: Bench, options: DomainsOptions, base: CMRN, before: Evaluation) -> Iterator[Outcome]:
    cases = options.case or METHODS
    count = options.experts or bench.model.routing_k
    grown = _grown(bench, base, count)
    names = [expert.name for expert in grown.config.named_experts[-count:]]
    cost = token_cost(grown, names, bench.training.sequence_length)
    whole = cost.whole * bench.tokens(bench.training.max_steps)
    if "retrain" in cases:
        yield retrain(bench, cost)
    ways: dict[str, Callable[[float], list[Outcome]]] = {
        "add": lambda budget: [_add(bench, options, base, grown, cost, budget)],
        "tune": lambda budget: [tune(bench, base, cost, budget, replay, options.rate) for replay in (0.0, 0.5)],
        "lora": lambda budget: [low_rank(bench, base, budget, _size(grown, names), options.lora_rate)],
        "dense": lambda budget: [dense_branch(bench, budget, options.rate)],
    }
    for case in (case for case in METHODS if case in cases and case in ways):
        for fraction in options.fractions:
            yield from ways[case](fraction * whole)


def _grown(bench: Bench, base: CMRN, count: int) -> CMRN:
    """The base with new experts: copies of those that read most of the new domain's text, router rows and all."""
    batch, _ = (dataset := bench.dataset(base, (bench.left_out,))).batch(dataset.start(), bench.training.batch_size)
    with torch.no_grad(), autocast(bench.device, bench.precision):
        output = base.eval()(batch.input_ids_BT.to(bench.device), document_ids=batch.document_ids_BT.to(bench.device))
    order = output.routing_weights.mean((0, 1)).argsort(descending=True).tolist()
    model = base
    for place, index in enumerate(order[:count]):
        name = bench.left_out if place == 0 else f"{bench.left_out}_{place + 1}"
        expert = ExpertConfig(name=name, type=base.config.named_experts[index].type, domains=(bench.left_out,))
        model = add_expert(model, expert, base.config.named_experts[index].name, bench.seed)
    return model


def _size(model: CMRN, names: list[str]) -> int:
    parts = tuple(f".experts.experts.{name}." for name in names)
    return sum(each.numel() for key, each in model.named_parameters() if any(part in key for part in parts))


@dataclass
class _Pace(SilentReporter):
    """Keeps the rate of the last steps."""

    tokens_per_second: float = field(default=1.0)

    def step(self, report: StepReport) -> None:
        self.tokens_per_second = report.tokens_per_second


def _add(bench: Bench, options: DomainsOptions, base: CMRN, grown: CMRN, cost: TokenCost, budget: float) -> Outcome:
    """Train the new experts for as long as the budget (FLOPs) allows, reading for the rows included."""
    names = [expert.name for expert in grown.config.named_experts[base.config.num_experts :]]
    steps = _affordable(bench, cost, budget)
    model = copy.deepcopy(grown)
    config = bench.settings(steps, learning_rate=bench.training.learning_rate * options.rate)
    pace = _Pace()
    trainer = CMRNTrainer(model, config, seed=bench.seed, reporter=pace, device=str(bench.device))
    shape = (config.sequence_length, config.batch_size)
    sample = bench.text.sample(bench.old, model.config.domains, *shape, tried_tokens(bench.tokens(steps)))
    new, pieces, old_pieces = (
        bench.dataset(model, (bench.left_out,)),
        bench.text.pieces((bench.left_out,), config.sequence_length, bench.seed),
        bench.text.pieces(bench.old, config.sequence_length, bench.seed),
    )
    rows = Rows(new, pieces, old_pieces, sample)
    result = train_experts(trainer, names, rows, FORGOTTEN)
    flops = cost.expert * result.trained_tokens + cost.read * result.read_tokens
    seconds = result.trained_tokens / pace.tokens_per_second + result.fitting_seconds
    detail = {
        "steps": steps,
        "experts": names,
        "parameters": _size(model, names),
        "margin": None if result.margin is None else result.margin.value,
        "unchanged_sha256": result.sha256 == hash_tensors(base.state_dict()) == hash_tensors(_without(model, names)),
        "masked_logits_differ": _masked_difference(bench, base, model, names),
    }
    return Outcome(f"{len(names)} experts added", bench.measure(model), flops, seconds, detail=detail)


def _affordable(bench: Bench, cost: TokenCost, budget: float) -> int:
    """Steps that the budget pays for, with the reading that fits rows and chooses the margin."""
    a_step = bench.tokens(1)
    steps = int(budget / (cost.expert * a_step))
    read = FITS * (fitting_tokens(steps * a_step) + a_step) + MARGIN_TRIALS * tried_tokens(steps * a_step) * len(
        bench.old
    )
    return max(1, int((budget - cost.read * read) / (cost.expert * a_step)))


def _without(model: CMRN, names: list[str]) -> dict[str, torch.Tensor]:
    config, tensors = model.config, model.state_dict()
    for name in names:
        config, tensors = without_expert(config, tensors, name)
    return tensors


@torch.no_grad()
def _masked_difference(bench: Bench, base: CMRN, model: CMRN, names: list[str]) -> int:
    """How many logits of a batch of every domain differ in any bit between the base and the model, experts silenced."""
    differing = 0
    for domain in (bench.left_out, *bench.old):
        dataset = bench.dataset(base, (domain,))
        batch, _ = dataset.batch(dataset.start(), bench.training.batch_size)
        ids_BT, documents_BT = batch.input_ids_BT.to(bench.device), batch.document_ids_BT.to(bench.device)
        with autocast(bench.device, bench.precision):
            wanted = base.eval()(ids_BT, document_ids=documents_BT).logits
            with silenced(model.eval(), *names):
                differing += int((model(ids_BT, document_ids=documents_BT).logits != wanted).sum())
    return differing


def _rows(bench: Bench, outcome: Outcome, base: Evaluation, whole: Outcome | None) -> list[Row]:
    """Gain, cost and forgetting of one way."""
    new, before = bench.left_out, outcome.before or base
    now = outcome.after.bits_per_byte
    rises = {name: now[name] / before.bits_per_byte[name] - 1 for name in bench.old}
    gain = ratio = None
    if whole is not None:
        gain = (base.bits_per_byte[new] - now[new]) / (base.bits_per_byte[new] - whole.after.bits_per_byte[new])
        ratio = outcome.flops / whole.flops
    detail: dict[str, Any] = {
        "bits_per_byte": now,
        "routing_purity": outcome.after.routing_purity,
        "forgetting": rises,
        "flops": outcome.flops,
        **outcome.detail,
    }
    label = outcome.name if ratio is None else f"{outcome.name}, {ratio:.1%} of the FLOPs"
    return [
        Row(f"{label}: bits per byte on {new}", now[new], "bits/byte", detail=detail),
        Row(f"{label}: gain", gain, "of the retrain's", limit=GOAL),
        Row(f"{label}: forgetting", max(rises.values()), "rise", limit=FORGOTTEN),
        Row(f"{label}: time of the steps", outcome.seconds, "s"),
    ]
