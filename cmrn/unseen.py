"""Text that no expert owns: how much of the router's belief is left over, and how much is usual.

A token's unowned share is 1 − max over owned domains g of Σ_{e owns g} softmax(logits)_e, mean over blocks: what the
domain loss drives down on labelled text, and what experts without a domain take away. A text's score is the mean over
its tokens. Short texts score higher, so what is usual is measured by length.

Source: the baseline of Hendrycks & Gimpel 2017, "A Baseline for Detecting Misclassified and Out-of-Distribution
Examples". Differs: over domains of experts, and over all blocks. Mahalanobis distances of the semantic tags and the
logits' energy separate worse here (docs/LOG.md).
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.data.evaluation import EvaluationSet
from cmrn.errors import CheckpointError
from cmrn.files import MANIFEST, read_json, verify_folder
from cmrn.model import CMRN
from cmrn.records import Routing

__all__ = ["UNSEEN", "DocumentScores", "Unseen", "UnseenScore", "measure_unseen", "read_unseen", "unowned_share"]

UNSEEN = "unseen.json"
FORMAT_VERSION = 1
USUAL_SHARE = 0.95
LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
PIECES = 32
"""Pieces read of each domain; a piece's first tokens are pieces too."""


@dataclass(frozen=True)
class UnseenScore:
    """A text's score in [0, 1], and the one that 95 % of held-out pieces as long stay below; None if not measured."""

    score: float
    threshold: float | None

    @property
    def is_unseen(self) -> bool | None:
        """Whether no expert owns the text; None where there is no threshold."""
        return None if self.threshold is None else self.score > self.threshold

    def to_json(self) -> dict[str, Any]:
        """The keys `score`, `threshold` and `is_unseen`."""
        return {"score": self.score, "threshold": self.threshold, "is_unseen": self.is_unseen}


@dataclass(frozen=True)
class Unseen:
    """What is usual: for each length in tokens, ascending, the score that `share` of held-out pieces stay below."""

    lengths: tuple[int, ...]
    thresholds: tuple[float, ...]
    share: float
    pieces: int

    def threshold(self, tokens: int) -> float:
        """The threshold of a text of so many tokens, linear in the logarithm of its length between those measured."""
        place = bisect.bisect_right(self.lengths, tokens)
        if place in (0, len(self.lengths)):
            return self.thresholds[min(place, len(self.lengths) - 1)]
        low, high = math.log(self.lengths[place - 1]), math.log(self.lengths[place])
        part = (math.log(tokens) - low) / (high - low)
        return (1 - part) * self.thresholds[place - 1] + part * self.thresholds[place]

    def to_json(self) -> str:
        """What `unseen.json` holds."""
        document = {
            "format_version": FORMAT_VERSION,
            "lengths": list(self.lengths),
            "thresholds": list(self.thresholds),
            "share": self.share,
            "pieces": self.pieces,
        }
        return json.dumps(document) + "\n"


class DocumentScores:
    """Unowned shares of one domain's tokens, added up by document."""

    def __init__(self) -> None:
        self._sums_N = torch.zeros(0, dtype=torch.float64)
        self._counts_N = torch.zeros(0, dtype=torch.float64)

    def add(self, unowned_BT: Tensor, documents_BT: Tensor, real_BT: Tensor) -> None:
        """Add the real tokens of a window; documents_BT numbers their documents from 0."""
        real_BT = real_BT.bool()
        number_N, value_N = documents_BT[real_BT].cpu(), unowned_BT[real_BT].double().cpu()
        missing = int(number_N.max()) + 1 - len(self._sums_N) if len(number_N) else 0
        if missing > 0:
            self._sums_N = torch.cat([self._sums_N, torch.zeros(missing, dtype=torch.float64)])
            self._counts_N = torch.cat([self._counts_N, torch.zeros(missing, dtype=torch.float64)])
        self._sums_N.index_add_(0, number_N, value_N)
        self._counts_N.index_add_(0, number_N, torch.ones_like(value_N))

    @property
    def mean(self) -> float:
        """The score of all tokens together."""
        return float(self._sums_N.sum() / self._counts_N.sum().clamp(min=1))

    def unseen_share(self, unseen: Unseen) -> float:
        """Share of the documents that score above what is usual for their length."""
        read = [(total / count, int(count)) for total, count in zip(*self._lists(), strict=True) if count]
        return sum(score > unseen.threshold(count) for score, count in read) / max(1, len(read))

    def _lists(self) -> tuple[list[float], list[float]]:
        return self._sums_N.tolist(), self._counts_N.tolist()


def unowned_share(config: CMRNConfig, routing: Sequence[Routing]) -> Tensor | None:
    """unowned_BT in [0, 1], without gradient; None where no expert owns a domain or the router is not learned."""
    logits = [block.logits_BTE for block in routing if block.logits_BTE is not None]
    if not config.domains or not logits:
        return None
    owners = [[domain in expert.domains for expert in config.named_experts] for domain in config.domains]
    probability_LBTE = torch.stack(logits).detach().softmax(-1)
    owners_EG = torch.tensor(owners, device=probability_LBTE.device).T.to(probability_LBTE)
    return (1 - (probability_LBTE @ owners_EG).amax(-1)).clamp(min=0).mean(0)


@torch.no_grad()
def measure_unseen(model: CMRN, held_out: EvaluationSet) -> Unseen | None:
    """What is usual on held-out text of the domains that experts own; None where there is too little to say.

    Up to 32 pieces of 128 tokens of each domain are read, each from a fresh state. The model is left as it was.
    """
    scores: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        for domain in held_out.domains:
            pieces_BT = held_out.pieces(domain, PIECES, LENGTHS[-1]) if domain in model.config.domains else None
            if pieces_BT is None or not len(pieces_BT):
                continue
            output = model(pieces_BT.to(next(model.parameters()).device))
            unowned_BT = unowned_share(model.config, output.routing)
            if unowned_BT is not None:
                scores.append(unowned_BT.double().cpu().cumsum(1)[:, [n - 1 for n in LENGTHS]])
    finally:
        model.train(was_training)
    if not scores or sum(map(len, scores)) < PIECES:
        return None
    means_NL = torch.cat(scores) / torch.tensor(LENGTHS, dtype=torch.float64)
    usual_L = means_NL.quantile(USUAL_SHARE, 0)
    return Unseen(LENGTHS, tuple(usual_L.tolist()), USUAL_SHARE, len(means_NL))


def read_unseen(folder: str | Path) -> Unseen | None:
    """What was measured when the model in `folder` was saved; None where nothing was.

    Raises:
        CheckpointError: the folder is damaged, or says it in a way that cannot be read.
    """
    path = Path(folder) / UNSEEN
    if not (Path(folder) / MANIFEST).is_file() or not path.exists():
        return None
    if UNSEEN not in verify_folder(Path(folder)).files:
        raise CheckpointError(f"is not named by {MANIFEST}", where=str(path))
    document = read_json(path)
    try:
        if document.pop("format_version") != FORMAT_VERSION:
            raise CheckpointError("is of another version", where=str(path))
        found = Unseen(tuple(document.pop("lengths")), tuple(document.pop("thresholds")), **document)
        sound = len(found.lengths) == len(found.thresholds) > 0 and list(found.lengths) == sorted(set(found.lengths))
        sound = sound and all(type(n) is int and n > 0 for n in found.lengths) and math.isfinite(sum(found.thresholds))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("is corrupt", where=str(path)) from error
    if not sound:
        raise CheckpointError("is corrupt: lengths and thresholds do not fit", where=str(path))
    return found
