"""A table's vectors on a GPU, where comparing a query with all of them is faster than any choice of candidates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cmrn.memory.exact import ExactRows, ExactSearch
from cmrn.memory.table import Floats, Places, Table

__all__ = ["Resident"]

PIECE = 1 << 18
"""Vectors moved to the device at once."""

HEADROOM = 1.01
"""How much longer than the longest vector so far one may be before all are rounded anew."""


class Resident:
    """A copy of a table's vectors on a device, brought up to date before every search; one thread at a time.

    Places that died stay, as zeros, until the table is made anew.
    """

    def __init__(self, table: Table, device: str) -> None:
        self.table, self._device = table, torch.device(device)
        table.moved = []
        self._count, self._scale = 0, 0.0
        narrow = torch.float16 if self._device.type == "cuda" else torch.float32
        self._rows_ND = torch.empty(0, table.dim, device=self._device)
        self._narrow_ND = self._rows_ND.to(narrow)
        self._search: ExactSearch | None = None

    def search(self, queries_QD: Floats, count: int) -> tuple[Floats, Places]:
        """Scores and places of the min(count, N) largest inner products with each query, best first.

        Each is computed in float64 and rounded to float32; the lower place is first at equal scores.
        """
        self._follow()
        assert self._search is not None
        queries = torch.from_numpy(queries_QD).to(self._device)
        places_QM = self._search(queries, min(count, self._count))[1]
        found_QMD = self._rows_ND[places_QM].double()
        scores_QM = torch.einsum("qd,qmd->qm", queries.double(), found_QMD).float()
        scores, places = scores_QM.cpu().numpy(), places_QM.cpu().numpy()
        order = np.lexsort((places, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)

    def _follow(self) -> None:
        """Take in what was appended to the table or replaced in it."""
        table, before = self.table, self._count
        moved = np.unique(np.concatenate(table.moved)) if table.moved else np.zeros(0, np.int64)
        if self._search is not None and not len(moved) and before == table.places:
            return
        self._grow(table.places)
        for start in range(before, table.places, PIECE):
            self._put(slice(start, min(start + PIECE, table.places)))
        if len(moved):
            self._put(torch.from_numpy(moved))
        table.moved = []
        rows_ND, narrow_ND = self._rows_ND[: self._count], self._narrow_ND[: self._count]
        self._search = ExactSearch(ExactRows(rows_ND, narrow_ND, self._scale or 1.0))

    def _grow(self, count: int) -> None:
        """Make room for so many vectors, twice as many as before where that is more."""
        if count > len(self._rows_ND):
            room = max(count, 2 * self._count)
            self._rows_ND, self._narrow_ND = (
                _longer(held, self._count, room) for held in (self._rows_ND, self._narrow_ND)
            )
        self._count = count

    def _put(self, places: slice | Tensor) -> None:
        """Copy vectors to the device, and round them there."""
        at = places if isinstance(places, slice) else places.numpy()
        rows_ND = torch.from_numpy(np.ascontiguousarray(self.table.view()[at])).to(self._device)
        if not isinstance(places, slice):
            places = places.to(self._device)
        self._rows_ND[places] = rows_ND
        longest = float(torch.linalg.vector_norm(rows_ND, dim=1).amax())
        if longest > self._scale:
            self._scale = HEADROOM * longest
            for start in range(0, self._count, PIECE):
                part = slice(start, min(start + PIECE, self._count))
                self._narrow_ND[part] = self._rows_ND[part] / self._scale
        else:
            self._narrow_ND[places] = (rows_ND / (self._scale or 1.0)).to(self._narrow_ND.dtype)


def _longer(held_ND: Tensor, used: int, room: int) -> Tensor:
    longer_ND = held_ND.new_empty(room, held_ND.shape[1])
    longer_ND[:used] = held_ND[:used]
    return longer_ND
