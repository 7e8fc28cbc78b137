"""The router rows of a domain's new experts: fitted to tell its text from old text, and kept at a margin from old text.

An expert is chosen where its logit w·t, and what is added for the choice, exceed those of the others; t is a token's
semantic tag, which stands still. So the row is a linear classifier of tags, and is fitted as one: no gradient has to
pass through the model, and old text is only read for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmrn.config import TrainingConfig
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.packing import PackedDataset
from cmrn.domain_expert import routing_networks, silenced
from cmrn.experts.growth import expert_named
from cmrn.model import CMRN
from cmrn.training.device import Precision, autocast
from cmrn.training.metrics import evaluate

__all__ = [
    "OLD_TIMES",
    "Fit",
    "Margin",
    "choose_margin",
    "fit_rows",
    "fitting_tokens",
    "forced",
    "set_margin",
    "tried_tokens",
]

FORCED = 100.0
"""Added to logits for the choice, where an expert is to read everything: more than logits and noise reach together."""
MARGIN_ALONE = 1.0
"""Margin where there is no old text to tell the domain's from."""
RIDGE = 1e-5
STEPS = 200
LEAST_FITTED, MOST_FITTED, FITTED_SHARE = 2_048, 65_536, 1 / 64
"""Tokens of new text that rows are fitted to: a share of those trained on, within limits."""
OLD_TIMES = 4
"""How many times as much old text: it is of several domains."""
LEAST_TRIED, MOST_TRIED, TRIED_SHARE = 1_024, 16_384, 1 / 128
"""Tokens of each old domain that a margin is tried on: a share of those trained on, within limits."""
MARGINS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
SHARE_OF_THRESHOLD = 0.7
"""What the sample may lose of the threshold: other text of the same domains loses a little more or less."""


@dataclass(frozen=True)
class Fit:
    """Rows fitted. bias_L: what is added for the choice in each block, at a margin of 0. tokens: read for it."""

    bias_L: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Margin:
    """A margin chosen on old text.

    value: taken off what is added for the choice. worse: the largest relative rise in bits per byte of an old domain
    of the sample, against the experts silenced. tokens: read to find it.
    """

    value: float
    worse: float
    tokens: int


@contextmanager
def forced(model: CMRN, names: Sequence[str]) -> Iterator[None]:
    """Within it every token chooses these experts first; weights still come from the logits alone."""
    index, networks = _places(model, names), routing_networks(model)
    before = [network.bias_E.clone() for network in networks]
    try:
        for network in networks:
            with torch.no_grad():
                network.bias_E[index] += FORCED
        yield
    finally:
        for network, bias_E in zip(networks, before, strict=True):
            network.bias_E.copy_(bias_E)


@torch.no_grad()
def set_margin(model: CMRN, names: Sequence[str], fit: Fit, margin: float) -> None:
    """Let the choice see the experts `margin` lower than where they were fitted."""
    index = _places(model, names)
    for network, bias in zip(routing_networks(model), fit.bias_L, strict=True):
        network.bias_E[index] = bias - margin


