"""Keys and values in memory: found by exact search, the least recently used making room, near-duplicates blended."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.errors import DataError
from cmrn.memory.exact import exact_topk

__all__ = ["DUPLICATE", "Slots", "roots_of", "with_history"]

DUPLICATE = 0.999
"""Cosine from which a key is a near-duplicate of another in its namespace."""


class Slots:
    """At most `size` pairs of a key and a value, (D,) each, with a namespace and a number that is never given twice.

    They have the type and the device of the first ones written. A value that requires gradient keeps its history until
    it is replaced or `detach` is called. rate: how far a write moves the near-duplicate that it meets.
    """

    def __init__(self, width: int, size: int, rate: float) -> None:
        self.width, self.size, self.rate = width, size, rate
        self._next, self._clock = 1, 0
        self.clear()

    def clear(self) -> None:
        """Forget everything but which numbers were given."""
        self._count = 0
        self._keys_ND = self._values_ND = torch.zeros(0, self.width)
        self._records_N = self._used_N = self._spaces_N = torch.zeros(0, dtype=torch.int64)
        self._names: dict[str, int] = {}
        self._tracked: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def keys_ND(self) -> Tensor:
        """The keys, by slot."""
        return self._keys_ND[: self._count]

    @property
    def records_N(self) -> Tensor:
        """The numbers of the records, by slot."""
        return self._records_N[: self._count]

    def detach(self) -> None:
        """Let go of the history of values, which stay as they are."""
        self._tracked.clear()

    def search(self, queries_QD: Tensor, k: int, namespaces: Collection[str] | None) -> Tensor:
        """Slots of the at most k keys of largest inner product with each query, (Q,M), best first; that is a use."""
        allowed = None if namespaces is None else self._in([self._names[n] for n in namespaces if n in self._names])
        keys_ND = self.keys_ND if allowed is None else self.keys_ND[allowed]
        found_QM = exact_topk(queries_QD.to(keys_ND.device), keys_ND, k)[1]
        slots_QM = found_QM if allowed is None else allowed[found_QM]
        self._use(slots_QM.flatten())
        return slots_QM

    def values(self, slots_QM: Tensor) -> Tensor:
        """Values of slots, with one more dimension; gradient reaches those that require it."""
        return with_history(self._values_ND[slots_QM], slots_QM, self._tracked)

    def write(self, keys_ND: Tensor, values_ND: Tensor, namespace: str) -> Tensor:
        """Store pairs; the number of the record that took in each, (N,), -1 where more were new than there is room.

        A near-duplicate of a stored key, and then of another of these, is blended with it: key and value move by
        `rate` of the difference.

        Raises:
            DataError: a key that is not finite; nothing is written.
        """
        if not bool(torch.isfinite(keys_ND).all()):
            raise DataError("a key holds a number that is not finite", hint="nothing was written")
        if not self._count:
            self._adopt(keys_ND)
        keys_ND, values_ND = keys_ND.detach().to(self._keys_ND), values_ND.to(self._values_ND)
        space = self._names.setdefault(namespace, len(self._names))
        slots = self._duplicates(keys_ND, space).tolist()
        for place, slot in enumerate(slots):
            if slot >= 0:
                self._blend(slot, keys_ND[place], values_ND[place])
        records = [int(self._records_N[slot]) if slot >= 0 else -1 for slot in slots]
        new = [place for place, slot in enumerate(slots) if slot < 0]
        roots = roots_of(keys_ND[new])
        kept = [place for place, root in zip(new, roots, strict=True) if new[root] == place][-self.size :]
        owner = dict(zip(kept, self._fill(keys_ND[kept], values_ND[kept], space), strict=True))
        for place, root in zip(new, roots, strict=True):
            slot = owner.get(new[root], -1)
            if slot >= 0 and place not in owner:
                self._blend(slot, keys_ND[place], values_ND[place])
            records[place] = int(self._records_N[slot]) if slot >= 0 else -1
        return torch.tensor(records, dtype=torch.int64, device=self._keys_ND.device)

    def _adopt(self, keys_ND: Tensor) -> None:
        """Take the type and the device of the first keys."""
        empty = keys_ND.detach()[:0]
        self._keys_ND, self._values_ND = empty.clone(), empty.clone()
        columns = (self._records_N, self._used_N, self._spaces_N)
        self._records_N, self._used_N, self._spaces_N = (column.to(keys_ND.device) for column in columns)

    def _in(self, spaces: list[int]) -> Tensor:
        """The slots of namespaces."""
        spaces_N = self._spaces_N[: self._count]
        return torch.isin(spaces_N, torch.tensor(spaces, device=spaces_N.device, dtype=torch.int64)).nonzero()[:, 0]

    def _use(self, slots: Tensor) -> None:
        self._clock += 1
        self._used_N[slots] = self._clock

    def _duplicates(self, keys_ND: Tensor, space: int) -> Tensor:
        """For each key the slot of its namespace that scores highest with it, where it is a near-duplicate, or -1."""
        allowed = self._in([space])
        if not len(allowed):
            return torch.full((len(keys_ND),), -1)
        nearest = allowed[exact_topk(keys_ND, self._keys_ND[allowed], 1)[1][:, 0]]
        cosine = F.cosine_similarity(keys_ND, self._keys_ND[nearest], dim=1)
        return torch.where(cosine >= DUPLICATE, nearest, -1)

    def _blend(self, slot: int, key_D: Tensor, value_D: Tensor) -> None:
        self._keys_ND[slot] = torch.lerp(self._keys_ND[slot], key_D, self.rate)
        old = self._tracked.get(slot, self._values_ND[slot])
        self._put_value(slot, old + self.rate * (value_D - old))
        self._use(torch.tensor([slot], device=self._used_N.device))

    def _fill(self, keys_ND: Tensor, values_ND: Tensor, space: int) -> list[int]:
        """Put new pairs into free slots, then into those least recently used, the slot of lower number first."""
        more = len(keys_ND)
        free = min(more, self.size - self._count)
        age = self._used_N[: self._count] * (self.size + 1) + torch.arange(self._count, device=self._used_N.device)
        oldest = age.topk(more - free, largest=False).indices
        self._grow(self._count + free)
        slots = torch.cat([torch.arange(self._count - free, self._count, device=oldest.device), oldest])
        self._keys_ND[slots] = keys_ND
        self._spaces_N[slots] = space
        self._records_N[slots] = torch.arange(self._next, self._next + more, device=slots.device)
        self._next += more
        self._use(slots)
        places: list[int] = slots.tolist()
        for slot, value_D in zip(places, values_ND, strict=True):
            self._put_value(slot, value_D)
        return places

    def _put_value(self, slot: int, value_D: Tensor) -> None:
        self._values_ND[slot] = value_D.detach()
        self._tracked.pop(slot, None)
        if value_D.requires_grad:
            self._tracked[slot] = value_D

    def _grow(self, count: int) -> None:
        """Make room for `count` slots, twice as many as before where that is more."""
        missing = min(self.size, max(count, 2 * len(self._keys_ND))) - len(self._keys_ND)
        if count > len(self._keys_ND):
            self._keys_ND, self._values_ND = (F.pad(c, (0, 0, 0, missing)) for c in (self._keys_ND, self._values_ND))
            columns = (self._records_N, self._used_N, self._spaces_N)
            self._records_N, self._used_N, self._spaces_N = (F.pad(column, (0, missing)) for column in columns)
        self._count = count


def with_history(values_QMD: Tensor, numbers_QM: Tensor, tracked: Mapping[int, Tensor]) -> Tensor:
    """Values with those of the tracked numbers in their place, (D,) each, so that gradient reaches what made them."""
    numbers = [number for number in numbers_QM.unique().tolist() if number in tracked]
    if not numbers:
        return values_QMD
    names_T = torch.tensor(numbers, device=numbers_QM.device)
    place_QM = torch.searchsorted(names_T, numbers_QM).clamp(max=len(numbers) - 1)
    live_TD = torch.stack([tracked[number] for number in numbers]).to(values_QMD)
    return torch.where((names_T[place_QM] == numbers_QM)[..., None], live_TD[place_QM], values_QMD)


def roots_of(keys_ND: Tensor) -> list[int]:
    """For each key the first one that it is a near-duplicate of, itself where there is none before it."""
    unit_ND = F.normalize(keys_ND, dim=1)
    roots: list[int] = []
    for place in range(len(unit_ND)):
        near = (unit_ND[:place] @ unit_ND[place] >= DUPLICATE).nonzero()
        roots.append(roots[int(near[0])] if len(near) else place)
    return roots
