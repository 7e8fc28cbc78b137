from __future__ import annotations

import pytest
import torch

from cmrn import CMRN, CMRNConfig
from cmrn.errors import UsageError
from cmrn.inference.recall_archive import bring_back
from cmrn.memory.compression_archive import Archive
from cmrn.memory.compression_table import BLOCK
from cmrn.memory.entries import Entries
from cmrn.memory.episodic import EpisodicMemory

CONFIG = CMRNConfig(vocab_size=60, d_model=32, head_dim=16, num_blocks=2, temporal_layers=1, num_experts=2,
                    memory_dim=32, memory_heads=2, working_memory=8, episodic_memory=16, episodic_chunk=8,
                    gradient_checkpointing=False)  # fmt: skip
INDEX = CONFIG.reading_blocks[0]


def read_into(memory: EpisodicMemory, tokens: int, seed: int = 0) -> torch.Tensor:
    """Keys of `tokens` tokens written as a document reads, of falling salience."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.nn.functional.normalize(torch.randn(1, 2, tokens, 16, generator=draw), dim=-1)
    memory.read_on(1, None if not memory.tokens else memory.place)
    for begin in range(0, tokens, 8):
        part = keys[:, :, begin : begin + 8]
        rank = -torch.arange(memory.place, memory.place + part.shape[2])[None] / (tokens + 1)
        memory.write(INDEX, part, 2 * part, rank.float(), 0)
        memory.advance(part.shape[2])
    return keys


def test_what_leaves_the_memory_is_in_the_archive() -> None:
    memory = EpisodicMemory(CONFIG)
    archive = Archive(memory)
    read_into(memory, 80)
    assert len(memory) == 16
    assert len(archive) == 64
    held = set(memory.entries(INDEX).when_BN[0].tolist())
    archived = set(archive._shelves[INDEX].column(1).tolist())
    assert held | archived == set(range(80))
    assert not held & archived


def test_a_query_brings_back_the_entry_that_it_asks_for_and_the_least_salient_make_room() -> None:
    memory = EpisodicMemory(CONFIG)
    archive = Archive(memory)
    keys = read_into(memory, 80)
    wanted = 70
    assert archive.bring_back(INDEX, 20 * keys[:, :, wanted][:, None], most=1) == 1
    held = memory.entries(INDEX)
    assert wanted in held.when_BN[0].tolist()
    place = held.when_BN[0].tolist().index(wanted)
    torch.testing.assert_close(held.values_BHNC[0, :, place], 2 * keys[0, :, wanted], atol=0.05, rtol=0)
    assert int(held.place_BN[0, place]) == wanted
    assert len(memory) == 16
    assert 15 not in held.when_BN[0].tolist()
    assert 15 in archive._shelves[INDEX].column(1).tolist()
    count = len(archive)
    assert archive.bring_back(INDEX, 20 * keys[:, :, wanted][:, None], most=1) == 0
    assert archive.bring_back(INDEX, 20 * keys[:, :, wanted - 1][:, None], most=1) == 1
    assert {wanted, wanted - 1} & set(held.when_BN[0].tolist()) == {wanted - 1}
    assert len(archive) == count


def test_entries_of_namespaces_that_may_not_be_read_stay() -> None:
    memory = EpisodicMemory(CONFIG)
    archive = Archive(memory)
    memory.begin("law")
    keys = read_into(memory, 80)
    memory.readable = frozenset({"maths"})
    assert archive.bring_back(INDEX, 20 * keys[:, :, 70][:, None]) == 0
    memory.readable = frozenset({"law"})
    assert archive.bring_back(INDEX, 20 * keys[:, :, 70][:, None], most=1) == 1


def test_an_empty_archive_brings_nothing_back_and_clearing_forgets() -> None:
    memory = EpisodicMemory(CONFIG)
    archive = Archive(memory)
    keys = read_into(memory, 16)
    assert (len(archive), archive.bring_back(INDEX, keys[:, :, :1].transpose(1, 2))) == (0, 0)
    assert archive.stats().ratio == 1.0
    read_into(memory, 16, seed=1)
    archive.clear()
    assert len(archive) == 0


@pytest.mark.slow
def test_an_entry_takes_an_eighth_of_its_bytes_with_what_tells_it_apart() -> None:
    config = CONFIG.model_copy(update={"memory_dim": 256, "memory_heads": 4})
    memory = EpisodicMemory(config)
    archive = Archive(memory)
    draw = torch.Generator().manual_seed(0)
    count = 8 * BLOCK
    # As in a trained model, most of the variance of keys and values lies in half of their directions.
    mix = torch.randn(4, 64, 128, generator=draw)
    x = torch.einsum("nhr,hrx->hnx", torch.randn(count, 4, 64, generator=draw), mix)[None]
    x = x + torch.randn(x.shape, generator=draw)
    keys, values = x.split(64, -1)
    number = torch.arange(count)[None]
    keys = torch.nn.functional.normalize(keys, dim=-1)
    memory.evicted(INDEX, Entries(keys, values, -torch.ones(1, count), number, *(torch.zeros_like(number),) * 4))
    stats = archive.stats()
    assert (stats.entries, stats.waiting) == (count, 0)
    assert stats.ratio >= 8
    assert stats.bytes == pytest.approx(stats.bytes_per_entry * count, rel=0.01)
    assert archive.sizes()[:3] == (count, stats.bytes, stats.bytes_per_entry)
    assert stats.loss.keys < 0.02
    assert stats.loss.values < 0.02


def test_a_second_taker_and_several_rows_are_refused() -> None:
    memory = EpisodicMemory(CONFIG)
    archive = Archive(memory)
    with pytest.raises(UsageError, match="already"):
        Archive(memory)
    zeros = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(UsageError, match="one row"):
        memory.evicted(INDEX, Entries(torch.zeros(2, 2, 1, 16), torch.zeros(2, 2, 1, 16), zeros.float(), *(zeros,) * 5))
    assert len(archive) == 0


def test_a_prompt_brings_back_what_its_own_queries_are_near_to() -> None:
    torch.manual_seed(3)
    model = CMRN(CONFIG).train()
    archive = Archive(model.episodic)
    ids = torch.randint(2, 60, (1, 96))
    with torch.no_grad():
        model.eval()(ids, update_memory=True)
        before = set(model.episodic.entries(INDEX).when_BN[0].tolist())
        question = ids[:, 5:9]
        plain = model(question).logits
        said = model(question).memory_stats
        assert (said.archived_entries, said.archived_bytes) == (len(archive), archive.stats().bytes)
        assert said.archived_entries == 80
        brought = bring_back(model.train(), archive, question, most=4)
        assert 0 < brought <= 4
        assert model.training
        model.eval()
        after = model.episodic.entries(INDEX)
        assert len(set(after.when_BN[0].tolist()) - before) == brought
        assert not torch.equal(model(question).logits, plain)
    assert len(model.blocks[INDEX].memory._forward_pre_hooks) == 0
    model.reset_memory()
    assert len(archive) == 0
