"""Two models that read the same tokens: which experts they chose alike, and where another one leads.

Saturation: of the experts that the later model chose for a token, the share that the earlier one chose too, by name,
mean over tokens, in each block (Muennighoff et al. 2024, "OLMoE", section 5.1). Two routers that choose at random
agree on k/E.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cmrn.data.evaluation import EvaluationSet
from cmrn.errors import CheckpointError
from cmrn.inference.analysis import read_batches
from cmrn.inference.generate import tokenizer_of
from cmrn.inference.trace import Trace
from cmrn.model import CMRN

__all__ = [
    "ChangedToken",
    "Comparison",
    "ExpertShift",
    "Saturation",
    "check_comparable",
    "compare_traces",
    "saturation",
]


@dataclass(frozen=True)
class Saturation:
    """Agreement with another model, named by its place; one figure a block, each in [0, 1]; chance: k/E."""

    other: str
    blocks: tuple[float, ...]
    chance: float

    @property
    def mean(self) -> float:
        """Over blocks."""
        return sum(self.blocks) / len(self.blocks)

    def to_json(self) -> dict[str, Any]:
        """The keys `checkpoint`, `blocks`, `mean` and `chance`."""
        return {"checkpoint": self.other, "blocks": list(self.blocks), "mean": self.mean, "chance": self.chance}


@dataclass(frozen=True)
class ExpertShift:
    """An expert's mean weight in this model and in the other; None where a model has no expert of that name."""

    name: str
    weight: float | None
    other: float | None


@dataclass(frozen=True)
class ChangedToken:
    """A token, by its place, that is led by `leader` here and by `other` there."""

    token: int
    text: str
    leader: str
    other: str


@dataclass(frozen=True)
class Comparison:
    """One text read by this model and another. experts: largest change first; changed: in the order of the text."""

    saturation: Saturation
    experts: tuple[ExpertShift, ...]
    changed: tuple[ChangedToken, ...]
    same_leader: float

    def to_json(self) -> dict[str, Any]:
        """The keys of `Saturation`, and `experts`, `changed` and `same_leader`."""
        return {
            **self.saturation.to_json(),
            "experts": [vars(each) for each in self.experts],
            "changed": [vars(each) for each in self.changed],
            "same_leader": self.same_leader,
        }


def check_comparable(model: CMRN, other: CMRN, place: str) -> None:
    """Raises CheckpointError where the two do not read the same tokens in as many blocks."""
    if tokenizer_of(model) != tokenizer_of(other):
        raise CheckpointError("has another tokenizer, so tokens cannot be compared", where=place)
    if model.config.num_blocks != other.config.num_blocks:
        ours, theirs = model.config.num_blocks, other.config.num_blocks
        raise CheckpointError(f"has {theirs} blocks where this model has {ours}", where=place)


def compare_traces(trace: Trace, other: Trace, place: str) -> Comparison:
    """How two comparable models' traces of one text differ; `place` names the other model."""
    pairs = list(zip(trace.tokens, other.tokens, strict=True))
    changed = tuple(
        ChangedToken(number, mine.text, mine.experts[0].name, theirs.experts[0].name)
        for number, (mine, theirs) in enumerate(pairs)
        if mine.experts[0].name != theirs.experts[0].name
    )
    agreed = [[_overlap(a, b) for a, b in zip(mine.blocks, theirs.blocks, strict=True)] for mine, theirs in pairs]
    chosen = sum(weight.weight > 0 for weight in trace.tokens[0].blocks[0])
    blocks = tuple(sum(column) / len(column) for column in zip(*agreed, strict=True))
    here = {each.name: each.weight for each in trace.experts}
    there = {each.name: each.weight for each in other.experts}
    shifts = [ExpertShift(name, here.get(name), there.get(name)) for name in dict.fromkeys([*here, *there])]
    shifts.sort(key=lambda each: -abs((each.weight or 0.0) - (each.other or 0.0)))
    return Comparison(
        Saturation(place, blocks, chosen / len(here)), tuple(shifts), changed, 1 - len(changed) / len(pairs)
    )


def saturation(model: CMRN, other: CMRN, texts: EvaluationSet, place: str, max_tokens: int | None = None) -> Saturation:
    """Of the experts that `model` chooses, the share that `other`, found in `place`, chooses too.

    Raises:
        CheckpointError: the two do not read the same tokens in as many blocks.
    """
    check_comparable(model, other, place)
    names, others = (
        {each.name: index for index, each in enumerate(one.config.named_experts)} for one in (model, other)
    )
    shared = [name for name in names if name in others]
    mine, theirs = [names[name] for name in shared], [others[name] for name in shared]
    agreed_L = torch.zeros(model.config.num_blocks, dtype=torch.float64)
    read = 0
    windows = zip(read_batches(model, texts, max_tokens), read_batches(other, texts, max_tokens), strict=True)
    for (_, batch, output), (_, _, second) in windows:
        real_BT = batch.attention_mask_BT
        read += int(real_BT.sum())
        for block, (here, there) in enumerate(zip(output.routing, second.routing, strict=True)):
            both_BTE = (here.weights_BTE[..., mine] > 0).cpu() & (there.weights_BTE[..., theirs] > 0).cpu()
            agreed_L[block] += both_BTE[real_BT].sum()
    k = model.config.routing_k
    return Saturation(place, tuple((agreed_L / max(1, read * k)).tolist()), k / model.config.num_experts)


def _overlap(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Share of the experts chosen in `ours` that are chosen in `theirs`."""
    mine = {each.name for each in ours if each.weight > 0}
    return len(mine & {each.name for each in theirs if each.weight > 0}) / len(mine)
