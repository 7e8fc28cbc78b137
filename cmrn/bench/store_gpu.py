"""`cmrn bench store --case gpu-search`: exact search on a GPU beside a matrix product and topk of all scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.bench.report import Progress, Row
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.bench.timing import time_interleaved
from cmrn.memory.exact import ExactSearch, prepare_rows

__all__ = ["gpu_search"]

WIDTH = 384
K = 32
NEAR = 1e-6
PART = 1 << 20


@dataclass(frozen=True)
class _Size:
    """Rows and queries, and the most milliseconds that a search may take on an H200."""

    rows: int
    queries: int
    most_ms: float


SIZES = (_Size(1_000_000, 64, 0.35), _Size(1_000_000, 1024, 3.0), _Size(10_000_000, 64, 3.3))


def gpu_search(options: StoreOptions, progress: Progress) -> Findings:
    """The 32 nearest of each query, exactly: scores may differ by 1e-6 from the largest of all."""
    found = Findings()
    if not (options.device or "cuda").startswith("cuda") or not torch.cuda.is_available():
        found.notes.append("no CUDA device")
        return found
    generator = torch.Generator("cuda").manual_seed(options.seed)
    for rows in sorted({size.rows for size in SIZES}):
        progress(f"{rows} rows")
        search = ExactSearch(prepare_rows(_unit(rows, generator)))
        for size in SIZES:
            if size.rows == rows:
                _measure(found, size, search, _unit(size.queries, generator))
        del search
    return found


def _measure(found: Findings, size: _Size, search: ExactSearch, queries_QD: Tensor) -> None:
    narrow_QD = queries_QD.half()
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: search(queries_QD, K),
        "matmul + topk": lambda: (narrow_QD @ search.rows.narrow_ND.T).topk(K),
    }
    times = time_interleaved(calls, "cuda", repeats=10)
    name = f"{size.rows} rows, {size.queries} queries"
    ours, peer = (times[call].median * 1e3 for call in calls)
    found.rows.append(Row(name, ours, "ms", peer="matmul + topk", peer_value=peer, spread=times["ours"].spread * 1e3))
    if torch.cuda.get_device_name().startswith("NVIDIA H200") and ours > size.most_ms:
        found.fail(name, [f"{ours:.3f} ms, where {size.most_ms} ms is the most"])
    found.count(f"{name}: largest difference in score", _difference(search, queries_QD), limit=NEAR)


def _difference(search: ExactSearch, queries_QD: Tensor) -> float:
    """How far the scores found lie from the largest of all float32 scores, and of the rows found from their own."""
    scores_QK, rows_QK = search(queries_QD, K)
    own_QK = torch.einsum("qd,qkd->qk", queries_QD.double(), search.rows.rows_ND[rows_QK].double())
    best: Tensor | None = None
    for part_ND in search.rows.rows_ND.split(PART):
        scores = (queries_QD.double() @ part_ND.double().T).topk(K).values
        best = scores if best is None else torch.cat([best, scores], 1).topk(K).values
    assert best is not None
    return float(torch.maximum((scores_QK - best).abs(), (own_QK - best).abs()).max())


def _unit(count: int, generator: torch.Generator) -> Tensor:
    rows_ND = torch.empty(count, WIDTH, device="cuda")
    for part_ND in rows_ND.split(PART):
        part_ND.copy_(F.normalize(torch.randn(part_ND.shape, device="cuda", generator=generator), dim=1))
    return rows_ND
