"""kNN-LM (Khandelwal et al. 2020, "Generalization through Memorization"), the peer of memory without training.

    p(w) = λ Σ_{(k, v): v = w} softmax(−‖h − k‖² / τ) + (1 − λ) p_LM(w)

over the nearest stored hidden states k, each with the token v that followed it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Datastore", "Mixture"]

NEIGHBOURS = 256
QUERIES = 512
ROWS = 1 << 20


class Datastore:
    """Hidden states and what followed them, on their device, searched exactly."""

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._followers: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def add(self, hidden_ND: Tensor, followers_N: Tensor) -> None:
        """Keep hidden states with the token after each."""
        self._keys.append(hidden_ND.to(torch.bfloat16 if hidden_ND.is_cuda else torch.float32))
        self._followers.append(followers_N)

    def nearest(self, hidden_QD: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(squared distances, followers), (Q,M) both, of the nearest M = min(count, len(self)); nearest first."""
        best = followers = None
        for keys, after in zip(self._keys, self._followers, strict=True):
            for start in range(0, len(keys), ROWS):
                part = keys[start : start + ROWS]
                squares = (part.float() ** 2).sum(1) - 2 * (hidden_QD.to(part.dtype) @ part.T).float()
                some, places = squares.topk(min(count, len(part)), 1, largest=False)
                found = after[start : start + ROWS][places]
                best = some if best is None else torch.cat([best, some], 1)
                followers = found if followers is None else torch.cat([followers, found], 1)
        if best is None or followers is None:
            return hidden_QD.new_zeros(len(hidden_QD), 0), hidden_QD.new_zeros(len(hidden_QD), 0, dtype=torch.int64)
        best, places = best.topk(min(count, best.shape[1]), 1, largest=False)
        return best + (hidden_QD.float() ** 2).sum(1, keepdim=True), followers.gather(1, places)


@dataclass(frozen=True)
class Mixture:
    """The settings that are tried: λ, and τ as a share of the dimension D. Distances are of normed states."""

    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.1, 0.3)

    @property
    def settings(self) -> tuple[tuple[float, float], ...]:
        """Every (λ, τ)."""
        return tuple((share, temperature) for share in self.shares for temperature in self.temperatures)

    def nats(
        self, store: Datastore, hidden_ND: Tensor, logits_NV: Tensor, targets_N: Tensor
    ) -> dict[tuple[float, float], Tensor]:
        """−ln p of each target under each setting, (N,) float32; the model's own where the store is empty."""
        found: dict[tuple[float, float], list[Tensor]] = {setting: [] for setting in self.settings}
        for start in range(0, len(hidden_ND), QUERIES):
            part = slice(start, start + QUERIES)
            own_Q = F.cross_entropy(logits_NV[part].float(), targets_N[part], reduction="none")
            distances_QM, followers_QM = store.nearest(hidden_ND[part], NEIGHBOURS)
            hits_QM = followers_QM == targets_N[part, None]
            for temperature in self.temperatures:
                weights_QM = (-distances_QM / (temperature * hidden_ND.shape[1])).softmax(1)
                recalled_Q = (weights_QM * hits_QM).sum(1)
                for share in self.shares:
                    mixed_Q = -torch.log((share * recalled_Q + (1 - share) * (-own_Q).exp()).clamp(min=1e-20))
                    found[share, temperature].append(mixed_Q if len(store) else own_Q)
        return {setting: torch.cat(parts) for setting, parts in found.items()}
