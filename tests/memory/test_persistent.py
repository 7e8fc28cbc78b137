"""The memory that a model queries and writes: gradients, room made, near-duplicates, namespaces, durability."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.memory.entry import Fingerprint
from cmrn.memory.persistent import PersistentMemory
from cmrn.memory.store import MemoryStore


def unit(count: int, width: int = 8, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(count, width, dtype=torch.float64), dim=1)


def test_a_query_finds_the_largest_inner_products() -> None:
    memory = PersistentMemory(8)
    keys, values, queries = unit(200), unit(200, seed=1), unit(6, seed=2)
    records = memory.update(keys, values)
    hits = memory.query(queries.view(2, 3, 8), k=5)
    best = (queries @ keys.T).topk(5)
    assert hits.keys_MD.shape == hits.values_MD.shape == (2, 3, 5, 8)
    torch.testing.assert_close(hits.scores_M.view(6, 5), best.values)
    assert torch.equal(hits.records_M.view(6, 5), records[best.indices])
    assert torch.equal(hits.values_MD.view(6, 5, 8), values[best.indices])
    assert torch.equal(hits.keys_MD.view(6, 5, 8), keys[best.indices])


def test_gradient_reaches_queries_and_the_values_that_require_it() -> None:
    keys, queries = unit(20), unit(3, seed=2).requires_grad_()
    values = unit(20, seed=1).requires_grad_()

    def read(queries_QD: Tensor, values_ND: Tensor) -> Tensor:
        memory = PersistentMemory(8, update_rate=0.3)
        memory.update(keys[:10], values_ND[:10])
        memory.update(keys[10:], values_ND[10:])
        memory.update(keys[:4], values_ND[4:8] * 2)
        hits = memory.query(queries_QD, k=4)
        return torch.einsum("qm,qmd->qd", hits.scores_M.softmax(1), hits.values_MD)

    assert torch.autograd.gradcheck(read, (queries, values))


def test_values_without_gradient_and_detached_ones_carry_none() -> None:
    memory = PersistentMemory(8)
    values = unit(4, seed=1).requires_grad_()
    memory.update(unit(4), values)
    memory.update(unit(4, seed=3))
    assert memory.query(unit(1), k=8).values_MD.requires_grad
    memory.detach()
    hits = memory.query(unit(1), k=8)
    assert not hits.values_MD.requires_grad
    assert hits.values_MD.shape == (1, 8, 8)


def test_the_least_recently_used_makes_room() -> None:
    memory = PersistentMemory(8, max_size=4)
    keys = torch.eye(8)
    memory.update(keys[:4])
    memory.query(keys[0], k=1)
    records = memory.update(keys[4:6])
    assert records.tolist() == [5, 6]
    held = memory.query(torch.ones(8), k=9).records_M
    assert sorted(held.tolist()) == [1, 4, 5, 6]
    assert len(memory) == 4
    assert memory.update(torch.eye(8) * 2).tolist()[:1] == [1]
    assert len(memory) == 4


@given(st.integers(1, 6), st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_it_never_holds_more_than_its_size_nor_gives_a_number_twice(size: int, writes: list[int]) -> None:
    memory = PersistentMemory(8, max_size=size, update_rate=0.0)
    seen: dict[int, int] = {}
    for write in writes:
        [record] = memory.update(torch.eye(8)[[write]]).tolist()
        assert seen.setdefault(record, write) == write
        assert len(memory) <= size
        assert memory.query(torch.eye(8)[write], k=1).records_M.tolist() == [record]


def test_more_new_ones_than_fit_leave_the_last() -> None:
    memory = PersistentMemory(8, max_size=3)
    assert memory.update(torch.eye(8)).tolist() == [-1, -1, -1, -1, -1, 1, 2, 3]


def test_a_near_duplicate_is_blended() -> None:
    memory = PersistentMemory(2, update_rate=0.25)
    key = torch.tensor([[1.0, 0.0]])
    near = torch.tensor([[1.0, 0.02]])
    assert memory.update(key, key * 4).tolist() == [1]
    assert memory.update(near, key * 8).tolist() == [1]
    hits = memory.query(key[0], k=3)
    torch.testing.assert_close(hits.keys_MD, torch.tensor([[1.0, 0.005]]))
    torch.testing.assert_close(hits.values_MD, key * 5)
    assert memory.update(torch.tensor([[1.0, 0.2]])).tolist() == [2]
    assert memory.update(near, namespace="other").tolist() == [3]


def test_near_duplicates_within_one_write_are_blended_too() -> None:
    memory = PersistentMemory(2, update_rate=0.5)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    values = torch.tensor([[0.0, 0.0], [9.0, 9.0], [4.0, 4.0], [6.0, 6.0]])
    assert memory.update(keys, values).tolist() == [1, 2, 1, 1]
    assert memory.query(keys[0], k=1).values_MD.tolist() == [[4.0, 4.0]]


def test_namespaces_are_apart() -> None:
    memory = PersistentMemory(8)
    keys = unit(30).float()
    mine, other = memory.update(keys[:10], namespace="a"), memory.update(keys[10:], namespace="b")
    assert set(memory.query(keys[0], k=30, namespaces=["a"]).records_M.tolist()) == set(mine.tolist())
    assert set(memory.query(keys[0], k=30, namespaces=["b"]).records_M.tolist()) == set(other.tolist())
    assert memory.query(keys[0], k=3, namespaces=["c"]).records_M.shape == (0,)


def test_an_empty_memory_finds_nothing() -> None:
    memory = PersistentMemory(8)
    hits = memory.query(torch.ones(2, 3, 8), k=4)
    assert hits.keys_MD.shape == (2, 3, 0, 8)
    assert hits.scores_M.shape == (2, 3, 0)
    memory.update(unit(3))
    memory.reset()
    assert len(memory) == 0
    assert memory.update(unit(1).float()).tolist() == [4]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    memory = PersistentMemory(8)
    calls = [
        lambda: memory.query(torch.ones(7)),
        lambda: memory.query(torch.ones(8), k=0),
        lambda: memory.update(torch.ones(2, 8), torch.ones(1, 8)),
        lambda: memory.update(torch.ones(1, 8), texts=["a"]),
        lambda: memory.populate_from_text(["a"]),
        lambda: PersistentMemory(8, update_rate=2.0),
        lambda: PersistentMemory(8, max_size=0),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    with pytest.raises(DataError, match="finite"):
        memory.update(torch.tensor([[float("nan")] * 8]))
    assert len(memory) == 0


def test_a_durable_memory_outlives_its_process(tmp_path: Path) -> None:
    keys = unit(40).float()
    memory = PersistentMemory(8, 30, store=tmp_path / "store", update_rate=0.5)
    assert memory.query(keys[0]).records_M.shape == (0,)
    memory.update(keys[:20], texts=[f"text {place}" for place in range(20)], namespace="a")
    memory.update(keys[20:30])
    memory.query(keys[:5], k=1)
    memory.update(keys[30:35])
    assert len(memory) == 30
    assert memory.update(keys[0] * 2, namespace="a").item() == 1
    memory.close()
    memory = PersistentMemory(8, 30, store=tmp_path / "store")
    hits = memory.query(keys[0], k=1)
    assert hits.records_M.tolist() == [1]
    torch.testing.assert_close(hits.keys_MD, keys[:1] * 1.5)
    assert memory.query(keys[5], k=30).records_M.min() == 1
    assert 6 not in memory.query(keys[5], k=30).records_M
    memory.close()
    with MemoryStore.open(tmp_path / "store") as store:
        assert store.get([1])[0].text == "text 0"
        assert store.get([6]) == []


def test_durable_values_outlive_their_process_and_carry_gradient_within_it(tmp_path: Path) -> None:
    keys, values = unit(6).float(), unit(6, seed=1).float().requires_grad_()
    with torch.no_grad():
        constant = values.clone()
    memory = PersistentMemory(8, store=tmp_path / "store", update_rate=0.25)
    plain = PersistentMemory(8, update_rate=0.25)
    for each in (memory, plain):
        assert each.update(keys[:3], values[:3]).tolist() == [1, 2, 3]
        assert each.update(keys[3:5]).tolist() == [4, 5]
        assert each.update(keys[1:2] * 2, values[5:]).tolist() == [2]
        assert each.update(keys[3:4], values[4:5]).tolist() == [4]
    queries = keys.clone().requires_grad_()
    found, expected = memory.query(queries, k=5), plain.query(queries, k=5)
    for name in ("keys_MD", "values_MD", "scores_M", "records_M"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    wanted = torch.autograd.grad(expected.values_MD.square().sum(), values)[0]
    torch.testing.assert_close(torch.autograd.grad(found.values_MD.square().sum(), values)[0], wanted)
    memory.detach()
    assert not memory.query(keys, k=5).values_MD.requires_grad
    memory.close()
    again = PersistentMemory(8, store=tmp_path / "store")
    torch.testing.assert_close(again.query(keys, k=5).values_MD, expected.values_MD.detach())
    torch.testing.assert_close(again.query(keys[0], k=1).values_MD[0], constant[0])
    again.close()


@given(st.data())
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_a_durable_memory_gives_what_one_in_memory_gives(data: st.DataObject) -> None:
    """Writes of fresh keys, and of near-duplicates of old ones and of one another."""
    pool = torch.cat([unit(6, seed=3).float(), unit(6, seed=3).float() * 1.5])
    with tempfile.TemporaryDirectory() as name:
        memories = [PersistentMemory(8, update_rate=0.5), PersistentMemory(8, store=Path(name), update_rate=0.5)]
        for _ in range(data.draw(st.integers(1, 3))):
            chosen = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=8))
            values = None if data.draw(st.booleans()) else unit(len(chosen), seed=len(chosen)).float()
            spaces = data.draw(st.sampled_from(["a", "b"]))
            first, second = (each.update(pool[chosen], values, namespace=spaces) for each in memories)
            assert first.tolist() == second.tolist()
        hits = [each.query(pool[:6], k=3, namespaces=["a"]) for each in memories]
        torch.testing.assert_close(hits[0].scores_M, hits[1].scores_M)
        torch.testing.assert_close(hits[0].values_MD, hits[1].values_MD)
        memories[1].close()


def test_more_new_ones_than_fit_a_durable_memory_leave_the_last(tmp_path: Path) -> None:
    memory = PersistentMemory(8, max_size=3, store=tmp_path / "store")
    assert memory.update(torch.eye(8)).tolist() == [-1, -1, -1, -1, -1, 1, 2, 3]
    assert memory.query(torch.eye(8)[7], k=1).records_M.tolist() == [3]
    memory.close()


def test_what_a_durable_memory_cannot_keep_changes_nothing(tmp_path: Path) -> None:
    memory = PersistentMemory(8, store=tmp_path / "store")
    keys = unit(3).float()
    bad = [
        (torch.cat([keys[:1], torch.zeros(1, 8)]), None),
        (torch.cat([keys[:1], torch.full((1, 8), float("nan"))]), None),
        (keys, torch.full((3, 8), float("inf"))),
    ]
    for each, values in bad:
        with pytest.raises(DataError):
            memory.update(each, values)
        assert not (tmp_path / "store").exists()
    memory.update(keys, texts=["a", "b", "c"])
    before = memory.query(keys, k=3)
    for each, values in bad:
        with pytest.raises(DataError):
            memory.update(each * 3, values)
    torch.testing.assert_close(memory.query(keys, k=3).keys_MD, before.keys_MD)
    memory.close()


def test_a_text_written_again_has_its_new_key(tmp_path: Path) -> None:
    memory = PersistentMemory(8, store=tmp_path / "store")
    keys = torch.eye(8)
    assert memory.update(keys[:2], keys[2:4], texts=["a", "b"]).tolist() == [1, 2]
    assert memory.update(keys[4:5], keys[5:6], texts=["a"]).tolist() == [1]
    hits = memory.query(keys[4], k=1)
    assert (hits.records_M.tolist(), hits.values_MD.tolist()) == ([1], keys[5:6].tolist())
    assert len(memory) == 2
    memory.close()


def test_a_store_of_another_width_is_refused(tmp_path: Path) -> None:
    MemoryStore.create(tmp_path / "store", Fingerprint("none", dim=4)).close()
    with pytest.raises(CheckpointError, match="4 numbers"):
        PersistentMemory(8, store=tmp_path / "store")
    MemoryStore.open(tmp_path / "store", write=True).close()
