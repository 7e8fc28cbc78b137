from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from cmrn.errors import UsageError
from cmrn.inference.recall_following import ORDERS, STRENGTHS, Following, Strength, contexts

VOCABULARY = 7


def texts(count: int = 6, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randrange(12))] for _ in range(count)]


def counted(all_texts: list[list[int]], before: list[int], token: int) -> tuple[int, int, int]:
    """(N, C, T) by looking through every text; before: newest first, 0 for none, else the token plus one."""
    followers = []
    for text in all_texts:
        for place, follower in enumerate(text):
            seen = [text[place - back] + 1 if place >= back else 0 for back in range(1, len(before) + 1)]
            if seen == before:
                followers.append(follower)
    return len(followers), followers.count(token), len(set(followers))


def all_counts(following: Following, before: Tensor, ids: Tensor) -> list[list[int]]:
    return [torch.stack(list(one)).T.tolist() for one in following.counts(before, ids)]


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_looking_through_every_text(seed: int) -> None:
    stored, read = texts(8, seed), [token for text in texts(3, seed + 50) for token in text]
    following = Following.of(stored, VOCABULARY)
    ids = torch.tensor([read])
    before = contexts(ids, torch.zeros_like(ids))[0]
    found = all_counts(following, before, ids[0])
    assert following.orders == ORDERS
    for order in range(1, ORDERS + 1):
        wanted = [counted(stored, before[place, :order].tolist(), token) for place, token in enumerate(read)]
        assert [tuple(row) for row in found[order - 1]] == wanted


@pytest.mark.parametrize(("vocabulary", "orders"), [(258, 3), (65_535, 3), (65_536, 2), (3_000_000, 1)])
def test_largest_tokens_are_counted_whatever_the_vocabulary(vocabulary: int, orders: int) -> None:
    last = vocabulary - 1
    following = Following.of([[last, last, last, last, 0], [0, last]], vocabulary)
    before = contexts(torch.full((1, 5), last), torch.zeros(1, 5, dtype=torch.int64))[0, -1:]
    found = all_counts(following, before, torch.tensor([last]))
    assert following.orders == orders
    assert found[0] == [[4, 3, 2]]
    assert [row[0][0] for row in found[1:]] == [3, 2][: orders - 1]


def test_a_vocabulary_too_large_is_refused() -> None:
    with pytest.raises(UsageError, match="too large"):
        Following.of([[1]], 2**33)


def test_a_memory_of_nothing_counts_nothing() -> None:
    for stored in ([], [[]]):
        found = Following.of(stored, VOCABULARY).counts(torch.ones(4, 3, dtype=torch.int64), torch.arange(4))
        assert all(int(each.sum()) == 0 for one in found for each in one)


def test_contexts_end_where_the_document_begins() -> None:
    ids, documents = torch.tensor([[4, 5, 6, 4, 5]]), torch.tensor([[0, 0, 0, 1, 1]])
    assert contexts(ids, documents).tolist() == [[[0, 0, 0], [5, 0, 0], [6, 5, 0], [0, 0, 0], [5, 0, 0]]]


def one_strength(strength: int) -> Strength:
    """All shares on one of the strengths."""
    fixed = Strength()
    fixed._worth_S = torch.full((len(STRENGTHS) + 1,), -torch.inf, dtype=torch.float64)
    fixed._worth_S[strength] = 0.0
    return fixed


@pytest.mark.parametrize("strength", range(len(STRENGTHS) + 1))
def test_probabilities_sum_to_one(strength: int) -> None:
    following = Following.of(texts(20), VOCABULARY)
    model = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)).softmax(0)
    every = torch.arange(VOCABULARY)
    for before in ([1, 1, 1], [3, 4, 2], [5, 0, 0], [0, 0, 0]):
        counts = following.counts(torch.tensor([before]).expand(VOCABULARY, -1), every)
        nats = one_strength(strength).nats(-model.log(), counts)
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-6)


def test_blend_is_the_equation() -> None:
    following = Following.of([[2, 3], [2, 3], [2, 4]], VOCABULARY)
    counts = following.counts(torch.tensor([[3, 0, 0]]), torch.tensor([3]))
    nats = one_strength(1).nats(-torch.tensor([0.1]).log(), counts)
    wanted = 0.1
    for _ in range(3):
        wanted = (2 + STRENGTHS[1] * 2 * wanted) / (3 + STRENGTHS[1] * 2)
    assert math.exp(-float(nats)) == pytest.approx(wanted)


def test_memory_that_misleads_soon_counts_for_nothing() -> None:
    following = Following.of([[2, 3] * 500], VOCABULARY)
    ids = torch.tensor([[2, 4] * 200])
    counts = following.counts(contexts(ids, torch.zeros_like(ids))[0], ids[0])
    model, strength = torch.full((400,), 0.5), Strength()
    first, second = (strength.nats(model, counts).mean() for _ in range(2))
    assert second < first
    assert float(second) == pytest.approx(0.5, abs=0.05)


def test_shares_follow_only_what_was_read_before() -> None:
    following = Following.of(texts(20), VOCABULARY)
    ids = torch.tensor([texts(1, 9)[0] * 3])
    counts = following.counts(contexts(ids, torch.zeros_like(ids))[0], ids[0])
    model = torch.rand(len(ids[0]), generator=torch.Generator().manual_seed(2)) + 0.5
    changed = model.clone()
    changed[-1] += 5
    assert torch.equal(Strength().nats(model, counts)[:-1], Strength().nats(changed, counts)[:-1])
