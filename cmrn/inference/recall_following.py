"""What followed the same words in stored text: counts after the last one, two and three tokens, blended with a model.

    p₀ = the model's probability       pₙ(w) = (Cₙ(w) + s·Tₙ·pₙ₋₁(w)) / (Nₙ + s·Tₙ)

Nₙ times the n tokens before stand in the memory, Cₙ(w) times w follows them, Tₙ different tokens do: the interpolation
of Witten and Bell (1991) with the model in the place of the shortest context. Differs: the strength s, which is theirs
at 1, follows what it was worth in the text read so far. So text that a memory holds changes what comes next without a
step of training, at a few look-ups a token, and what it holds nothing about stays as the model has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.errors import UsageError

__all__ = ["ORDERS", "Following", "Strength", "contexts"]

ORDERS = 3
STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FORGET = 0.98
NEVER = 1e-30

Integers = npt.NDArray[np.int64]


def contexts(ids_BL: Tensor, documents_BL: Tensor, orders: int = ORDERS) -> Tensor:
    """(B, L, orders): the token 1, 2, … places before each, plus one; 0 where that lies in another document."""
    before = []
    for back in range(1, orders + 1):
        same_BL = documents_BL[:, back:] == documents_BL[:, :-back]
        before.append(torch.nn.functional.pad((ids_BL[:, :-back] + 1) * same_BL, (back, 0)))
    return torch.stack(before, -1)


class Following:
    """How often which token followed the same tokens in texts; it holds counts and no text.

    orders: the longest context it counts: 3, and less for a vocabulary beyond 65,535 tokens.

    >>> followed = Following.of([[5, 6, 7], [5, 6, 8]], vocab_size=10)
    >>> before = torch.tensor([[6, 5, 0]]) + torch.tensor([1, 1, 0])
    >>> [count.tolist() for count in followed.counts(before, torch.tensor([7]))[1]]
    [[2], [1], [2]]
    """

    def __init__(self, tables: Sequence[tuple[Tensor, Tensor]], bits: int) -> None:
        """For `of`. tables: for each order its distinct keys, sorted, and how many occurrences precede each."""
        self._tables, self._bits = tuple(tables), bits

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], vocab_size: int) -> Self:
        """Count what follows what in texts of token ids, each on its own.

        Raises:
            UsageError: the vocabulary is too large for any context to be counted (above 2**32 - 1 tokens).
        """
        bits = vocab_size.bit_length()
        orders = min(ORDERS, 64 // bits - 1)
        if orders < 1:
            raise UsageError(f"a vocabulary of {vocab_size} tokens is too large to count contexts of")
        rows = [np.asarray(text, np.int64) for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.concatenate([*rows, np.zeros(0, np.int64)]) + 1
        places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tables = []
        for order in range(1, orders + 1):
            key = np.zeros(len(ids), np.int64)
            for back in (*range(1, order + 1), 0):
                key = (key << bits) | np.where(places >= back, np.roll(ids, back), 0)
            keys_U, counts_U = np.unique(key, return_counts=True)
            tables.append((torch.from_numpy(keys_U), torch.from_numpy(np.cumsum([0, *counts_U]))))
        return cls(tables, bits)

    @property
    def orders(self) -> int:
        """The longest context that is counted, in tokens."""
        return len(self._tables)

    @property
    def bytes(self) -> int:
        """Bytes of the counts."""
        return sum(keys.nbytes + ends.nbytes for keys, ends in self._tables)

    def to(self, device: torch.device) -> Following:
        """The same counts on another device."""
        return Following([(keys.to(device), ends.to(device)) for keys, ends in self._tables], self._bits)

    def counts(self, before: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each order (N, C, T), int64 like ids: times the context occurs, times with ids next, kinds of next.

        before: (…, orders or more), as `contexts` makes it; ids: (…).
        """
        found, context = [], torch.zeros_like(ids)
        for order, (keys_U, ends_U) in enumerate(self._tables, start=1):
            context = (context << self._bits) | before[..., order - 1]
            first = context << self._bits
            if not len(keys_U):
                found.append((torch.zeros_like(ids),) * 3)
                continue
            low = torch.searchsorted(keys_U, first)
            high = torch.searchsorted(keys_U, first | ((1 << self._bits) - 1), right=True)
            wanted = first | (ids + 1)
            place = torch.searchsorted(keys_U, wanted).clamp(max=len(keys_U) - 1)
            times = torch.where(keys_U[place] == wanted, ends_U[place + 1] - ends_U[place], 0)
            found.append((ends_U[high] - ends_U[low], times, high - low))
        return found


class Strength:
    """The probability of what came, under a mixture of strengths whose shares follow what each was worth before.

    One of them is infinite, the model alone: so memory that does not help soon counts for nothing.
    """

    def __init__(self) -> None:
        self._worth_S: Tensor | None = None

    def nats(self, model_N: Tensor, counts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Nats of tokens in the order of reading, (N,) float64, given the model's nats and the counts of each order.

        The shares are those that the calls before left; then they move by these tokens.
        """
        base_N = (-model_N.double()).exp()
        strengths_S1 = torch.tensor(STRENGTHS, dtype=torch.float64, device=base_N.device)[:, None]
        blended_SN = base_N.expand(len(STRENGTHS), -1)
        for occurred_N, times_N, kinds_N in counts:
            weight_SN = strengths_S1 * kinds_N
            blended_SN = torch.where(
                occurred_N > 0, (times_N + weight_SN * blended_SN) / (occurred_N + weight_SN).clamp(min=1), blended_SN
            )
        logs_SN = torch.cat([blended_SN, base_N[None]]).clamp(min=NEVER).log()
        worth_S = torch.zeros_like(logs_SN[:, 0]) if self._worth_S is None else self._worth_S
        self._worth_S = FORGET * worth_S + logs_SN.sum(1)
        return -torch.logsumexp(logs_SN + worth_S.log_softmax(0)[:, None], 0)
