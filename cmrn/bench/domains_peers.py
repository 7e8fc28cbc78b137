"""What else can be done about a new domain: train all anew, tune everything, adapt at low rank, branch off a model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cmrn.bench.domains_text import DomainText
from cmrn.bench.lora import adapt, adapted_maps, rank_for
from cmrn.bench.report import Progress
from cmrn.bench.text import DOMAINS
from cmrn.bench.train import train_steps
from cmrn.bench.variants import CHANGES
from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.data.packing import Batch, PackedDataset
from cmrn.model import CMRN
from cmrn.training.device import Precision
from cmrn.training.flops import TokenCost
from cmrn.training.metrics import Evaluation, evaluate
from cmrn.training.random_state import seed_all

__all__ = ["Bench", "Outcome", "dense_branch", "low_rank", "retrain", "tune"]

COUNTED_ROW = 256
"""Tokens of the row whose FLOPs are counted."""


@dataclass(frozen=True)
class Outcome:
    """What a way of adding the domain gave. flops: all it cost; seconds: of its steps and what belongs to them."""

    name: str
    after: Evaluation
    flops: float
    seconds: float
    before: Evaluation | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What all ways share. model: the shape with every domain's expert; training: of the retrain, all domains."""

    left_out: str
    model: CMRNConfig
    training: TrainingConfig
    text: DomainText
    device: torch.device
    precision: Precision
    seed: int
    progress: Progress

    @property
    def old(self) -> tuple[str, ...]:
        """The domains of the base."""
        return tuple(name for name in DOMAINS if name != self.left_out)

    @property
    def base_config(self) -> CMRNConfig:
        """The shape without the experts of the domain that is left out."""
        kept = [expert for expert in self.model.named_experts if self.left_out not in expert.domains]
        fields = {**self.model.model_dump(mode="json"), "num_experts": len(kept)}
        return CMRNConfig.model_validate({**fields, "experts": [expert.model_dump(mode="json") for expert in kept]})

    def settings(self, steps: int, **changes: Any) -> TrainingConfig:
        """The recipe's training for so many steps."""
        warmup = min(self.training.warmup_steps, max(1, steps // 10))
        return self.training.model_copy(update={"max_steps": steps, "warmup_steps": warmup, **changes})

    @property
    def base_steps(self) -> int:
        """Steps of the base: each of its domains is read as much as in the retrain."""
        return round(self.training.max_steps * len(self.old) / len(DOMAINS))

    def tokens(self, steps: int) -> int:
        """Tokens of so many steps."""
        return steps * self.training.batch_size * self.training.sequence_length

    def dataset(self, model: CMRN, names: Sequence[str], shares: Sequence[float] | None = None) -> PackedDataset:
        """Training text of these domains."""
        length, lanes = self.training.sequence_length, self.training.carry_states
        return self.text.dataset(model.config.domains, names, length, self.seed, shares, lanes=lanes)

    def train(
        self, model: CMRN, steps: int, names: Sequence[str], shares: Sequence[float] | None = None, **changes: Any
    ) -> float:
        """Train what requires gradient; the seconds the steps took."""
        dataset, config = self.dataset(model, names, shares), self.settings(steps, **changes)

        def batches() -> Iterator[Batch]:
            cursor = dataset.start()
            while True:
                batch, cursor = dataset.batch(cursor, config.batch_size)
                yield batch

        seconds, _ = train_steps(model, config, self.precision, batches(), self.progress)
        model.eval().requires_grad_(True)
        return seconds

    def measure(self, model: CMRN) -> Evaluation:
        """Bits per byte and purity on held-out text of every domain."""
        shape = (self.training.sequence_length, self.training.batch_size)
        return evaluate(model, self.text.evaluation(model.config.domains, *shape), None, self.precision)

    def fresh(self, config: CMRNConfig, changes: Sequence[str] = ()) -> CMRN:
        """An untrained model."""
        seed_all(self.seed)
        model = CMRN(config)
        for change in changes:
            CHANGES[change](model)
        return model.to(self.device)


def retrain(bench: Bench, cost: TokenCost) -> Outcome:
    """Train on all domains anew."""
    model = bench.fresh(bench.model)
    steps = bench.training.max_steps
    seconds = bench.train(model, steps, DOMAINS)
    return Outcome("full retrain", bench.measure(model), cost.whole * bench.tokens(steps), seconds)


def tune(bench: Bench, base: CMRN, cost: TokenCost, budget: float, replay: float, rate: float) -> Outcome:
    """Go on training everything on the new domain. replay: share of the rows that hold old text."""
    model = copy.deepcopy(base)
    steps = max(1, int(budget / (cost.whole * bench.tokens(1))))
    names = (bench.left_out, *bench.old) if replay else (bench.left_out,)
    shares = [1 - replay, *[replay / len(bench.old)] * len(bench.old)] if replay else None
    peak = bench.training.learning_rate * rate
    seconds = bench.train(model, steps, names, shares, routing_temperature_schedule="constant", learning_rate=peak)
    name = f"fine-tuning of everything, {replay:.0%} old text" if replay else "fine-tuning of everything"
    return Outcome(name, bench.measure(model), cost.whole * bench.tokens(steps), seconds, detail={"steps": steps})


def low_rank(bench: Bench, base: CMRN, budget: float, parameters: int, rate: float) -> Outcome:
    """Adapt every map of the blocks at the rank that has as many parameters as the new experts."""
    model = copy.deepcopy(base)
    rank = rank_for(model, parameters)
    cost = _adapted_cost(model, rank)
    learning = adapt(model, rank)
    size = sum(parameter.numel() for parameter in learning.values())
    steps = max(1, int(budget / (cost * bench.tokens(1))))
    seconds = bench.train(
        model, steps, (bench.left_out,), routing_temperature_schedule="constant", optimizer="adamw", learning_rate=rate
    )  # fmt: skip
    detail = {"steps": steps, "rank": rank, "parameters": size}
    return Outcome("LoRA of equal parameters", bench.measure(model), cost * bench.tokens(steps), seconds, detail=detail)


def dense_branch(bench: Bench, budget: float, rate: float) -> Outcome:
    """Of a dense model of as many active parameters, trained alike, a copy that goes on with the new domain alone."""
    base = bench.fresh(bench.base_config, ("dense",))
    bench.train(base, bench.base_steps, bench.old)
    before = bench.measure(base)
    cost = 3 * _forward_cost(base)
    steps = max(1, int(budget / (cost * bench.tokens(1))))
    seconds = bench.train(base, steps, (bench.left_out,), learning_rate=bench.training.learning_rate * rate)
    after = bench.measure(base)
    return Outcome("branch of a dense model", after, cost * bench.tokens(steps), seconds, before, {"steps": steps})


def _forward_cost(model: CMRN) -> float:
    """FLOPs of reading a token."""
    plain = copy.deepcopy(model).to("cpu", torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, COUNTED_ROW), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(ids)
    return float(counter.get_total_flops()) / COUNTED_ROW


def _adapted_cost(model: CMRN, rank: int) -> float:
    """FLOPs of a token, as a library counts that keeps adapters apart: forward, activation gradient, and both of BA.

    Of each token's experts only those chosen count.
    """
    config = model.config
    share = {name: config.routing_k / config.num_experts if ".experts.experts." in name else 1.0
             for name in adapted_maps(model)}  # fmt: skip
    adapters = sum(rank * sum(each.weight.shape) * share[name] for name, each in adapted_maps(model).items())
    return 2 * _forward_cost(model) + 6 * adapters
