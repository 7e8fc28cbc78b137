from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmrn.errors import DataError, InterruptedRunError, ResourceError, UsageError
from cmrn.memory import load_knowledge_base
from cmrn.memory.embedding import Embedder
from cmrn.memory.exchange import export_lines
from cmrn.memory.populate import PopulateOptions, PopulateProgress, PopulateResult, populate, populate_texts
from cmrn.memory.reading import Fields
from cmrn.memory.store import MemoryStore


@pytest.fixture(scope="module")
def encoder() -> Embedder:
    return Embedder(device="cpu", threads=2)


@pytest.fixture
def store(tmp_path: Path, encoder: Embedder) -> Iterator[MemoryStore]:
    with MemoryStore.create(tmp_path / "store", encoder.fingerprint()) as opened:
        yield opened


def text_of(number: int) -> str:
    return f"Number {number} is {'even' if number % 2 == 0 else 'odd'}."


def write_lines(path: Path, count: int, start: int = 0, bad: Sequence[int] = ()) -> Path:
    lines = [
        f'{{"text": "Number {i} is {"even" if i % 2 == 0 else "odd"}.", "id": "{i}"}}\n' for i in range(start, count)
    ]
    for place in bad:
        lines[place] = "no JSON\n"
    path.write_text("".join(lines))
    return path


def contents(store: MemoryStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export_lines(store)]


def counts(result: PopulateResult) -> tuple[int, ...]:
    total = result.added + result.updated + result.unchanged + result.rejected + result.skipped
    assert result.read == total
    return result.added, result.updated, result.unchanged, result.rejected, result.skipped


