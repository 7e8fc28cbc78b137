"""The kernels of exact search against a sort of all scores, in Triton's interpreter where there is no device."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels need Triton")
from cmrn.memory import exact, exact_triton
from cmrn.memory.exact import ExactSearch, exact_topk, prepare_rows
from cmrn.memory.exact_triton import TILE, scan_rows, search_rows, settle_rows
from tests.memory.test_exact import DEVICE, assert_found, draw


@pytest.mark.parametrize(("rows", "width", "k"), [(300, 24, 2), (2200, 33, 1)])
def test_kernels_find_what_a_sort_of_all_scores_gives(rows: int, width: int, k: int) -> None:
    queries_QD, rows_ND = draw(rows, 2, width)
    ready = prepare_rows(rows_ND.to(DEVICE), torch.float16)
    *found, proved = search_rows(queries_QD.to(DEVICE), ready.rows_ND, ready.narrow_ND, k, ready.scale, ready.slack)
    assert bool(proved.all())
    assert_found(queries_QD, rows_ND, (found[0], found[1]), k)


@pytest.mark.parametrize(("rows", "queries", "width"), [(1, 1, 8), (200, 17, 40), (130, 130, 5)])
def test_the_scan_keeps_the_largest_score_of_each_group_and_tile(rows: int, queries: int, width: int) -> None:
    queries_QD, rows_ND = (part.half().to(DEVICE) for part in draw(rows, queries, width))
    groups_QG, tiles_QT = scan_rows(queries_QD, rows_ND)
    scores = queries_QD.float() @ rows_ND.float().T
    scores = F.pad(scores, (0, -rows % TILE), value=-torch.inf).unflatten(1, (-1, 16, TILE // 16))
    torch.testing.assert_close(groups_QG, scores.amax(2).flatten(1))
    torch.testing.assert_close(tiles_QT, scores.amax((2, 3)))


def test_what_cannot_be_proved_is_said_to_be_so() -> None:
    """Equal rows, of which the chosen tiles hold some only; and a query of zeros, to which all rows are equal."""
    rows_ND = torch.ones(128 * 20, 4, device=DEVICE)
    queries_QD = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]], device=DEVICE)
    ready = prepare_rows(rows_ND, torch.float16)
    proved = search_rows(queries_QD, ready.rows_ND, ready.narrow_ND, 2, ready.scale, ready.slack)[2]
    assert not bool(proved.any())


@pytest.mark.parametrize(("rows", "width", "k"), [(40, 12, 5), (70, 33, 20)])
def test_what_is_not_proved_is_settled_by_scoring_every_row(rows: int, width: int, k: int) -> None:
    """Half of the queries are marked as not proved, with nonsense as what was found; the others keep theirs."""
    queries_QD, rows_ND = draw(rows, 4, width)
    rows_ND[7] = rows_ND[3]
    scores_QK, found_QK = torch.full((4, k), 9.0, device=DEVICE), torch.full((4, k), -5, device=DEVICE)
    proved_Q = torch.tensor([True, False, False, True], device=DEVICE)
    settle_rows(queries_QD.to(DEVICE), rows_ND.to(DEVICE), scores_QK, found_QK, proved_Q)
    assert scores_QK[[0, 3]].eq(9.0).all()
    assert found_QK[[0, 3]].eq(-5).all()
    assert_found(queries_QD[1:3], rows_ND, (scores_QK[1:3], found_QK[1:3]), k)
    for found in found_QK[1:3].tolist():
        if 3 in found and 7 in found:
            assert found.index(3) + 1 == found.index(7)


def test_both_know_the_same_limits() -> None:
    assert exact.LARGEST_FUSED == exact_triton.LARGEST_K
    assert (exact.GROUP, exact.TILE) == (exact_triton.GROUP, exact_triton.TILE)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "queries", "width", "k"),
    [
        (100_003, 100, 384, 32),
        (70_001, 1, 768, 100),
        (200_000, 300, 384, 128),
        (5_000, 3, 384, 300),
        (30_000, 64, 100, 32),
    ],
)
def test_exact_search_at_real_sizes(rows: int, queries: int, width: int, k: int) -> None:
    queries_QD, rows_ND = draw(rows, queries, width)
    ready = prepare_rows(rows_ND.cuda())
    assert_found(queries_QD, rows_ND, exact_topk(queries_QD.cuda(), ready, k), k)
    search = ExactSearch(ready)
    for step in range(3):
        moved_QD = queries_QD + step
        assert_found(moved_QD, rows_ND, search(moved_QD.cuda(), k), k)


@pytest.mark.gpu
def test_equal_rows_come_in_order_on_a_gpu() -> None:
    rows_ND = torch.ones(10_000, 8, device="cuda")
    _, found = exact_topk(torch.ones(2, 8, device="cuda"), rows_ND, 20)
    assert found.tolist() == [list(range(20))] * 2
    search = ExactSearch(rows_ND)
    for _ in range(3):
        assert search(torch.ones(2, 8, device="cuda"), 20)[1].tolist() == [list(range(20))] * 2
