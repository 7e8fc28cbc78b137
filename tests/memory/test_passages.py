from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cmrn.errors import CheckpointError, UsageError
from cmrn.memory import PersistentMemory
from cmrn.memory.entry import NewRecord
from cmrn.memory.passages import Passages
from cmrn.memory.store import MemoryStore
from tests.memory.word_encoder import DIM, WordEncoder

TEXTS = ("the cat sat on the mat", "courts decide what the law is", "an integral sums what changes")


def make(folder: Path, texts: tuple[str, ...] = TEXTS, namespace: str = "default") -> Path:
    encoder = WordEncoder()
    vectors = encoder.embed(texts) if texts else ()
    with MemoryStore.ensure(folder, encoder.fingerprint()) as store:
        if texts:
            store.add([NewRecord(text, vector, namespace=namespace)
                       for text, vector in zip(texts, vectors, strict=True)])  # fmt: skip
    return folder


def test_the_nearest_texts_come_first(tmp_path: Path) -> None:
    with Passages(make(tmp_path / "m"), WordEncoder()) as passages:  # type: ignore[arg-type]
        hits = passages.recall("what is the law", k=2)
        assert hits[0].record.text == TEXTS[1]
        assert len(hits) == 2
        assert hits[0].score > hits[1].score
        assert passages.texts([1, 99]) == {1: TEXTS[0]}


def test_namespaces_restrict_what_is_found(tmp_path: Path) -> None:
    make(make(tmp_path / "m"), ("the cat is a law",), "legal")
    with Passages(tmp_path / "m", WordEncoder()) as passages:  # type: ignore[arg-type]
        assert passages.namespaces() == {"default": 3, "legal": 1}
        assert [hit.record.namespace for hit in passages.recall("the cat", 4, {"legal"})] == ["legal"]
        assert passages.recall("the cat", 4, {"nowhere"}) == []


def test_an_empty_store_recalls_nothing_and_needs_no_encoder(tmp_path: Path) -> None:
    with Passages(make(tmp_path / "m", ())) as passages:
        assert passages.recall("anything") == []


def test_what_is_written_deleted_and_changed_meanwhile_is_seen(tmp_path: Path) -> None:
    make(tmp_path / "m")
    encoder = WordEncoder()
    with Passages(tmp_path / "m", encoder) as passages:  # type: ignore[arg-type]
        assert passages.recall("the cat", 1)[0].record.record == 1
        with MemoryStore.open(tmp_path / "m", write=True) as store:
            store.delete([1])
            store.edit(2, text="a cat naps", vector=encoder.embed(["a cat naps"])[0])
        assert [hit.record.text for hit in passages.recall("a cat", 1)] == ["a cat naps"]
        assert passages.texts([1, 2]) == {2: "a cat naps"}


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    with (
        Passages(make(tmp_path / "m"), WordEncoder("other")) as passages,  # type: ignore[arg-type]
        pytest.raises(CheckpointError, match="words"),
    ):
        passages.recall("the cat")


def test_a_store_deleted_while_in_use_is_said_plainly(tmp_path: Path) -> None:
    with Passages(make(tmp_path / "m"), WordEncoder()) as passages:  # type: ignore[arg-type]
        passages.recall("the cat")
        shutil.rmtree(tmp_path / "m")
        for act in (lambda: passages.recall("the cat"), passages.namespaces, lambda: passages.texts([1])):
            with pytest.raises(CheckpointError, match="deleted while it was in use"):
                act()


def test_no_store_and_no_passages_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Passages(tmp_path / "missing")
    with Passages(make(tmp_path / "m")) as passages, pytest.raises(UsageError, match="k must be"):
        passages.recall("the cat", 0)


def test_a_durable_memory_gives_its_passages_until_it_is_closed(tmp_path: Path) -> None:
    memory = PersistentMemory(DIM, store=make(tmp_path / "m"), embedder=WordEncoder())  # type: ignore[arg-type]
    passages = memory.passages
    assert passages is not None
    assert passages is memory.passages
    assert passages.recall("the cat", 1)[0].record.text == TEXTS[0]
    memory.close()
    with pytest.raises(UsageError, match="closed"):
        passages.recall("the cat")
    assert PersistentMemory(4).passages is None
