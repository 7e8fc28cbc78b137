"""The choice of a next token from logits: temperature, top-k and nucleus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cmrn.errors import GuaranteeError, UsageError

__all__ = ["NOTHING", "SamplingConfig", "draw", "refuse_nothing", "sample"]

COLDEST: Final = 1e-6
NOTHING: Final = -1
"""What `draw` returns for a row from which nothing can be drawn."""


@dataclass(frozen=True)
class SamplingConfig:
    """How a next token is drawn.

    temperature: divides the logits; 0 (or less than 1e-6) takes the likeliest token, the lowest id among equals.
    top_k: only the k likeliest tokens can be drawn; None for all.
    top_p: only the fewest likeliest tokens whose probabilities, at this temperature and among the top_k, reach top_p
    can be drawn (Holtzman et al. 2020, nucleus sampling); None for all.

    Raises:
        UsageError: temperature is negative or not finite, top_k is below 1, or top_p is outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise UsageError(
                f"temperature is {self.temperature}, not a number of 0 or more",
                hint="0 takes the likeliest token, 0.8 is a usual choice",
            )
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k is {self.top_k}, below 1", hint="leave it out to allow every token")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p is {self.top_p}, outside (0, 1]", hint="leave it out to allow every token")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without a draw."""
        return self.temperature < COLDEST or self.top_k == 1


@torch.no_grad()
def sample(logits_BV: Tensor, config: SamplingConfig, generator: torch.Generator | None) -> Tensor:
    """One token id for each row, int64 (B,), drawn with the probabilities that `config` leaves; no gradient.

    A logit of -inf can never be drawn. Probabilities are float32, or float64 for float64 logits. Tokens of equal logit
    at the edge of top_k or top_p are kept in the order of their ids, so the same logits and generator give the same
    ids. `generator` lives on the device of the logits; None is torch's own.

    Raises:
        GuaranteeError: a row holds NaN or +inf, or nothing above -inf: the model's weights have diverged.
    """
    ids_B = draw(logits_BV, config, generator)
    refuse_nothing(ids_B)
    return ids_B


def refuse_nothing(ids_B: Tensor) -> None:
    """Raise GuaranteeError where `draw` could not draw; the ids must be on the host, or are waited for."""
    if bool((ids_B == NOTHING).any()):
        raise GuaranteeError(
            "the model's logits are not numbers, so no token can be drawn",
            hint="its training diverged: use an earlier checkpoint",
        )


@torch.no_grad()
def draw(logits_BV: Tensor, config: SamplingConfig, generator: torch.Generator | None) -> Tensor:
    """As `sample`, but a row from which nothing can be drawn gives NOTHING: a device is not waited for.

    On CUDA a token is drawn as argmax p/e with e exponential, which `torch.multinomial` does too, after waiting for
    the device to see whether p are probabilities.
    """
    if _draws_in_one(logits_BV, config):
        from cmrn.sampling_triton import draw_one

        waiting_BV = torch.empty(logits_BV.shape, dtype=torch.float32, device=logits_BV.device)
        return draw_one(logits_BV, waiting_BV.exponential_(generator=generator), config.temperature)
    top_B1 = logits_BV.amax(-1, keepdim=True)
    broken_B = ~top_B1.isfinite()[:, 0]
    if config.greedy:
        return logits_BV.argmax(-1).masked_fill(broken_B, NOTHING)
    wide = torch.float64 if logits_BV.dtype == torch.float64 else torch.float32
    # A broken row is drawn from as if all its tokens were alike, and its id replaced.
    scaled_BV = ((logits_BV.to(wide) - top_B1.to(wide)) / config.temperature).masked_fill(broken_B[:, None], 0.0)
    if logits_BV.is_cuda and config.top_k is None and config.top_p is None:
        return _pick(scaled_BV.softmax(-1), generator)[:, 0].masked_fill(broken_B, NOTHING)
    sorted_BV, ids_BV = scaled_BV.sort(dim=-1, descending=True, stable=True)
    rank_B1 = _pick(keep_likeliest(sorted_BV, config).softmax(-1), generator)
    return ids_BV.gather(-1, rank_B1).squeeze(-1).masked_fill(broken_B, NOTHING)


def _draws_in_one(logits_BV: Tensor, config: SamplingConfig) -> bool:
    """Whether one kernel draws: on CUDA, not in float64, from all tokens."""
    whole = config.top_k is None and config.top_p is None and not config.greedy
    return logits_BV.is_cuda and logits_BV.dtype != torch.float64 and whole


def _pick(probabilities_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    """(B,1): a place in each row, drawn with its probability."""
    if not probabilities_BV.is_cuda:
        return probabilities_BV.multinomial(1, generator=generator)
    waiting_BV = torch.empty_like(probabilities_BV).exponential_(generator=generator)
    return (probabilities_BV / waiting_BV).argmax(-1, keepdim=True)


def keep_likeliest(sorted_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Logits, sorted from the largest, with -inf in place of those that top_k and top_p rule out; the first stays."""
    if config.top_k is not None:
        sorted_BV = sorted_BV.clone()
        sorted_BV[..., config.top_k :] = -torch.inf
    if config.top_p is not None:
        probabilities_BV = sorted_BV.softmax(-1)
        before_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        outside_BV = before_BV >= config.top_p
        outside_BV[..., 0] = False
        sorted_BV = sorted_BV.masked_fill(outside_BV, -torch.inf)
    return sorted_BV
