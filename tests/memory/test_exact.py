"""Exact search: the rows a sort of all scores would give, whatever the narrow scan rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.memory import exact
from cmrn.memory.exact import ExactSearch, exact_topk, pack, prepare_rows, unpack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(rows: int, queries: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    rows_ND = F.normalize(torch.randn(rows, width), dim=1)
    return torch.randn(queries, width), rows_ND


def definition(queries_QD: Tensor, rows_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_QN = (queries_QD.double() @ rows_ND.double().T).float()
    best = scores_QN.sort(dim=1, descending=True, stable=True)
    return best.values[:, :k], best.indices[:, :k]


def assert_found(queries_QD: Tensor, rows_ND: Tensor, found: tuple[Tensor, Tensor], k: int) -> None:
    """The right scores; and rows that differ from the definition's only where their scores are within 1e-6."""
    scores_QM, rows_QM = (each.cpu() for each in found)
    expected_QM, _ = definition(queries_QD, rows_ND, k)
    size = float(queries_QD.norm(dim=1).max() * rows_ND.norm(dim=1).max())
    assert scores_QM.shape == rows_QM.shape == expected_QM.shape
    torch.testing.assert_close(scores_QM, expected_QM, rtol=0, atol=1e-6 * size)
    own = torch.einsum("qd,qmd->qm", queries_QD.double(), rows_ND.double()[rows_QM]).float()
    torch.testing.assert_close(own, expected_QM, rtol=0, atol=1e-6 * size)
    assert all(len(set(row)) == len(row) for row in rows_QM.tolist())


@pytest.mark.parametrize("narrow", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "queries", "width", "k"), [(1, 2, 3, 1), (999, 5, 24, 7), (130, 3, 96, 130), (3000, 33, 16, 40)]
)
def test_it_finds_what_a_sort_of_all_scores_gives(
    rows: int, queries: int, width: int, k: int, narrow: torch.dtype
) -> None:
    queries_QD, rows_ND = draw(rows, queries, width)
    found = exact_topk(queries_QD, prepare_rows(rows_ND, narrow), k, block=256)
    assert_found(queries_QD, rows_ND, found, k)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 9), st.integers(0, 5))
def test_equal_scores_come_in_the_order_of_rows(rows: int, k: int, kinds: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows_ND = torch.randint(-1, 2, (kinds, 4)).float()[torch.randint(kinds, (rows,))]
    queries_QD = torch.randint(-2, 3, (3, 4)).float()
    scores_QM, rows_QM = exact_topk(queries_QD, prepare_rows(rows_ND, torch.bfloat16), k, block=16)
    expected, order = definition(queries_QD, rows_ND, k)
    assert torch.equal(scores_QM, expected)
    assert torch.equal(rows_QM, order)


def test_rows_too_near_for_the_narrow_type_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows lie within a bfloat16 step of each other, so only the search without rounding can order them."""
    calls = []
    brute = exact._brute
    monkeypatch.setattr(exact, "_brute", lambda *arguments: calls.append(1) or brute(*arguments))
    torch.manual_seed(0)
    rows_ND = F.normalize(torch.ones(2000, 32) + 1e-4 * torch.randn(2000, 32), dim=1)
    queries_QD = torch.randn(4, 32)
    found = exact_topk(queries_QD, prepare_rows(rows_ND, torch.bfloat16), 10)
    assert calls
    assert_found(queries_QD, rows_ND, found, 10)


def test_a_bound_is_proved_where_scores_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    queries_QD, rows_ND = draw(4000, 8, 64)
    monkeypatch.setattr(exact, "_brute", None)
    assert_found(queries_QD, rows_ND, exact_topk(queries_QD, prepare_rows(rows_ND, torch.float16), 10), 10)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_lengths_do_not_matter(size: float) -> None:
    queries_QD, rows_ND = draw(700, 4, 20)
    rows_ND = rows_ND * size * torch.linspace(1e-3, 1, 700)[:, None]
    assert_found(queries_QD, rows_ND, exact_topk(queries_QD, prepare_rows(rows_ND, torch.float16), 9), 9)


def test_no_rows_no_queries_and_queries_of_zeros() -> None:
    assert exact_topk(torch.ones(2, 3), torch.ones(0, 3), 4)[1].shape == (2, 0)
    assert exact_topk(torch.ones(0, 3), torch.ones(5, 3), 4)[1].shape == (0, 4)
    scores, rows = exact_topk(torch.zeros(1, 3), torch.ones(500, 3), 4)
    assert rows.tolist() == [[0, 1, 2, 3]]
    assert not scores.any()


def test_many_queries_are_searched_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    queries_QD, rows_ND = draw(300, 50, 8)
    monkeypatch.setattr(exact, "SCAN_BYTES", 4 * 19 * 7)
    assert_found(queries_QD, rows_ND, exact_topk(queries_QD, rows_ND, 5), 5)


def test_a_search_again_and_again_gives_the_same() -> None:
    queries_QD, rows_ND = draw(600, 3, 12)
    search = ExactSearch(rows_ND.to(DEVICE))
    for step in range(3):
        moved_QD = queries_QD + step
        assert_found(moved_QD, rows_ND, search(moved_QD.to(DEVICE), 6), 6)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_keys_order_as_scores_do_and_hold_them(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    rows = torch.arange(len(values))
    keys = pack(scores, rows)
    back, numbers = unpack(keys)
    assert torch.equal(back, scores + 0.0)
    assert torch.equal(numbers, rows)
    assert torch.equal(keys.sort(descending=True).indices, scores.sort(descending=True, stable=True).indices)