class StopAfter:
    """Progress that presses Ctrl-C at a batch."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, moment: PopulateProgress) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_every_record_is_stored_with_the_vector_of_its_text(
    store: MemoryStore, encoder: Embedder, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", 25)
    moments: list[PopulateProgress] = []
    result = populate(store, [path], encoder, PopulateOptions(batch_size=10), moments.append)
    assert counts(result) == (25, 0, 0, 0, 0)
    assert [moment.committed for moment in moments] == [10, 20, 25]
    assert moments[-1].share == 1
    assert moments[0].eta_seconds is not None
    texts = [entry["text"] for entry in contents(store)]
    assert texts == [text_of(i) for i in range(25)]
    np.testing.assert_allclose(np.einsum("nd,nd->n", store.vectors(range(1, 26)), encoder.embed(texts)), 1, atol=1e-3)


def test_again_changes_nothing_and_embeds_nothing(
    store: MemoryStore, encoder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", 12)
    populate(store, [path], encoder, PopulateOptions())
    before, seq = contents(store), store.seq
    begun: list[str] = []
    jobs = encoder._engine.jobs
    monkeypatch.setattr(encoder._engine, "jobs", lambda texts: [begun.extend(texts), jobs(texts)][1])
    assert counts(populate(store, [path], encoder, PopulateOptions())) == (0, 0, 12, 0, 0)
    assert (begun, contents(store), store.seq) == ([], before, seq)
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = '{"text": "New words.", "id": "3"}\n'
    lines[4] = lines[4].replace("}", ', "year": 1}')
    path.write_text("".join(lines))
    assert counts(populate(store, [path], encoder, PopulateOptions())) == (0, 2, 10, 0, 0)
    assert begun == ["New words."]
    assert store.find("4")[0].meta == {"year": 1}


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_an_interrupted_run_goes_on_at_the_exact_record_and_ends_alike(
    after: int, ending: str, store: MemoryStore, encoder: Embedder, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "a.jsonl", 33, bad=[2, 11, 12, 30])
    if ending.endswith("gz"):
        data = path.read_bytes()
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress(data))
    whole = tmp_path / "whole.jsonl"
    options = PopulateOptions(batch_size=8, rejects=tmp_path / "rejects.jsonl")
    with MemoryStore.create(tmp_path / "other", encoder.fingerprint()) as other:
        uninterrupted = populate(other, [path], encoder, replace(options, rejects=whole))
        expected = contents(other)
    with pytest.raises(InterruptedRunError, match=f"{8 * after} records"):
        populate(store, [path], encoder, options, StopAfter(after))
    result = populate(store, [path], encoder, options)
    assert counts(result) == (29 - 8 * after, 0, 0, 4, 8 * after)
    assert contents(store) == expected
    assert options.rejects is not None
    assert options.rejects.read_bytes() == whole.read_bytes()
    assert (uninterrupted.read, uninterrupted.rejected) == (result.read, result.rejected)
    assert counts(populate(store, [path], encoder, options)) == (0, 0, 29, 4, 0)


def test_other_options_or_contents_do_not_resume(store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", 20)
    with pytest.raises(InterruptedRunError):
        populate(store, [path], encoder, PopulateOptions(batch_size=8), StopAfter(1))
    other = PopulateOptions(Fields(namespace="other"))
    assert counts(populate(store, [path], encoder, other)) == (20, 0, 0, 0, 0)
    path.write_text(path.read_text() + '{"text": "one more"}\n')
    assert counts(populate(store, [path], encoder, PopulateOptions())) == (13, 0, 8, 0, 0)


class TestBadLines:
    def test_they_are_listed_and_the_others_stored(self, store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", 10, bad=[0, 9])
        rejects = tmp_path / "bad.jsonl"
        result = populate(store, [path], encoder, PopulateOptions(rejects=rejects))
        assert counts(result) == (8, 0, 0, 2, 0)
        assert result.rejects_file == str(rejects)
        entries = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [(entry["file"], entry["line"]) for entry in entries] == [(str(path), 1), (str(path), 10)]
        assert entries[1]["offset"] == path.read_bytes().rindex(b"no JSON")
        assert "JSON" in entries[0]["reason"]

    def test_stop_keeps_what_came_before(self, store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", 20, bad=[13])
        with pytest.raises(DataError, match="not JSON") as failure:
            populate(store, [path], encoder, PopulateOptions(batch_size=5, on_error="stop"))
        assert failure.value.where == f"{path}:14"
        assert store.stats().records == 13
        path.write_text(path.read_text().replace("no JSON", '{"text": "mended"}'))
        assert counts(populate(store, [path], encoder, PopulateOptions())) == (7, 0, 13, 0, 0)

    def test_a_damaged_file_keeps_what_came_before(self, store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "a.jsonl", 9)
        packed = tmp_path / "a.jsonl.gz"
        packed.write_bytes(gzip.compress(path.read_bytes())[:-8])
        with pytest.raises(DataError, match="damaged"):
            populate(store, [packed], encoder, PopulateOptions(batch_size=4))
        assert store.stats().records == 9

    def test_no_rejects_file_without_rejects(self, store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
        options = PopulateOptions(rejects=tmp_path / "bad.jsonl")
        result = populate(store, [write_lines(tmp_path / "a.jsonl", 3)], encoder, options)
        assert result.rejects_file is None
        assert not (tmp_path / "bad.jsonl").exists()

    def test_all_inputs_are_checked_before_any_is_read(
        self, store: MemoryStore, encoder: Embedder, tmp_path: Path
    ) -> None:
        path = write_lines(tmp_path / "a.jsonl", 3)
        with pytest.raises(UsageError):
            populate(store, [path, tmp_path / "missing.jsonl"], encoder, PopulateOptions())
        assert store.stats().records == 0


def test_shards_make_up_the_whole(store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", 11, bad=[4])
    results = [populate(store, [path], encoder, PopulateOptions(shard=(part, 3))) for part in (1, 2, 3)]
    assert [result.read for result in results] == [4, 4, 3]
    assert [result.rejected for result in results] == [0, 1, 0]
    assert {entry["id"] for entry in contents(store)} == {str(i) for i in range(11) if i != 4}
    for shard in ((0, 3), (4, 3)):
        with pytest.raises(UsageError):
            PopulateOptions(shard=shard)


def test_a_limit_counts_records_over_all_inputs(store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", 5, bad=[1])
    second = write_lines(tmp_path / "b.jsonl", 15, start=10)
    result = populate(store, [first, second], encoder, PopulateOptions(limit=6))
    assert counts(result) == (6, 0, 0, 1, 0)
    assert [entry["id"] for entry in contents(store)] == ["0", "2", "3", "4", "10", "11"]
    assert [entry["source"] for entry in contents(store)][-1] == "b.jsonl"


def test_stdin(store: MemoryStore, encoder: Embedder) -> None:
    result = populate(store, [None], encoder, PopulateOptions(), stdin=io.BytesIO(b'{"text": "piped"}\n'))
    assert counts(result) == (1, 0, 0, 0, 0)
    assert contents(store)[0]["source"] == "stdin"


def test_an_export_is_read_back_as_it_was(store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
    populate_texts(store, [{"text": "a", "id": "1", "year": 1}, {"text": "b", "namespace": "n"}], encoder,
                   PopulateOptions(Fields(source="s")))  # fmt: skip
    path = tmp_path / "export.jsonl"
    path.write_bytes(b"".join(export_lines(store)))
    with MemoryStore.create(tmp_path / "other", encoder.fingerprint()) as other:
        populate(other, [path], encoder, PopulateOptions())
        assert contents(other) == contents(store)


def test_texts_records_and_objects(store: MemoryStore, encoder: Embedder, tmp_path: Path) -> None:
    result = populate_texts(store, ["a text", {"text": "an object"}, {"txt": "none"}], encoder, PopulateOptions())
    assert counts(result) == (2, 0, 0, 1, 0)
    base = load_knowledge_base(write_lines(tmp_path / "a.jsonl", 3))
    assert [record.id for record in base] == [record.id for record in base] == ["0", "1", "2"]
    assert counts(populate_texts(store, base, encoder, PopulateOptions())) == (3, 0, 0, 0, 0)
    with pytest.raises(UsageError):
        load_knowledge_base(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="JSON"):
        list(load_knowledge_base(write_lines(tmp_path / "b.jsonl", 3, bad=[1])))


def test_a_full_disk_says_how_much_is_stored(
    store: MemoryStore, encoder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, calls = store.add, [0]

    def full_after_two(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > 2:
            raise ResourceError("no space left", where="store")
        return add(*arguments, **more)

    monkeypatch.setattr(store, "add", full_after_two)
    with pytest.raises(ResourceError, match="10 records of this run are stored"):
        populate(store, [write_lines(tmp_path / "a.jsonl", 30)], encoder, PopulateOptions(batch_size=5))
    assert store.stats().records == 10


def test_long_texts_make_small_batches(store: MemoryStore, encoder: Embedder) -> None:
    texts = [{"text": f"{i} " + "word " * 200_000} for i in range(18)]
    moments: list[PopulateProgress] = []
    populate_texts(store, texts, encoder, PopulateOptions(), moments.append)
    assert [moment.committed for moment in moments] == [9, 18]