@torch.no_grad()
def fit_rows(
    model: CMRN,
    names: Sequence[str],
    new: PackedDataset,
    old: PackedDataset | None,
    config: TrainingConfig,
    precision: Precision,
    *,
    trained: bool,
) -> Fit:
    """Move the experts' router rows, all by one vector a block, to where the domain's text is and old text is not.

    Their mean row w and the bias b become those of the logistic regression P(new | t) = σ(t·w + b − best), each kind of
    text counting for half; best is the best of the other experts' logits. How the experts share a token among
    themselves does not change, as they move together. Without old text the row is the shortest w with w·μ = the mean
    best logit, μ the mean tag, and the margin is 1. trained: whether the new text is read by the experts, as it will
    be, or as before them; old text always is.
    """
    index, networks = _places(model, names), routing_networks(model)
    a_batch = config.batch_size * config.sequence_length
    batches = max(1, -(-fitting_tokens(config.max_steps * a_batch) // a_batch))
    with forced(model, names) if trained else silenced(model, *names):
        new_tags = _read_tags(model, new, batches, config.batch_size, precision)
    old_tags = None
    if old is not None:
        with silenced(model, *names):
            old_tags = _read_tags(model, old, OLD_TIMES * batches, config.batch_size, precision)
    bias_L = []
    for block, network in enumerate(networks):
        tags_NR = new_tags[block]
        if old_tags is None:
            mean_R, wanted = tags_NR.mean(0), _best(network, index, tags_NR).mean()
            row_R, bias = mean_R * wanted / mean_R.square().sum().clamp(min=1e-9), -MARGIN_ALONE
        else:
            both_NR = torch.cat([tags_NR, old_tags[block]])
            is_new_N = torch.arange(len(both_NR), device=both_NR.device) < len(tags_NR)
            row_R, bias = _logistic(both_NR, _best(network, index, both_NR), is_new_N)
        moved_R = (row_R * network.temperature.double()).to(network.weight_ER)
        network.weight_ER[index] += moved_R - network.weight_ER[index].mean(0)
        bias_L.append(bias)
    fit = Fit(tuple(bias_L), batches * a_batch * (1 if old is None else 1 + OLD_TIMES))
    set_margin(model, names, fit, 0.0)
    return fit


def _best(network: Any, index: list[int], tags_NR: Tensor) -> Tensor:
    """The best of the other experts' logits, bias included, for each tag."""
    weight_ER = network.weight_ER.double() / network.temperature.double()
    others = [place for place in range(len(weight_ER)) if place not in index]
    best_N: Tensor = (tags_NR @ weight_ER[others].T + network.bias_E[others].double()).amax(-1)
    return best_N


def _logistic(tags_NR: Tensor, best_N: Tensor, is_new_N: Tensor) -> tuple[Tensor, float]:
    """(w_R, b) that minimise the mean of −log σ(±(t·w + b − best)), + on new text, each kind of text for half, + ridge.

    Tags are scaled to a mean square of 1 meanwhile; float64.
    """
    scale_R = tags_NR.square().mean(0).sqrt().clamp(min=1e-6)
    x_NR, sign_N = tags_NR / scale_R, torch.where(is_new_N, 1.0, -1.0).double()
    weight_N = torch.where(is_new_N, 0.5 / is_new_N.sum(), 0.5 / (~is_new_N).sum()).double()
    w_R = torch.zeros_like(scale_R, requires_grad=True)
    b = torch.zeros_like(scale_R[0], requires_grad=True)
    search = torch.optim.LBFGS([w_R, b], max_iter=STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> float:
        search.zero_grad()
        with torch.enable_grad():
            nats_N = torch.nn.functional.softplus(-sign_N * (x_NR @ w_R + b - best_N))
            total = (weight_N * nats_N).sum() + RIDGE * w_R.square().sum()
            total.backward()
        return float(total.detach())

    search.step(loss)
    return (w_R / scale_R).detach(), float(b.detach())


def _read_tags(
    model: CMRN, dataset: PackedDataset, batches: int, batch_size: int, precision: Precision
) -> list[Tensor]:
    """Each block's tags_NR of the dataset's first batches, float64."""
    parsers = [block.router.semantic_parser for block in model.blocks]  # type: ignore[union-attr]
    kept: list[list[Tensor]] = [[] for _ in parsers]

    def keep(place: int) -> Any:
        return lambda module, inputs, output: kept[place].append(output[0].double().flatten(0, 1))

    device = next(model.parameters()).device
    handles = [parser.register_forward_hook(keep(place)) for place, parser in enumerate(parsers)]  # type: ignore[union-attr]
    was_training, cursor = model.training, dataset.start()
    model.eval()
    try:
        for _ in range(batches):
            batch, cursor = dataset.batch(cursor, batch_size)
            with autocast(device, precision):
                model(batch.input_ids_BT.to(device), document_ids=batch.document_ids_BT.to(device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return [torch.cat(each) for each in kept]


def fitting_tokens(trained: int) -> int:
    """How many tokens of new text rows are fitted to, for training on `trained`; rounded up to whole batches."""
    return min(MOST_FITTED, max(LEAST_FITTED, round(trained * FITTED_SHARE)))


def tried_tokens(trained: int) -> int:
    """How many tokens of each old domain a margin is tried on after training on `trained`."""
    return min(MOST_TRIED, max(LEAST_TRIED, round(trained * TRIED_SHARE)))


def choose_margin(
    model: CMRN,
    names: Sequence[str],
    fit: Fit,
    sample: EvaluationSet,
    keep_threshold: float,
    precision: Precision,
    most_tokens: int,
) -> Margin:
    """Set the smallest margin at which no domain of the sample reads worse by more than 0.7 of the threshold.

    Worse: in bits per byte, relative to the experts silenced, on the first `most_tokens` of each domain. Where none of
    the margins tried does, the largest is set.
    """
    with silenced(model, *names):
        before = evaluate(model, sample, most_tokens, precision)
    rises: dict[int, float] = {}

    def rise(place: int) -> float:
        if place not in rises:
            set_margin(model, names, fit, MARGINS[place])
            now = evaluate(model, sample, most_tokens, precision).bits_per_byte
            worse = (now[domain] / bits - 1 for domain, bits in before.bits_per_byte.items() if bits)
            rises[place] = max(worse, default=0.0)
        return rises[place]

    low, high = 0, len(MARGINS) - 1
    while low < high:
        middle = (low + high) // 2
        kept = rise(middle) <= SHARE_OF_THRESHOLD * keep_threshold
        low, high = (low, middle) if kept else (middle + 1, high)
    worse = rise(low)
    set_margin(model, names, fit, MARGINS[low])
    return Margin(MARGINS[low], worse, before.tokens * (1 + len(rises)))


def _places(model: CMRN, names: Sequence[str]) -> list[int]:
    return [expert_named(model.config, name)[0] for name in names]
