"""What training costs, counted from the products that a step makes rather than from a formula."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from cmrn.model import CMRN
from cmrn.training.continual import only_expert
from cmrn.training.row import forced

__all__ = ["TokenCost", "token_cost"]


@dataclass(frozen=True)
class TokenCost:
    """FLOPs a token. read: forward. expert: forward, activation gradient, and weight gradient of the experts trained.

    whole: forward and all gradients of all weights.
    """

    read: float
    expert: float
    whole: float


def token_cost(model: CMRN, names: Sequence[str], length: int) -> TokenCost:
    """The cost of a token in rows of `length`, with these experts reading all and trained alone, or everything trained.

    Matrix products and convolutions are counted, by the plain form on the CPU, for one row of random tokens;
    normalisations, element-wise work and the optimizers are not.
    """
    plain = copy.deepcopy(model).to("cpu", torch.float32).train()
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, model.config.vocab_size, (1, length), generator=generator)

    def count(*, backward: bool) -> float:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            losses = plain(ids_BT, labels=ids_BT).losses
            if backward:
                losses.total.backward()
        plain.zero_grad(set_to_none=True)
        return float(counter.get_total_flops()) / length

    with torch.random.fork_rng(devices=[]):
        read, whole = count(backward=False), count(backward=True)
        with only_expert(plain, *names), forced(plain, names):
            expert = count(backward=True)
    return TokenCost(read, expert, whole)
