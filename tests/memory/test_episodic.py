"""The episodic memory: what stays, what leaves, what is read of it, and that a folder gives it back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.errors import CheckpointError, UsageError
from cmrn.memory import EpisodicMemory
from cmrn.memory.entries import BlockEntries, Entries

HEADS, WIDTH = 2, 3


def config(**changes: object) -> CMRNConfig:
    fields = {"d_model": 8, "memory_dim": HEADS * WIDTH, "memory_heads": HEADS, "num_blocks": 3,
              "memory_blocks": (0, 2), "working_memory": 4, "episodic_memory": 12, "episodic_chunk": 4,
              "episodic_keep": 2, "num_experts": 2}  # fmt: skip
    return CMRNConfig.model_validate(fields | changes)


def entries(salience: list[list[float]], when: int = 0) -> Entries:
    """Entries whose keys say which row and token they are of."""
    salience_BN = torch.tensor(salience, dtype=torch.float32)
    rows, count = salience_BN.shape
    place_BN = torch.arange(when, when + count).expand(rows, count)
    number = (100 * torch.arange(rows)[:, None] + place_BN).float()
    keys = number[:, None, :, None].expand(rows, HEADS, count, WIDTH)
    zero = torch.zeros_like(place_BN)
    return Entries(keys, -keys, salience_BN, place_BN, zero, place_BN, zero, zero - 1)


def write(memory: EpisodicMemory, length: int, rows: int = 1, seed: int = 0, **begin: object) -> None:
    """As a model does that reads `length` tokens of a new document."""
    random = torch.Generator().manual_seed(seed)
    if begin:
        memory.begin(**begin)  # type: ignore[arg-type]
    memory.read_on(rows, None)
    for piece in memory.pieces(length):
        size = piece.stop - piece.start
        for index in memory.blocks:
            keys, values = (torch.randn(rows, HEADS, size, WIDTH, generator=random) for _ in range(2))
            memory.write(index, keys, values, -torch.rand(rows, size, generator=random), piece.start)
    memory.advance(length)


@given(
    chunks=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=9),
    capacity=st.integers(4, 9),
    keep=st.integers(1, 4),
)
def test_the_most_salient_stay_and_the_others_leave(chunks: list[list[int]], capacity: int, keep: int) -> None:
    block, when, left = BlockEntries(capacity, 5, keep), 0, []
    kept: list[tuple[int, int]] = []
    for chunk in chunks:
        gone = block.put(entries([[-float(each) for each in chunk]], when), 0.0, when)
        left += [] if gone is None else gone.place_BN[0].tolist()
        share = -(-keep * len(chunk) // 5)
        best = sorted(((-each, -when - i) for i, each in enumerate(chunk)), reverse=True)[:share]
        kept = sorted(kept + best, reverse=True)[:capacity]
        when += len(chunk)
    held = block.entries()
    assert sorted(held.salience_BN[0].tolist()) == sorted(float(each) for each, _ in kept)
    places = held.place_BN[0].tolist()
    assert sorted(places + left) == list(range(when))
    assert block.lost == len(left)
    assert torch.equal(held.keys_BHNC[0, 1, :, 2], held.place_BN[0].float())
    assert torch.equal(held.values_BHNC, -held.keys_BHNC)


def test_rows_keep_their_own() -> None:
    block = BlockEntries(3, 3, 3)
    block.put(entries([[-1.0, -2.0, -3.0], [-3.0, -2.0, -1.0]]), 0.0, 0)
    block.put(entries([[-9.0, -9.0, -2.5], [-2.5, -0.5, -9.0]], 3), 0.0, 3)
    held = block.entries()
    assert [sorted(row) for row in held.place_BN.tolist()] == [[0, 1, 5], [1, 2, 4]]
    assert held.keys_BHNC[1, 0, :, 0].tolist() == [100.0 + place for place in held.place_BN[1].tolist()]


def test_old_entries_fade() -> None:
    for fade, expected in ((0.0, [0, 1, 2]), (1.0, [9, 10, 11])):
        block = BlockEntries(3, 3, 3)
        block.put(entries([[-1.0, -1.0, -1.0]]), fade, 3)
        block.put(entries([[-2.0, -2.0, -2.0]], 9), fade, 12)
        assert sorted(block.entries().place_BN[0].tolist()) == expected


@pytest.mark.parametrize("lengths", [[11], [4, 4, 3], [1, 2, 3, 4, 1], [7, 4]])
def test_chunks_lie_on_the_documents_grid(lengths: list[int]) -> None:
    memory, place = EpisodicMemory(config()), None
    for length in lengths:
        memory.read_on(1, place)
        for piece in memory.pieces(length):
            salience = -torch.arange(memory.place + piece.start, memory.place + piece.stop).float()[None]
            keys = torch.zeros(1, HEADS, piece.stop - piece.start, WIDTH)
            for index in memory.blocks:
                memory.write(index, keys, keys, salience, piece.start)
        memory.advance(length)
        place = memory.place
    assert memory.entries(0).place_BN.tolist() == [[0, 1, 4, 5]]
    assert memory.waiting == 3
    memory.flush()
    assert memory.entries(2).place_BN.tolist() == [[0, 1, 4, 5, 8, 9]]
    assert memory.waiting == 0


def test_documents_lie_a_window_apart() -> None:
    memory = EpisodicMemory(config())
    write(memory, 4)
    write(memory, 4)
    assert memory.tokens == 8
    held = memory.entries(0)
    assert held.document_BN.tolist() == [[0, 0, 1, 1]]
    gap = held.when_BN[0, 2] - held.place_BN[0, 2] - 4
    assert gap == memory.config.working_memory


def test_namespaces_and_records_go_with_entries() -> None:
    memory = EpisodicMemory(config())
    write(memory, 4, namespace="law", record=7)
    write(memory, 4)
    held = memory.entries(0)
    assert [memory.namespaces[i] for i in held.namespace_BN[0]] == ["law", "law", "shared", "shared"]
    assert held.record_BN.tolist() == [[7, 7, -1, -1]]
    assert memory.may_read(held).tolist() == [[True] * 4]
    memory.readable = frozenset({"other"})
    assert memory.may_read(held).tolist() == [[False, False, True, True]]
    memory.readable = frozenset({"law"})
    assert memory.may_read(held).all()


def test_what_leaves_is_handed_on() -> None:
    memory, gone = EpisodicMemory(config(episodic_memory=4)), []
    memory.evicted = lambda index, left: gone.append((index, left))
    write(memory, 20)
    assert len(memory) == 2 * 4
    for index in memory.blocks:
        left = [place for block, part in gone if block == index for place in part.place_BN[0].tolist()]
        assert sorted(left + memory.entries(index).place_BN[0].tolist()) == list(range(20))
    stats = memory.stats()
    assert (stats.entries, stats.capacity, stats.tokens, stats.documents, stats.evicted) == (8, 8, 20, 1, 32)
    assert stats.bytes > 0


def test_search_is_exact() -> None:
    memory = EpisodicMemory(config(episodic_keep=4))
    write(memory, 12, rows=2)
    q_BTHC = torch.randn(2, 5, HEADS, WIDTH)
    hits = memory.search(2, q_BTHC, 3)
    scores = torch.einsum("bthc,bhnc->bthn", q_BTHC, memory.entries(2).keys_BHNC)
    expected = scores.topk(3)
    torch.testing.assert_close(hits.scores_BTHM, expected.values)
    assert torch.equal(hits.slots_BTHM, expected.indices)


def test_reset_forgets() -> None:
    memory = EpisodicMemory(config())
    write(memory, 9, namespace="law")
    memory.reset()
    assert (len(memory), memory.tokens, memory.waiting, memory.namespaces) == (0, 0, 0, ["shared"])
    with pytest.raises(UsageError, match="block 0 holds no entries"):
        memory.entries(0)


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="no long-term memory"):
        EpisodicMemory(config(episodic_memory=0))
    memory = EpisodicMemory(config())
    write(memory, 4, rows=2)
    with pytest.raises(UsageError, match="what 2 rows read, and this call has 3"):
        memory.read_on(3, None)
    with pytest.raises(UsageError, match="memory blocks are"):
        memory.entries(1)


def tables(memory: EpisodicMemory) -> list[Tensor]:
    return [column for index in sorted(memory.blocks) for column in vars(memory.entries(index)).values()]


@pytest.mark.parametrize("length", [8, 10, 40])
def test_a_folder_gives_it_back(tmp_path: Path, length: int) -> None:
    memory = EpisodicMemory(config())
    write(memory, length, rows=2, namespace="law", record=3)
    memory.save(tmp_path / "memory")
    other = EpisodicMemory(config())
    write(other, 4)
    other.load(tmp_path / "memory")
    assert other.bookkeeping() == memory.bookkeeping()
    assert other.stats() == memory.stats()
    for each in (memory, other):
        each.read_on(2, length)
        for piece in each.pieces(6):
            keys = torch.ones(2, HEADS, piece.stop - piece.start, WIDTH)
            for index in each.blocks:
                each.write(index, keys, keys, -keys[:, 0, :, 0], piece.start)
        each.advance(6)
    assert all(torch.equal(a, b) for a, b in zip(tables(other), tables(memory), strict=True))


def test_an_empty_memory_is_saved_too(tmp_path: Path) -> None:
    EpisodicMemory(config()).save(tmp_path / "memory")
    memory = EpisodicMemory(config())
    write(memory, 4)
    memory.load(tmp_path / "memory")
    assert len(memory) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_dim": 8}, "with memory_dim 6, and this one has 8"),
        ({"episodic_chunk": 8}, "with episodic_chunk 4"),
        ({"memory_blocks": (0, 1)}, "memory_blocks"),
        ({"episodic_memory": 4}, "holds 8 entries a row, and this model's memory 4"),
    ],
)
def test_another_models_memory_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    memory, other = EpisodicMemory(config()), EpisodicMemory(config(**changes))
    write(memory, 16)
    memory.save(tmp_path / "memory")
    with pytest.raises(CheckpointError, match=message):
        other.load(tmp_path / "memory")
    assert len(other) == 0


def test_damage_is_found(tmp_path: Path) -> None:
    memory = EpisodicMemory(config())
    write(memory, 16)
    memory.save(tmp_path / "memory")
    path = tmp_path / "memory" / "entries.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    held = tables(memory)
    with pytest.raises(CheckpointError, match="corrupt"):
        memory.load(tmp_path / "memory")
    assert all(torch.equal(a, b) for a, b in zip(tables(memory), held, strict=True))
    with pytest.raises(CheckpointError, match="is not a folder"):
        memory.load(tmp_path / "nothing")


def rewritten(folder: Path, changes: dict[str, object]) -> None:
    """The folder with another document, and a manifest that vouches for it."""
    from cmrn.files import write_folder

    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    document = json.loads(files["memory.json"]) | changes
    with write_folder(folder) as temporary:
        (temporary / "memory.json").write_text(json.dumps(document))
        (temporary / "entries.safetensors").write_bytes(files["entries.safetensors"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 2}, "are not the columns of a table"),
        ({"namespaces": ["law"]}, "namespaces do not fit"),
        ({"namespaces": "shared"}, "namespaces"),
        ({"clock": -1}, "clock"),
        ({"format": 9}, "format 9"),
        ({"other": 1}, "other"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    memory = EpisodicMemory(config())
    write(memory, 10)
    memory.save(tmp_path / "memory")
    rewritten(tmp_path / "memory", changes)
    with pytest.raises(CheckpointError, match=message):
        EpisodicMemory(config()).load(tmp_path / "memory")
