"""The router row of a new expert: where it starts, and the margin it keeps from text of the old domains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import TrainingConfig
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.packing import PackedDataset
from cmrn.domain_expert import routing_networks, silenced
from cmrn.experts.growth import expert_named
from cmrn.model import CMRN
from cmrn.training.device import Precision, autocast
from cmrn.training.metrics import evaluate

__all__ = ["Margin", "choose_margin", "place_row", "placing_tokens", "set_margin", "tried_tokens"]

FIRST_MARGIN = 1.0
"""Margin while the expert is trained, and after it where there is no old text to choose one on."""
GAP = 3.0
"""How far below the best old logit the row's own starts on old text."""
RIDGE = 1e-3
LEAST_PLACING, MOST_PLACING, PLACING_SHARE = 2_048, 16_384, 1 / 16
"""Tokens that a row is placed by: a share of those trained on, within limits."""
LEAST_TRIED, MOST_TRIED, TRIED_SHARE = 1_024, 16_384, 1 / 64
"""Tokens of each old domain that a margin is tried on: a share of those trained on, within limits."""
MARGINS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0)
SHARE_OF_THRESHOLD = 0.7
"""What the sample may lose of the threshold: other text of the same domains loses a little more or less."""


@dataclass(frozen=True)
class Margin:
    """A margin chosen on old text.

    value: taken off the row's logit for the choice. worse: the largest relative rise in bits per byte of an old domain
    of the sample, against the expert silenced. tokens: read to find it.
    """

    value: float
    worse: float
    tokens: int


@torch.no_grad()
def set_margin(model: CMRN, name: str, margin: float) -> None:
    """Let the choice see the expert's logit `margin` lower, measured from the mean balance bias of the others."""
    index, _ = expert_named(model.config, name)
    for network in routing_networks(model):
        others_E = torch.cat([network.bias_E[:index], network.bias_E[index + 1 :]])
        network.bias_E[index] = others_E.mean() - margin


@torch.no_grad()
def place_row(
    model: CMRN, name: str, domain: str, dataset: PackedDataset, config: TrainingConfig, precision: Precision
) -> int:
    """Start the expert's router rows where the domain's text is; how many tokens were read.

    In every block the row is the shortest w with w·μ = the mean best old logit on the domain's text, μ its mean
    semantic tag, and with w·μ' = the same − 3 for every old domain read, μ' its mean tag; nearly (ridge 0.001). The
    margin starts at 1.
    """
    index, _ = expert_named(model.config, name)
    number = model.config.domains.index(domain)
    a_batch = config.batch_size * config.sequence_length
    batches = max(1, -(-placing_tokens(config.max_steps * a_batch) // a_batch))
    cursor, sums = dataset.start(), _Sums(model)
    was_training = model.training
    model.eval()
    try:
        with silenced(model, name), sums:
            for _ in range(batches):
                batch, cursor = dataset.batch(cursor, config.batch_size)
                device = next(model.parameters()).device
                with autocast(device, precision):
                    output = model(batch.input_ids_BT.to(device), document_ids=batch.document_ids_BT.to(device))
                sums.add([record.logits_BTE for record in output.routing], batch.domain_ids_BT.to(device))
    finally:
        model.train(was_training)
    for network, row_R in zip(routing_networks(model), sums.rows(number), strict=True):
        network.weight_ER[index] = row_R.to(network.weight_ER)
    set_margin(model, name, FIRST_MARGIN)
    return batches * a_batch


class _Sums:
    """Tags and best logits of every block, summed over the tokens of each domain G, and of text without one (last)."""

    def __init__(self, model: CMRN) -> None:
        self.parsers = [block.router.semantic_parser for block in model.blocks]  # type: ignore[union-attr]
        groups, width = len(model.config.domains) + 1, model.config.router_dim + 1
        self.sums_LGC = torch.zeros(len(self.parsers), groups, width, dtype=torch.float64)
        self.counts_G = torch.zeros(groups, dtype=torch.float64)
        self.tags: list[Tensor] = []

    def __enter__(self) -> _Sums:
        self.handles = [parser.register_forward_hook(self._keep) for parser in self.parsers]  # type: ignore[union-attr]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self.tags.append(output[0])

    def add(self, logits: list[Tensor | None], domains_BT: Tensor) -> None:
        """Add what one forward pass gave."""
        groups = len(self.counts_G)
        group_GN = F.one_hot(domains_BT.flatten() % groups, groups).double().T
        self.counts_G += group_GN.sum(1).cpu()
        for block, (tags_BTR, logits_BTE) in enumerate(zip(self.tags, logits, strict=True)):
            assert logits_BTE is not None
            both_BTC = torch.cat([tags_BTR.double(), logits_BTE.amax(-1, keepdim=True).double()], -1)
            self.sums_LGC[block] += (group_GN @ both_BTC.flatten(0, 1)).cpu()
        self.tags.clear()

    def rows(self, own: int) -> list[Tensor]:
        """One row a block, float64, for the expert of the domain `own`."""
        read = self.counts_G > 0
        means_LGC = self.sums_LGC[:, read] / self.counts_G[read, None]
        lowered_G = torch.full_like(self.counts_G, GAP)
        lowered_G[own] = 0.0
        rows = []
        for means_GC in means_LGC:
            tags_GR, wanted_G = means_GC[:, :-1], means_GC[:, -1] - lowered_G[read]
            gram_GG = tags_GR @ tags_GR.T
            ridge = RIDGE * gram_GG.diagonal().mean() * torch.eye(len(gram_GG), dtype=torch.float64)
            rows.append(tags_GR.T @ torch.linalg.solve(gram_GG + ridge, wanted_G))
        return rows


def placing_tokens(trained: int) -> int:
    """How many tokens a row is placed by before training on `trained`; rounded up to whole batches."""
    return min(MOST_PLACING, max(LEAST_PLACING, round(trained * PLACING_SHARE)))


def tried_tokens(trained: int) -> int:
    """How many tokens of each old domain a margin is tried on after training on `trained`."""
    return min(MOST_TRIED, max(LEAST_TRIED, round(trained * TRIED_SHARE)))


def choose_margin(
    model: CMRN, name: str, sample: EvaluationSet, keep_threshold: float, precision: Precision, most_tokens: int
) -> Margin:
    """Set the smallest margin at which no domain of the sample reads worse by more than 0.7 of the threshold.

    Worse: in bits per byte, relative to the expert silenced, on the first `most_tokens` of each domain. Where none of
    the margins tried does, the largest is set.
    """
    with silenced(model, name):
        before = evaluate(model, sample, most_tokens, precision)
    rises: dict[int, float] = {}

    def rise(place: int) -> float:
        if place not in rises:
            set_margin(model, name, MARGINS[place])
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
    set_margin(model, name, MARGINS[low])
    return Margin(MARGINS[low], worse, before.tokens * (1 + len(rises)))
