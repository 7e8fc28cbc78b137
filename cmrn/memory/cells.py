"""Approximate search over many vectors: cells around centroids, each vector in its cell as 4-bit codes (IVF-PQ).

A search looks into the cells whose centroids are nearest to the query, reads codes by vector instructions, sixteen or
more vectors at a time (FAISS's fast scan), and gives back places to be scored exactly. The codes are of what is left
after the centroid (Jégou et al. 2011, Product Quantization, section IV; André et al. 2017, Quick ADC).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "build_cells", "load_cells"]

SAMPLE = 50
"""Vectors a centroid that training reads, at most."""

ROUNDS = 8
"""Rounds of k-means."""

CHUNK = 16_384
"""Vectors taken at once while building: how long another thread may have to wait."""

SCORED = 256
"""Places whose vectors are read, at least: the codes' order is rough."""

PROBED = 0.14
"""Part of the cells that a search among a million looks into; among fewer a larger one.

At 200,000 three times that finds 0.95 of the ten nearest, with questions for queries and mixtures of other texts for
records; with texts alone half of it does.
"""

MOST_PROBED = 0.5

BITS = 4

TRAINED = 1 << 16
"""Vectors that the codes are trained on, at most."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Cells:
    """Codes of vectors by cell; `ivf` is FAISS's index, whose ids are the caller's places."""

    ivf: Any

    @property
    def count(self) -> int:
        """Codes held; a place added twice counts twice."""
        return int(self.ivf.ntotal)

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return int(self.ivf.nlist)

    def add(self, vectors_ND: Floats, places_N: NDArray[np.int64]) -> None:
        """Take in vectors under their places; one that is added again is found by its old and its new code."""
        self.ivf.add_with_ids(np.ascontiguousarray(vectors_ND), places_N)

    def search(self, queries_QD: Floats, count: int, exact: Any) -> NDArray[np.int64]:
        """About `count` places a query, those of largest inner product among more that the codes name; -1 is none.

        exact: FAISS's flat index of all vectors.
        """
        import faiss

        queries = len(queries_QD)
        cells_QP, centred_QP = self._nearest_cells(queries_QD)
        self.ivf.nprobe = cells_QP.shape[1]
        scored = max(SCORED, 2 * count)
        places_QS: NDArray[np.int64] = self.ivf.search_preassigned(queries_QD, scored, cells_QP, centred_QP)[1]
        known_QS = np.maximum(places_QS, 0)
        scores_QS = np.empty(known_QS.shape, np.float32)
        pointers = [faiss.swig_ptr(array) for array in (queries_QD, scores_QS, known_QS)]
        exact.compute_distance_subset(queries, pointers[0], scored, *pointers[1:])
        scores_QS[places_QS < 0] = -np.inf
        best_QC = np.argpartition(-scores_QS, count - 1, axis=1)[:, :count]
        return np.take_along_axis(places_QS, best_QC, 1)

    def _nearest_cells(self, queries_QD: Floats) -> tuple[NDArray[np.int64], Floats]:
        """The cells to look into, (Q,P), and the queries' inner products with their centroids."""
        part = min(MOST_PROBED, PROBED * (1e6 / max(1, self.count)) ** 0.6)
        probes = max(1, round(part * self.cells))
        scores_QC = queries_QD @ self.centroids_CD.T
        nearest_QP = np.argpartition(-scores_QC, probes - 1, axis=1)[:, :probes]
        return nearest_QP, np.take_along_axis(scores_QC, nearest_QP, 1)

    @property
    def centroids_CD(self) -> Floats:
        """The centroids; not copied."""
        import faiss

        quantizer = faiss.downcast_index(self.ivf.quantizer)
        centroids_CD: Floats = faiss.rev_swig_ptr(quantizer.get_xb(), self.cells * self.ivf.d).reshape(self.cells, -1)
        return centroids_CD

    def to_bytes(self) -> NDArray[np.uint8]:
        """For `load_cells`."""
        import faiss

        data: NDArray[np.uint8] = faiss.serialize_index(self.ivf)
        return data


def load_cells(data: NDArray[np.uint8]) -> Cells:
    """What `to_bytes` gave; only for bytes whose hash has been checked, as FAISS trusts them."""
    import faiss

    return Cells(faiss.deserialize_index(data))


def build_cells(
    sample_ND: Floats,
    chunks: Callable[[], Iterator[tuple[Floats, NDArray[np.int64]]]],
    count: int,
    *,
    pause: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> Cells:
    """Cells for about `count` vectors.

    sample_ND: some of the vectors, in random order. chunks: all of them with their places. pause: called between
    pieces of work; what it raises ends the building.
    """
    import faiss

    width = sample_ND.shape[1]
    centroids_CD = _centroids(sample_ND, cells_for(count), pause, seed)
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centroids_CD)
    ivf = faiss.IndexIVFPQFastScan(quantizer, width, len(centroids_CD), _parts(width), BITS, faiss.METRIC_INNER_PRODUCT)
    quantizer.this.disown()
    ivf.own_fields = True
    ivf.train(sample_ND[:TRAINED])
    cells = Cells(ivf)
    for vectors_ND, places_N in chunks():
        pause()
        cells.add(vectors_ND, places_N)
    return cells


def cells_for(count: int) -> int:
    """How many cells that many vectors are worth: about four times the square root, a power of two."""
    return int(2 ** round(np.log2(max(16.0, 4 * np.sqrt(count)))))


def _parts(width: int) -> int:
    """Into how many parts a vector is cut to be coded: each of three numbers or the next size that divides it."""
    return width // next(size for size in range(min(3, width), width + 1) if width % size == 0)


def _centroids(sample_ND: Floats, cells: int, pause: Callable[[], None], seed: int) -> Floats:
    """Centroids by spherical k-means; as long as the sample's vectors are on average."""
    import faiss

    cells = min(cells, len(sample_ND))
    draw = np.random.default_rng(seed)
    length = float(np.linalg.norm(sample_ND, axis=1).mean())
    centroids_CD = sample_ND[draw.choice(len(sample_ND), cells, replace=False)]
    for _ in range(ROUNDS):
        centroids_CD = centroids_CD * (length / np.maximum(np.linalg.norm(centroids_CD, axis=1), 1e-30))[:, None]
        nearest = faiss.IndexFlatIP(sample_ND.shape[1])
        nearest.add(centroids_CD)
        owners = []
        for start in range(0, len(sample_ND), CHUNK):
            pause()
            owners.append(nearest.search(sample_ND[start : start + CHUNK], 1)[1][:, 0])
        centroids_CD = _means(sample_ND, np.concatenate(owners), cells, draw)
    return np.ascontiguousarray(centroids_CD, np.float32)


def _means(sample_ND: Floats, owners_N: NDArray[np.int64], cells: int, draw: np.random.Generator) -> Floats:
    """The mean of each cell's vectors; an empty cell gets some vector."""
    order = np.argsort(owners_N, kind="stable")
    used, starts = np.unique(owners_N[order], return_index=True)
    means_CD = sample_ND[draw.integers(0, len(sample_ND), cells)]
    means_CD[used] = np.add.reduceat(sample_ND[order], starts) / np.diff(starts, append=len(order))[:, None]
    return means_CD
