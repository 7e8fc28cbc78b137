from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cmrn import CMRN, CMRNConfig, CMRNTokenizer, ExpertConfig
from cmrn.memory.entry import NewRecord
from cmrn.memory.store import MemoryStore
from cmrn_cli.main import run
from tests.memory.word_encoder import WordEncoder

Capture = pytest.CaptureFixture[str]
TEXTS = ("the cat sat on the mat", "courts decide what the law is", "hostile \x1b[31m\u202e text on the cat")


@pytest.fixture(scope="module")
def rememberer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with long-term memory."""
    tokenizer = CMRNTokenizer.train(TEXTS, 280)
    config = CMRNConfig(vocab_size=tokenizer.vocab_size, d_model=32, head_dim=16, num_blocks=2, temporal_layers=1,
                        memory_dim=16, memory_heads=2, working_memory=16, episodic_memory=64, episodic_chunk=16,
                        experts=(ExpertConfig(name="math"), ExpertConfig(name="legal")))  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    CMRN(config, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in ./memory of the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cmrn.memory.embedding.Embedder", lambda name: WordEncoder(name))
    encoder = WordEncoder()
    with MemoryStore.create(tmp_path / "memory", encoder.fingerprint()) as made:
        made.add([NewRecord(text, vector, id=f"t{place}", source="test")
                  for place, (text, vector) in enumerate(zip(TEXTS, encoder.embed(TEXTS), strict=True))])  # fmt: skip
    return tmp_path / "memory"


@pytest.mark.parametrize("flags", [["--memory"], ["--memory", "memory"], ["--memory", "--temperature", "0"]])
def test_memory_is_recalled_and_told_of_in_json(
    rememberer: Path, store: Path, capsys: Capture, flags: list[str]
) -> None:
    arguments = ["generate", "the cat", "-m", str(rememberer), "--max-new-tokens", "4", "--json"]
    assert run([*arguments, *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    document = json.loads(printed)
    hits = document["memory_hits"]
    assert {hit["text"] for hit in hits} == set(TEXTS)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert set(hits[0]) == {"id", "record", "score", "text", "namespace", "source"}
    assert "tokens" not in document


def test_each_token_names_the_records_it_read(rememberer: Path, store: Path, capsys: Capture) -> None:
    arguments = ["generate", "the cat", "-m", str(rememberer), "--max-new-tokens", "4", "--memory", "--show-memory"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["tokens"]) == document["new_tokens"]
    named = {each["record"] for token in document["tokens"] for each in token["records"]}
    assert named
    assert named <= {hit["record"] for hit in document["memory_hits"]}
    assert run(arguments) == 0
    printed = capsys.readouterr().out
    assert "record:1" in printed
    assert "the cat sat on the mat" in printed
    assert not {"\x1b", "\u202e"} & set(printed)


def test_without_memory_nothing_is_recalled(rememberer: Path, store: Path, capsys: Capture) -> None:
    assert run(["generate", "the cat", "-m", str(rememberer), "--max-new-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory_hits"] == []


def test_a_document_is_read_before_its_question(rememberer: Path, tmp_path: Path, capsys: Capture) -> None:
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat. " * 100, encoding="utf-8")
    arguments = ["generate", "--document", str(book), "--question", "where is the cat?", "-m", str(rememberer),
                 "--max-new-tokens", "3", "--temperature", "0"]  # fmt: skip
    assert run([*arguments, "--json"]) == 0
    read = capsys.readouterr()
    assert "book.txt" in read.err
    assert "64 entries kept" in read.err
    assert run([*arguments, "--memory", str(tmp_path / "none")]) == 4
    capsys.readouterr()
    assert run(["generate", "where is the cat?", *arguments[1:3], *arguments[5:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == json.loads(read.out)["text"]


def test_a_document_that_takes_long_is_counted(
    rememberer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    book = tmp_path / "book.txt"
    book.write_text("the cat sat on the mat. " * 1000, encoding="utf-8")
    arguments = ["generate", "--document", str(book), "-m", str(rememberer), "--max-new-tokens", "1"]
    assert run(arguments) == 0
    assert "tokens read\n" not in capsys.readouterr().err
    monkeypatch.setattr("cmrn_cli.generate.LINE_EVERY_SECONDS", 0.0)
    assert run(arguments) == 0
    assert "book.txt: 2,048 tokens read\n" in capsys.readouterr().err
    assert run(["-q", *arguments]) == 0
    assert "tokens read" not in capsys.readouterr().err


def test_a_document_and_a_memory_go_together(rememberer: Path, store: Path, capsys: Capture) -> None:
    book = store.parent / "book.txt"
    book.write_text("a dog barks. " * 20, encoding="utf-8")
    assert run(["generate", "--document", str(book), "--question", "the cat?", "-m", str(rememberer),
                "--max-new-tokens", "3", "--memory", "--show-memory", "--json"]) == 0  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert document["memory_hits"]
    assert len(document["tokens"]) == document["new_tokens"]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["x", "--question", "y"], 2, "two prompts"),
        (["--question", "y"], 2, "asks about a document"),
        (["x", "--show-memory"], 2, "--memory"),
        (["x", "--document", "missing.txt"], 2, "no such file"),
        (["x", "--document", "memory"], 2, "is a folder"),
        (["x", "--document", "empty.txt"], 3, "no text"),
        (["x", "--document", "latin.txt"], 3, "not UTF-8"),
        (["x", "--memory", "missing"], 4, "missing"),
        (["x", "--memory", "other"], 4, "another"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    rememberer: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    flags: list[str],
    code: int,
    words: str,
) -> None:
    folder = store.parent
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    encoder = WordEncoder("another")
    with MemoryStore.create(folder / "other", encoder.fingerprint()) as made:
        made.add([NewRecord("text", encoder.embed(["text"])[0])])
    if words == "another":
        monkeypatch.setattr("cmrn.memory.embedding.Embedder", lambda name: WordEncoder("words"))
    assert run(["generate", *flags, "-m", str(rememberer), "--max-new-tokens", "2"]) == code
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_eval_measures_again_with_a_memory(rememberer: Path, store: Path, capsys: Capture) -> None:
    held = store.parent / "held.jsonl"
    lines = [{"text": "the cat sat on the law and the mat", "domain": "pets"}, {"text": TEXTS[0], "domain": "pets"}]
    held.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["eval", "-m", str(rememberer), "--data", str(held), "--memory", str(store)]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    memory = document["memory"]
    assert set(memory) == {"bits_per_byte", "records", "seconds", "seconds_without"}
    assert memory["records"] == len(TEXTS)
    assert memory["bits_per_byte"]["pets"] < document["bits_per_byte"]["pets"]
    assert run(arguments) == 0
    read = capsys.readouterr()
    assert "with memory" in read.out
    assert "a document is left out" in read.err
    assert run(["eval", "-m", str(rememberer), "--data", str(held), "--memory", "nowhere"]) == 4
    held.write_text(json.dumps(lines[1]))
    assert run(arguments) == 3
