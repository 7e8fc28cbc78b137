from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.routing.product_key import product_key_choice, tree_choice
from tests.tolerances import assert_close


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table(query_NR: Tensor, keys_2SR: Tensor) -> Tensor:
    """(N, S²) every expert's score."""
    first, second = query_NR.chunk(2, -1)
    return ((first @ keys_2SR[0].T)[:, :, None] + (second @ keys_2SR[1].T)[:, None, :]).flatten(1)


@given(count=st.integers(1, 9), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_product_keys_find_the_best_of_the_whole_table(count: int, k: int, seed: int) -> None:
    k = min(k, count * count)
    query_NR, keys_2SR = normal(7, 6, seed=seed), normal(2, count, 3, seed=seed + 100)
    indices_NK, scores_NK = product_key_choice(query_NR, keys_2SR, k)
    expected = table(query_NR, keys_2SR).topk(k, -1)
    assert torch.equal(indices_NK, expected.indices)
    assert_close(scores_NK, expected.values)


def test_product_keys_carry_gradient() -> None:
    leaves = (normal(3, 4).requires_grad_(), normal(2, 5, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda query, keys: product_key_choice(query, keys, 3)[1], leaves)


def leaf_scores(query_NR: Tensor, nodes_VR: Tensor, depth: int) -> Tensor:
    """(N, 2^depth) the sum of the scores along every path, by walking each."""
    scores = query_NR @ nodes_VR.T
    paths = []
    for leaf in range(2**depth):
        nodes = [2**level - 1 + (leaf >> (depth - level)) for level in range(depth + 1)]
        paths.append(scores[:, nodes].sum(-1))
    return torch.stack(paths, 1)


@pytest.mark.parametrize("depth", [0, 1, 3, 4])
def test_a_tree_searched_in_full_finds_the_best(depth: int) -> None:
    query_NR, nodes_VR = normal(6, 3), normal(2 ** (depth + 1) - 1, 3, seed=1)
    indices_NK, scores_NK = tree_choice(query_NR, nodes_VR, 2**depth)
    expected = leaf_scores(query_NR, nodes_VR, depth).sort(-1, descending=True)
    assert torch.equal(indices_NK, expected.indices)
    assert_close(scores_NK, expected.values)


def test_a_narrow_beam_scores_the_leaves_it_returns() -> None:
    query_NR, nodes_VR = normal(6, 3), normal(31, 3, seed=1)
    indices_NK, scores_NK = tree_choice(query_NR, nodes_VR, 2)
    assert_close(scores_NK, leaf_scores(query_NR, nodes_VR, 4).gather(1, indices_NK))
    assert (indices_NK[:, 0] != indices_NK[:, 1]).all()
