"""Exact search for the rows nearest to each query: a narrow scan finds groups, float32 decides, a bound proves it.

The scan keeps only the largest score of every group of `GROUP` rows, so all scores are never held at once. Each row of
the true top k lies in a group whose largest score is among the k largest; as the scan is rounded, more groups are
fetched, their rows are scored in float32, and a bound on the rounding says whether a group left out could have
mattered. Where it could, that query is searched again without rounding.

Letters: Q queries, N rows, D width, G groups, F fetched groups, M found.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ExactRows", "ExactSearch", "exact_topk", "prepare_rows"]

GROUP = 16
"""Rows of a group."""

SPARE = 16
"""Groups fetched beyond k."""

LARGEST_FUSED = 128
TILE = 128
"""Largest k that the kernels take, and rows that they need for each of them; as in `exact_triton`."""

REPLAYED_BYTES = 1 << 26
"""Group maxima up to which a search is launched as one graph: with more, the scan outlasts the launches."""

SHAPES = 8
"""Graphs that an `ExactSearch` keeps."""

SCAN_BYTES = 1 << 29
"""Largest scores of groups held at once; more queries than these allow are searched in turns."""

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class ExactRows:
    """Rows ready to be searched.

    rows_ND: float32. narrow_ND: the same over `scale`, the largest norm (1 where all are zero), in the scan's type.
    """

    rows_ND: Tensor
    narrow_ND: Tensor
    scale: float

    @property
    def slack(self) -> float:
        """How far a scanned score may lie from the true one, for a query of norm 1 and in units of `scale`.

        Rounding both factors moves a product by 2u + u² of it at most (Cauchy and Schwarz bound their sum), float16
        adds half its smallest step to each element, and float32 sums of D products are off by D · 2^-23.
        """
        unit, width = UNIT_ROUNDOFF[self.narrow_ND.dtype], self.narrow_ND.shape[1]
        smallest = 2.0**-25 * width**0.5 * 2 if self.narrow_ND.dtype == torch.float16 else 0.0
        return 2 * unit + unit**2 + smallest + width * 2.0**-23


def prepare_rows(rows_ND: Tensor, narrow: torch.dtype | None = None) -> ExactRows:
    """The rows with the copy that scans read: float16 on CUDA unless `narrow` says otherwise, float32 on a CPU."""
    rows_ND = rows_ND.detach().float().contiguous()
    if narrow is None:
        narrow = torch.float16 if rows_ND.is_cuda else torch.float32
    largest = float(torch.linalg.vector_norm(rows_ND, dim=1).amax()) if len(rows_ND) else 0.0
    scale = largest if largest > 0 else 1.0
    narrow_ND = rows_ND if narrow == torch.float32 and scale == 1.0 else torch.empty_like(rows_ND, dtype=narrow)
    for start in range(0, len(rows_ND) if narrow_ND is not rows_ND else 0, 1 << 20):
        part = slice(start, start + (1 << 20))
        narrow_ND[part] = rows_ND[part] / scale
    return ExactRows(rows_ND, narrow_ND, scale)


def exact_topk(
    queries_QD: Tensor, vectors_ND: Tensor | ExactRows, k: int, *, block: int = 1 << 16
) -> tuple[Tensor, Tensor]:
    """The min(k, N) rows of largest inner product with each query: scores_QM float32 and rows_QM int64.

    Best first, the lower row first at equal scores, which are those of float32. Inputs are finite and on one device;
    no gradient is taken. block: rows whose scores are held at once where no kernel scans them. `prepare_rows` once
    where the same rows are searched again.
    """
    rows = vectors_ND if isinstance(vectors_ND, ExactRows) else prepare_rows(vectors_ND)
    queries_QD = queries_QD.detach().float()
    k = min(k, len(rows.rows_ND))
    if k <= 0 or not len(queries_QD):
        found = queries_QD.new_empty(len(queries_QD), max(k, 0))
        return found, found.long()
    turn = max(1, SCAN_BYTES // (4 * -(-len(rows.rows_ND) // GROUP)))
    if len(queries_QD) <= turn:
        return _search(queries_QD, rows, k, block)
    parts = [_search(part_QD, rows, k, block) for part_QD in queries_QD.split(turn)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([found for _, found in parts])


class ExactSearch:
    """`exact_topk` over the same rows again and again; on CUDA a few queries are then one launch, of a captured graph.

    Rows must not be moved while it is used, by one thread at a time. A number of queries and a k are captured when they
    are met for the second time, at most `SHAPES` such pairs.
    """

    def __init__(self, vectors_ND: Tensor | ExactRows) -> None:
        self.rows = vectors_ND if isinstance(vectors_ND, ExactRows) else prepare_rows(vectors_ND)
        self._replays: dict[tuple[int, int], _Replay | None] = {}

    def __call__(self, queries_QD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `exact_topk`."""
        rows, shape = self.rows, (len(queries_QD), k)
        size = 4 * len(queries_QD) * (len(rows.rows_ND) // GROUP)
        if not _fused(rows, k) or not 0 < size <= REPLAYED_BYTES:
            return exact_topk(queries_QD, rows, k)
        if shape not in self._replays:
            if len(self._replays) < SHAPES:
                self._replays[shape] = None
            return exact_topk(queries_QD, rows, k)
        replay = self._replays[shape]
        if replay is None:
            replay = self._replays[shape] = _Replay(queries_QD, rows, k)
        return replay(queries_QD)


class _Replay:
    """A captured search of one number of queries and one k: the held queries, and where it leaves what it found.

    It proves what it found, and searches again where it cannot, on the device: nobody waits for it here.
    """

    def __init__(self, queries_QD: Tensor, rows: ExactRows, k: int) -> None:
        from cmrn.memory.exact_triton import search_rows, settle_rows

        self.queries_QD = queries_QD.detach().float().clone()

        def search() -> tuple[Tensor, Tensor]:
            found = search_rows(self.queries_QD, rows.rows_ND, rows.narrow_ND, k, rows.scale, rows.slack)
            settle_rows(self.queries_QD, rows.rows_ND, *found)
            return found[:2]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            search()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.scores_QM, self.found_QM = search()

    def __call__(self, queries_QD: Tensor) -> tuple[Tensor, Tensor]:
        self.queries_QD.copy_(queries_QD.detach())
        self.graph.replay()
        return self.scores_QM.clone(), self.found_QM.clone()


def _fused(rows: ExactRows, k: int) -> bool:
    """Whether the kernels take such a search: on CUDA, k neither too large nor too many for the rows."""
    return rows.rows_ND.is_cuda and 0 < k <= min(LARGEST_FUSED, len(rows.rows_ND) // TILE)


def _search(queries_QD: Tensor, rows: ExactRows, k: int, block: int) -> tuple[Tensor, Tensor]:
    """`exact_topk` of queries whose group maxima fit."""
    if not rows.rows_ND.is_cuda:
        return _settled(queries_QD, rows, *_search_blocks(queries_QD, rows, k, block), block)
    if not _fused(rows, k):
        return _brute(queries_QD, rows.rows_ND, k, block)
    from cmrn.memory.exact_triton import search_rows

    found = search_rows(queries_QD, rows.rows_ND, rows.narrow_ND, k, rows.scale, rows.slack)
    return _settled(queries_QD, rows, *found, block)


def _settled(
    queries_QD: Tensor, rows: ExactRows, scores_QM: Tensor, found_QM: Tensor, proved_Q: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """What was found, with every row scored for the queries of which it is not proved."""
    if not bool(proved_Q.all()):
        doubtful = (~proved_Q).nonzero()[:, 0]
        again = _brute(queries_QD[doubtful], rows.rows_ND, scores_QM.shape[1], block)
        scores_QM[doubtful], found_QM[doubtful] = again
    return scores_QM, found_QM


def _search_blocks(queries_QD: Tensor, rows: ExactRows, k: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k best rows of each query, and of which queries that is proved; without kernels."""
    norms_Q = torch.linalg.vector_norm(queries_QD, dim=1)
    narrow_QD = (queries_QD / norms_Q.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).to(rows.narrow_ND.dtype)
    maxima_QG = _scan(narrow_QD, rows.narrow_ND, block)
    fetched = min(k + SPARE, maxima_QG.shape[1])
    best_QF, groups_QF = maxima_QG.topk(min(fetched + 1, maxima_QG.shape[1]))
    scores_QM, found_QM = unpack(_score(queries_QD, rows.rows_ND, groups_QF[:, :fetched]).topk(k).values)
    proved_Q = scores_QM[:, -1] > (best_QF[:, -1] + rows.slack) * (norms_Q * rows.scale)
    return scores_QM, found_QM, proved_Q | (fetched == maxima_QG.shape[1])


def _scan(narrow_QD: Tensor, narrow_ND: Tensor, block: int) -> Tensor:
    """The largest score of every `GROUP` rows, float32 (Q,G)."""
    parts = []
    step = max(1, block // GROUP) * GROUP
    for start in range(0, len(narrow_ND), step):
        scores = narrow_QD.float() @ narrow_ND[start : start + step].float().T
        scores = F.pad(scores, (0, -scores.shape[1] % GROUP), value=-torch.inf)
        parts.append(scores.unflatten(1, (-1, GROUP)).amax(2))
    return torch.cat(parts, 1)


def _score(queries_QD: Tensor, rows_ND: Tensor, groups_QF: Tensor) -> Tensor:
    """Keys of the rows of the fetched groups by float32 score, (Q, F · GROUP)."""
    found = (groups_QF[..., None] * GROUP + torch.arange(GROUP)).flatten(1)
    keys = torch.empty(found.shape, dtype=torch.int64)
    for query, rows in enumerate(found.clamp(max=len(rows_ND) - 1)):
        keys[query] = pack(rows_ND[rows] @ queries_QD[query], rows)
    return keys.masked_fill(found >= len(rows_ND), torch.iinfo(torch.int64).min)


def _brute(queries_QD: Tensor, rows_ND: Tensor, k: int, block: int) -> tuple[Tensor, Tensor]:
    """The same by scoring every row, block after block, in float64 on CUDA where float32 may be cut to TensorFloat."""
    wide = torch.float64 if rows_ND.is_cuda else torch.float32
    best: Tensor | None = None
    for start in range(0, len(rows_ND), block):
        part_ND = rows_ND[start : start + block]
        scores = (queries_QD.to(wide) @ part_ND.to(wide).T).float()
        keys = pack(scores, torch.arange(start, start + len(part_ND), device=rows_ND.device))
        keys = keys if best is None else torch.cat([best, keys], 1)
        best = keys.topk(min(k, keys.shape[1])).values
    assert best is not None
    return unpack(best)


def pack(scores: Tensor, rows: Tensor) -> Tensor:
    """One integer of each score and row, ordered by score and then the lower row first; rows below 2^31 - 1."""
    bits = (scores + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.long() << 32) | (0x7FFFFFFF - rows)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and rows that `pack` made the keys of."""
    ordered = (keys >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), 0x7FFFFFFF - (keys & 0xFFFFFFFF)
