"""The plan made on the device against its definition; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close

pytest.importorskip("triton")

from cmrn.routing.dispatch_triton import Plan, block_rows, combine_rows, make_plan, sum_choices

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(1, 1, 1), (1, 6, 2), (37, 5, 2), (150, 3, 3), (300, 2, 1), (90, 40, 4)]
each_case = pytest.mark.parametrize(("tokens", "experts", "k"), CASES)


def distinct_choices(tokens: int, experts: int, k: int, seed: int = 0) -> Tensor:
    """(N,K) int64, each row's experts distinct; a skewed draw, so that some experts get little or nothing."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=random) + 2.0 * torch.rand(experts, generator=random)
    return scores.topk(k, -1).indices.to(DEVICE)


def check_plan(plan: Plan, indices_NK: Tensor, experts: int) -> None:
    """Every pair has a row of its own, among its expert's, in order; every other row is padding."""
    pair_M, place, flat = plan.pair_M.cpu(), plan.place_NK.flatten().cpu().long(), indices_NK.flatten().cpu()
    assert torch.equal(pair_M[place], torch.arange(len(flat), dtype=torch.int32))
    assert int((pair_M >= 0).sum()) == len(flat)
    owner_M = plan.expert_Q.cpu().repeat_interleave(plan.rows)
    assert torch.equal(owner_M[place].long(), flat)
    start_E = plan.start_E.cpu().long()
    for expert in range(experts):
        pairs = (flat == expert).nonzero()[:, 0]
        begin, end = int(start_E[expert]), int(start_E[expert + 1])
        assert end - begin == -(-len(pairs) // plan.rows) * plan.rows
        assert torch.equal(place[pairs], begin + torch.arange(len(pairs))), "tokens keep their order"
    assert (plan.expert_Q.cpu()[int(start_E[-1]) // plan.rows :] == -1).all()


@each_case
def test_plan(tokens: int, experts: int, k: int) -> None:
    indices_NK = distinct_choices(tokens, experts, k)
    check_plan(make_plan(indices_NK, experts), indices_NK, experts)


@pytest.mark.parametrize(("tokens", "chosen"), [(64, 3), (5, 0)])
def test_plan_of_tokens_that_all_choose_one(tokens: int, chosen: int) -> None:
    indices_NK = torch.full((tokens, 1), chosen, device=DEVICE)
    check_plan(make_plan(indices_NK, 4), indices_NK, 4)


def test_blocks_are_enough_for_the_worst_split() -> None:
    indices_NK = torch.arange(65, device=DEVICE)[:, None].clamp(max=40) % 41
    plan = make_plan(indices_NK, 41)
    assert plan.rows == 16
    check_plan(plan, indices_NK, 41)
    assert block_rows(64, 2) == 128


@each_case
def test_sums_over_choices(tokens: int, experts: int, k: int) -> None:
    indices_NK = distinct_choices(tokens, experts, k)
    plan = make_plan(indices_NK, experts)
    random = torch.Generator().manual_seed(1)
    rows_MD = torch.randn(plan.pair_M.shape[0], 7, generator=random).to(DEVICE)
    parts_QM = torch.randn(3, rows_MD.shape[0], generator=random).to(DEVICE)
    rows_MD[plan.pair_M < 0] = torch.nan
    place_NK, kind_E = plan.place_NK.long(), torch.arange(experts, device=DEVICE, dtype=torch.int32) % 2
    assert_close(combine_rows(rows_MD, plan.place_NK), rows_MD[place_NK].sum(1))
    whole, nothing, dgates_NK = sum_choices(rows_MD, parts_QM, plan.place_NK, indices_NK, kind_E, None)
    assert nothing is None
    assert_close(whole, rows_MD[place_NK].sum(1))
    assert_close(dgates_NK, parts_QM[:, place_NK].sum(0))
    own, apart, _ = sum_choices(rows_MD, parts_QM, plan.place_NK, indices_NK, kind_E, 1)
    assert apart is not None
    odd_NK = (indices_NK % 2 == 1)[..., None]
    assert_close(own, (rows_MD[place_NK] * ~odd_NK).sum(1))
    assert_close(apart, (rows_MD[place_NK] * odd_NK).sum(1))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(("tokens", "experts", "k"), [(16_384, 16, 2), (32_768, 8, 3), (40_001, 64, 8)])
def test_plan_of_many_tokens(tokens: int, experts: int, k: int) -> None:
    indices_NK = distinct_choices(tokens, experts, k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = make_plan(indices_NK, experts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    check_plan(plan, indices_NK, experts)
