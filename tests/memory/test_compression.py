from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.memory.compression import EntryCodec
from cmrn.memory.compression_table import BLOCK, CompressedEntries


def entries(count: int, seed: int = 0, heads: int = 2, width: int = 16, rank: int = 12) -> tuple[Tensor, Tensor]:
    """Unit keys and values, most of whose variance lies in `rank` directions, as in a trained model."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(heads, rank, 2 * width, generator=torch.Generator().manual_seed(99))
    latent = torch.randn(count, heads, rank, generator=draw)
    x = torch.einsum("nhr,hrx->nhx", latent, mix) + 0.3 * torch.randn(count, heads, 2 * width, generator=draw)
    keys, values = x.unflatten(-1, (2, -1)).unbind(-2)
    return torch.nn.functional.normalize(keys, dim=-1), 3 * values


def test_codes_are_bytes_of_the_size_asked_for() -> None:
    keys, values = entries(500)
    for size in range(1, 33):
        codec = EntryCodec.fit(keys, values, size)
        codes = codec.encode(keys, values)
        assert codes.dtype == torch.int8
        assert codes.shape == (500, 2, size) == (500, 2, codec.code_bytes)


def test_more_bytes_lose_less_and_a_byte_a_number_next_to_nothing() -> None:
    keys, values = entries(2000)
    losses = [EntryCodec.fit(keys, values, size).loss(*entries(500, seed=1)) for size in (2, 8, 16, 32)]
    assert all(a.keys > b.keys and a.values > b.values for a, b in pairwise(losses))
    assert losses[-1].keys < 1e-3
    assert losses[-1].values < 1e-3


def test_an_eighth_of_float32_finds_what_full_entries_find() -> None:
    keys, values = entries(4000)
    codec = EntryCodec.fit(keys[:2000], values[:2000])
    assert 2 * 4 * codec.width / codec.code_bytes >= 8
    decoded, _ = codec.decode(codec.encode(keys, values))
    queries = entries(200, seed=5)[0]
    best, found = (torch.einsum("qhc,nhc->hqn", queries, each) for each in (keys, decoded))
    hit = (best.argmax(-1, keepdim=True) == found.topk(32).indices).any(-1)
    assert hit.float().mean() >= 0.99


def test_is_the_best_linear_code_that_keeps_as_many_directions() -> None:
    keys, values = entries(1000)
    codec = EntryCodec.fit(keys, values, 16)
    gram = codec.basis_HXP.mT @ codec.basis_HXP
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).expand_as(gram), atol=1e-4, rtol=0)
    spread = (codec.decode(codec.encode(keys, values))[1] - values).square().mean()
    rotated = torch.linalg.qr(torch.randn(2, 32, 32))[0][..., : codec.basis_HXP.shape[-1]]
    other = EntryCodec(codec.scale_H2, codec.mean_HX, rotated, codec.step_HP, codec.wide, codec.unit_keys)
    assert spread < (other.decode(other.encode(keys, values))[1] - values).square().mean()


def test_decoded_keys_have_length_one_only_where_keys_had() -> None:
    keys, values = entries(300)
    codec = EntryCodec.fit(keys, values)
    assert torch.allclose(codec.decode(codec.encode(keys, values))[0].norm(dim=-1), torch.ones(300, 2), atol=1e-5)
    assert not EntryCodec.fit(2 * keys, values).unit_keys


def test_entries_carry_no_gradient_and_keep_their_own() -> None:
    keys, values = (each.requires_grad_() for each in entries(100))
    codec = EntryCodec.fit(keys, values)
    assert not any(each.requires_grad for each in codec.decode(codec.encode(keys, values)))
    assert keys.requires_grad


def test_constant_entries_and_a_single_one_come_back() -> None:
    keys, values = entries(1)
    codec = EntryCodec.fit(keys, values)
    decoded = codec.decode(codec.encode(keys, values))
    torch.testing.assert_close(decoded[0], keys, atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded[1], values, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [0, 33])
def test_a_code_of_no_sensible_size_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"{size} bytes"):
        EntryCodec.fit(*entries(10), size)


def test_what_cannot_be_coded_is_refused() -> None:
    keys, values = entries(10)
    codec = EntryCodec.fit(keys, values)
    with pytest.raises(UsageError, match="shape"):
        codec.encode(keys[:, :1], values[:, :1])
    with pytest.raises(UsageError, match="must be"):
        EntryCodec.fit(keys, values[:5])
    with pytest.raises(DataError, match="no memory entries"):
        EntryCodec.fit(keys[:0], values[:0])
    values = values.clone()
    values[3, 0, 0] = torch.nan
    for act in (codec.encode, EntryCodec.fit):
        with pytest.raises(DataError, match="not finite"):
            act(keys, values)


def test_a_codec_saved_and_loaded_is_the_same_and_its_version_names_it() -> None:
    codec = EntryCodec.fit(*entries(100))
    again = EntryCodec.from_tensors({name: tensor.clone() for name, tensor in codec.tensors().items()})
    assert again.version == codec.version != EntryCodec.fit(*entries(100, seed=1)).version
    assert torch.equal(again.encode(*entries(10)), codec.encode(*entries(10)))
    broken = codec.tensors() | {"step": codec.step_HP[:, 1:]}
    for tensors in (broken, {"scale": codec.scale_H2}):
        with pytest.raises(CheckpointError, match="codec"):
            EntryCodec.from_tensors(tensors)


def test_entries_come_back_by_number_whatever_the_sizes_of_writes() -> None:
    keys, values = entries(2 * BLOCK + 100)
    whole, pieces = CompressedEntries(), CompressedEntries()
    assert whole.write(keys, values).tolist() == list(range(len(keys)))
    for begin in range(0, len(keys), 1111):
        pieces.write(keys[begin : begin + 1111], values[begin : begin + 1111])
    numbers = torch.tensor([[0, 5, 2 * BLOCK + 99], [BLOCK - 1, BLOCK, 5]])
    for table in (whole, pieces):
        assert len(table) == len(keys)
        found = table.read(numbers)
        assert found[0].shape == (2, 3, 2, 16)
        assert (found[0] - keys[numbers]).square().mean() < 1e-2 * keys.square().mean()
        assert torch.equal(found[1][0, 2], values[2 * BLOCK + 99])
    assert torch.equal(whole.read(numbers)[1], pieces.read(numbers)[1])


def test_blocks_are_what_reading_gives() -> None:
    table = CompressedEntries()
    table.write(*entries(BLOCK + 7))
    blocks = list(table.blocks())
    assert [(first, len(keys)) for first, keys, _ in blocks] == [(0, BLOCK), (BLOCK, 7)]
    keys, values = table.read(torch.arange(len(table)))
    torch.testing.assert_close(torch.cat([block[1] for block in blocks]), keys)
    torch.testing.assert_close(torch.cat([block[2] for block in blocks]), values)


def test_decoded_pages_are_kept_and_the_least_recently_used_go() -> None:
    table = CompressedEntries(decoded_pages=2)
    table.write(*entries(BLOCK))
    for number in (0, 64, 1, 128, 2, 65):
        table.read(torch.tensor([number]))
    stats = table.stats()
    assert (stats.hits, stats.misses) == (2, 4)
    some = torch.arange(0, BLOCK, 3)
    assert torch.equal(table.read(some)[0], table.read(some.flip(0))[0].flip(0))


def test_entries_of_another_kind_get_a_codec_of_their_own_and_old_codes_keep_theirs() -> None:
    table = CompressedEntries()
    keys, values = entries(BLOCK)
    table.write(keys, values)
    before = table.read(torch.arange(10))
    table.write(*entries(BLOCK, seed=1))
    assert len(table.stats().codecs) == 1
    other = torch.randn(2, BLOCK, 2, 16, generator=torch.Generator().manual_seed(3))
    table.write(*other)
    assert len(set(table.stats().codecs)) == 2
    assert torch.equal(table.read(torch.arange(10))[0], before[0])
    assert (table.read(torch.arange(2 * BLOCK, 3 * BLOCK))[1] - other[1]).square().mean() < 0.05


def test_stats_say_bytes_and_loss() -> None:
    table = CompressedEntries()
    assert table.stats().ratio == 1.0
    keys, values = entries(4 * BLOCK)
    table.write(keys, values)
    stats = table.stats()
    assert (stats.entries, stats.waiting) == (4 * BLOCK, 0)
    assert stats.bytes_per_entry == pytest.approx(stats.bytes / stats.entries)
    assert 2 * 16 <= stats.bytes_per_entry < 2 * 16 + 1
    assert stats.ratio == pytest.approx(2 * 4 * keys[0].numel() / stats.bytes_per_entry)
    loss = EntryCodec.fit(keys[:BLOCK], values[:BLOCK]).loss(keys, values)
    assert stats.loss.keys == pytest.approx(loss.keys, rel=0.05)


def test_a_table_saved_and_loaded_reads_and_goes_on_the_same() -> None:
    table = CompressedEntries()
    assert len(CompressedEntries.from_tensors(table.tensors())) == 0
    table.write(*entries(BLOCK + 50))
    tensors = {name: tensor.clone() for name, tensor in table.tensors().items()}
    again = CompressedEntries.from_tensors(tensors)
    for each in (table, again):
        each.write(*entries(BLOCK, seed=2))
    numbers = torch.arange(0, len(table), 17)
    assert torch.equal(again.read(numbers)[0], table.read(numbers)[0])
    assert again.stats().codecs == table.stats().codecs
    for wrong in ({"waiting.keys": tensors["waiting.keys"]}, tensors | {"codes": tensors["codes"][:-1]}):
        with pytest.raises(CheckpointError, match="compressed entries"):
            CompressedEntries.from_tensors(wrong)


def test_wrong_numbers_and_shapes_are_refused() -> None:
    table = CompressedEntries()
    with pytest.raises(UsageError, match="numbered"):
        table.read(torch.tensor([0]))
    table.write(*entries(5))
    for number in (-1, 5):
        with pytest.raises(UsageError, match="numbered"):
            table.read(torch.tensor([number]))
    with pytest.raises(UsageError, match="shape"):
        table.write(torch.randn(3, 1, 16), torch.randn(3, 1, 16))
    with pytest.raises(UsageError, match="decoded_pages"):
        CompressedEntries(decoded_pages=0)
