"""Sources are read whole, and what cannot be read is named by file and place."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from cmrn.config import DataConfig, SourceConfig
from cmrn.data import Document, check_domains, load_corpus, sample_texts
from cmrn.data.sources import read_source
from cmrn.errors import CMRNError, DataError, UsageError


def prose(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=4)) for _ in range(words))


def read(root: Path, path: str, **options: object) -> list[Document]:
    return list(read_source(SourceConfig(path=path, **options), 0, root))  # type: ignore[arg-type]


def write(path: Path, *records: object, compress: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(raw) if compress else raw)


def test_lines_text_and_gzip_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.jsonl", {"text": "one"}, {"text": "two", "domain": "math"}, {"text": ""})
    write(tmp_path / "a" / "2.jsonl.gz", {"text": "three"}, compress=True)
    (tmp_path / "a" / "3.txt").write_bytes(b"\xef\xbb\xbffour\r\n")
    (tmp_path / "a" / "4.txt.gz").write_bytes(gzip.compress("fünf".encode()))
    found = read(tmp_path, "a/*")
    assert [document.text for document in found] == ["one", "two", "three", "four\r\n", "fünf"]
    assert [document.domain for document in found] == [None, "math", None, None, None]
    assert found[1].source == f"{tmp_path}/a/1.jsonl:2"
    assert {document.domain for document in read(tmp_path, "a/*", domain="d")} == {"d"}
    assert [document.text for document in read(tmp_path, "a/**/*", limit=2)] == ["one", "two"]
    assert [document.text for document in read(tmp_path, str(tmp_path / "a" / "3.txt"))] == ["four\r\n"]


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"body": "one"})
    assert read(tmp_path, "a.jsonl", text_field="body")[0].text == "one"
    with pytest.raises(DataError, match="no field 'text'") as caught:
        read(tmp_path, "a.jsonl")
    assert caught.value.where == f"{tmp_path}/a.jsonl:1"
    assert "'body'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "content", "error", "place", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', DataError, ":2", "not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', DataError, ":3", "not UTF-8: byte 0xFF at offset 25"),
        ("a.jsonl", b"[1]\n", DataError, ":1", "not an object"),
        ("a.jsonl", b'{"text": 1}\n', DataError, ":1", "no text in the field"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', DataError, ":1", "lone surrogate"),
        ("a.jsonl", b'{"text": "a", "domain": 3}\n', DataError, ":1", "domain is not text"),
        ("a.jsonl", b"[" * 100_000 + b"\n", DataError, ":1", "not JSON"),
        ("a.jsonl.gz", b"plain", DataError, "", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "abc"}\n' * 99)[:-20], DataError, "", "cannot be read"),
        ("a.txt", b"ab\xe9cd", DataError, "", "not UTF-8: byte 0xE9 at offset 2"),
        ("a.csv", b"text", UsageError, "", "unknown kind of file"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_place(
    tmp_path: Path, name: str, content: bytes, error: type[CMRNError], place: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read(tmp_path, name)
    assert caught.value.where == f"{tmp_path / name}{place}"


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmrn.data.sources.LONGEST_LINE", 100)
    write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "a" * 200})
    with pytest.raises(DataError, match="longer than 100 bytes") as caught:
        read(tmp_path, "a.jsonl")
    assert caught.value.where == f"{tmp_path}/a.jsonl:2"


@pytest.mark.parametrize("path", ["none.jsonl", "*/none-*.txt", "folder", "builtin://poetry", "hf://", "hf://x?y=1"])
def test_a_source_that_is_not_there_says_what_to_do(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError) as caught:
        read(tmp_path, path)
    assert caught.value.hint
    if path == "none.jsonl":
        assert caught.value.where == str(tmp_path / path)
        assert "--data-root" in caught.value.hint
        assert "CMRN_DATA" in caught.value.hint


def test_relative_paths_start_at_the_root_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", *({"text": prose(i)} for i in range(30)))
    data = DataConfig(sources=(SourceConfig(path="a.jsonl"),))
    monkeypatch.setenv("CMRN_DATA", str(tmp_path))
    assert load_corpus(data) == load_corpus(data, tmp_path)
    with pytest.raises(UsageError):
        load_corpus(data, tmp_path / "elsewhere")


def test_an_empty_source_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no text") as caught:
        load_corpus(DataConfig(sources=(SourceConfig(path="a.jsonl"),)), tmp_path)
    assert caught.value.where == "a.jsonl"


def test_a_local_data_set_streams_through_datasets(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", *({"text": prose(i), "domain": "d"} for i in range(5)))
    for path in (f"hf://{tmp_path}/set", "hf://./set?split=train"):
        found = read(tmp_path, path, limit=3)
        assert [document.text for document in found] == [prose(i) for i in range(3)]
        assert {document.domain for document in found} == {"d"}
    with pytest.raises(UsageError, match="no such folder"):
        read(tmp_path, "hf://./missing")
    with pytest.raises(UsageError, match="split"):
        read(tmp_path, "hf://./set?split=dev")


def test_duplicates_go_before_the_split(tmp_path: Path) -> None:
    records = [{"text": prose(i, 80), "domain": "ab"[i % 2]} for i in range(60)]
    copies = [{"text": record["text"].upper() + " again", "domain": "a"} for record in records[:20]]
    write(tmp_path / "x.jsonl", *records)
    write(tmp_path / "y.jsonl", *copies)
    sources = (SourceConfig(path="x.jsonl", weight=2.0), SourceConfig(path="y.jsonl"))
    corpus = load_corpus(DataConfig(sources=sources), tmp_path, seed=3)
    texts = [document.text for document in (*corpus.train, *corpus.validation)]
    assert len(texts) == 60
    assert corpus.report.duplicates == 20
    assert corpus.report.unvalidated == ()
    assert corpus.weights == (2.0, 1.0)
    assert {document.source_index for document in corpus.train} == {0, 1}
    words = {text.removesuffix(" again").lower() for text in texts}
    assert len(words) == 60
    assert sum(row.read_documents for row in corpus.report.domains) == 80
    for row in corpus.report.domains:
        assert row.read_documents == row.duplicates + row.withheld + row.train_documents + row.validation_documents
    kept = load_corpus(DataConfig(sources=sources, deduplicate=False), tmp_path, seed=3)
    assert kept.report.duplicates == 0
    known = {d.text.removesuffix(" again").lower() for d in kept.train}
    assert not known & {d.text.removesuffix(" again").lower() for d in kept.validation}


def test_an_owned_domain_must_be_in_the_data(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": prose(i), "domain": "law"} for i in range(9)))
    corpus = load_corpus(DataConfig(sources=(SourceConfig(path="a.jsonl"),)), tmp_path)
    check_domains(["law", "law"], corpus)
    check_domains([], corpus)
    with pytest.raises(UsageError, match="'maths'") as caught:
        check_domains(["law", "maths"], corpus)
    assert "law" in (caught.value.hint or "")


def test_a_sample_takes_the_same_from_each_domain() -> None:
    documents = [Document(prose(i, 400), "large") for i in range(50)]
    documents += [Document(prose(100 + i, 400), "middle") for i in range(20)]
    documents += [Document(prose(200, 100), "small")]
    sample = sample_texts(documents, 60_000)
    sizes = {name: sum(len(d.text) for d in documents if d.domain == name and d.text in sample) for name in
             ("large", "middle", "small")}  # fmt: skip
    assert sizes["small"] == len(prose(200, 100))
    assert abs(sizes["large"] - sizes["middle"]) <= 2000
    assert 60_000 <= sum(sizes.values()) <= 64_000
    assert sample_texts(documents[::-1], 60_000) == sample
    assert sorted(sample_texts(documents, 10**9)) == sorted(document.text for document in documents)
