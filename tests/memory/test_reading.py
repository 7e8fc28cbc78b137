from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrn.errors import DataError, UsageError
from cmrn.memory.reading import Fields, Good, Item, Rejected, check_input, read_records

GOOD = b'{"text": "good"}\n'
DEEP = b'{"text": "x", "deep": ' + b"[" * 65 + b"]" * 65 + b"}\n"


def read(path: Path | None, data: bytes | None = None, fields: Fields | None = None) -> list[Item]:
    """Every item of a file, written first where data is given; of stdin where there is no path."""
    if path is None:
        return list(read_records(None, fields or Fields(), io.BytesIO(data or b"")))
    if data is not None:
        path.write_bytes(data)
    return list(read_records(path, fields or Fields()))


def texts(items: list[Item]) -> list[str]:
    return [item.record.text for item in items if isinstance(item, Good)]


def reasons(items: list[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Rejected)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}\n', "not UTF-8: byte 27"),
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (b'["text"]\n', "an array"),
        (b"12\n", "a bare value"),
        (b'{"txt": "x"}\n', "no 'text'"),
        (b'{"text": 5}\n', "not a string"),
        (b'{"text": null}\n', "not a string"),
        (b'{"text": " "}\n', "empty"),
        (b'{"text": "\\ud800"}\n', "lone surrogate"),
        (b'{"text": "x", "a": {"b": ["\\udfff"]}}\n', "lone surrogate"),
        (b'{"text": "x", "\\udfff": 1}\n', "lone surrogate"),
        (DEEP, "64 deep"),
        (b'{"text": ' + b"[" * 200_000 + b"\n", "64 deep"),
        (b'{"text": "x", "n": 9223372036854775808}\n', "64 bits"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", "64 bits"),
        (b'{"text": "x", "n": 1e999}\n', "64 bits"),
        (b'{"text": "x", "n": NaN}\n', "NaN"),
        (b'{"text": "x", "n": -Infinity}\n', "Infinity"),
        (b'{"text": "x", "text": "y"}\n', "twice"),
        (b'{"text": "x", "a": {"b": 1, "b": 2}}\n', "'b' twice"),
        (b'{"text": "' + b"x" * (1 << 20) + b'y"}\n', "1 MiB"),
        (b'{"text": "' + "é".encode() * (1 << 19) + b'y"}\n', "1 MiB"),
        (b'{"text": "' + b"x" * (8 << 20) + b'"}\n', "8 MiB"),
        (b'{"text": "a\\u0000b"}\n', "NUL"),
        (b'{"text": "x", "id": "\\u0000"}\n', "NUL"),
        (b'{"text": "x", "id": 1.5}\n', "'id'"),
        (b'{"text": "x", "id": true}\n', "'id'"),
        (b'{"text": "x", "source": 3}\n', "'source'"),
        (b'{"text": "x", "namespace": ["a"]}\n', "'namespace'"),
        (b'{"text": "x", "id": "' + b"i" * 1025 + b'"}\n', "1024"),
        (b'{"text": "x"\n', "not JSON"),
        (b"\0\0\0\0\n", "not JSON"),
    ],
    ids=lambda value: value[:30] if isinstance(value, bytes) else value,
)
def test_a_bad_line_is_refused_with_place_and_reason_and_its_neighbours_are_read(line: bytes, reason: str) -> None:
    first, refused, last = read(None, GOOD + line + GOOD)
    assert isinstance(refused, Rejected)
    assert reason in refused.reason
    assert (refused.line, refused.offset, refused.end) == (2, len(GOOD), len(GOOD) + len(line))
    assert texts([first, last]) == ["good", "good"]
    assert (last.line, last.end) == (3, 2 * len(GOOD) + len(line))


def test_only_a_line_feed_ends_a_line_and_text_is_kept_as_it_is() -> None:
    text = "a\u2028b\u0085c\r\x0b\x0cde\u0301 \U0001f600"
    line = json.dumps({"text": text}, ensure_ascii=False).replace("\\r", "\\r").encode() + b"\n"
    assert texts(read(None, line * 2)) == [text, text]


def test_depth_64_and_64_bits_are_allowed() -> None:
    line = b'{"text": "x", "deep": ' + b"[" * 63 + b"]" * 63 + b', "n": [-9223372036854775808, 9223372036854775807]}'
    assert texts(read(None, line)) == ["x"]


def test_fields_are_named_by_the_caller_or_the_line() -> None:
    line = b'{"body": "x", "key": 7, "title": "T", "year": 1901, "source": "s", "namespace": "n"}'
    (item,) = read(None, line, Fields(text="body", id="key"))
    assert isinstance(item, Good)
    record = item.record
    assert (record.text, record.id, record.source, record.namespace) == ("x", "7", "s", "n")
    assert record.meta == {"title": "T", "year": 1901}
    (item,) = read(None, line, Fields("body", "key", ("year", "absent"), "other", "mine"))
    assert isinstance(item, Good)
    assert (item.record.source, item.record.namespace, item.record.meta) == ("mine", "other", {"year": 1901})


def test_without_a_source_the_file_is_the_source(tmp_path: Path) -> None:
    (item,) = read(tmp_path / "notes.jsonl", GOOD)
    assert isinstance(item, Good)
    assert (item.record.source, item.record.namespace, item.record.id) == ("notes.jsonl", "default", None)
    (item,) = read(None, GOOD)
    assert isinstance(item, Good)
    assert item.record.source == "stdin"


def test_text_is_a_record_a_line(tmp_path: Path) -> None:
    items = read(tmp_path / "a.txt", b"one\r\n\n  two \nthr\xffee\nfo\0ur\nfive")
    assert texts(items) == ["one", "  two ", "five"]
    assert [(item.line, item.offset) for item in items] == [(1, 0), (3, 6), (4, 13), (5, 20), (6, 26)]


def test_gzip_of_each_kind_reads_alike(tmp_path: Path) -> None:
    for name, data in {"a.jsonl": GOOD * 3, "a.txt": b"good\n" * 3, "a.csv": b"text\n" + b"good\n" * 3}.items():
        plain = read(tmp_path / name, data)
        packed = read(tmp_path / f"{name}.gz", gzip.compress(data))
        assert texts(plain) == texts(packed) == ["good"] * 3
        assert [item.end for item in plain] == [item.end for item in packed]


class TestTable:
    def test_rows_are_records_and_quoted_fields_hold_line_ends(self, tmp_path: Path) -> None:
        data = b'\xef\xbb\xbfid,text,title\n1,"a\nb ""c""",T\n,d,\n\n3,e,"U, V"\n'
        items = read(tmp_path / "a.csv", data)
        assert texts(items) == ['a\nb "c"', "d", "e"]
        records = [item.record for item in items if isinstance(item, Good)]
        assert [(record.id, dict(record.meta)) for record in records] == [
            ("1", {"title": "T"}),
            (None, {}),
            ("3", {"title": "U, V"}),
        ]
        assert [data[item.offset : item.end].count(b"\n") for item in items] == [2, 1, 1]

    def test_tabs(self, tmp_path: Path) -> None:
        assert texts(read(tmp_path / "a.tsv", b"n\ttext\n1\ta, b\n")) == ["a, b"]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [(b"1\n", "has 1 fields"), (b"1,2,3\n", "has 3 fields"), (b'1,"a"b\n', "not a row"), (b"1,\xff\n", "UTF-8"),
         (b"1, \n", "empty"), (b"1,a\0b\n", "NUL")],
    )  # fmt: skip
    def test_a_bad_row_does_not_take_the_next_with_it(self, row: bytes, reason: str, tmp_path: Path) -> None:
        items = read(tmp_path / "a.csv", b"id,text\n0,first\n" + row + b"2,last\n")
        assert texts(items) == ["first", "last"]
        assert reason in reasons(items)[0]

    def test_an_open_quote_costs_8_mib_at_most(self, tmp_path: Path) -> None:
        items = read(tmp_path / "a.csv", b'text\n"open\n' + (b"line" * 50 + b"\n") * 60_000)
        assert "8 MiB" in reasons(items)[0]
        assert len(texts(items)) > 10_000

    def test_a_long_text_fits(self, tmp_path: Path) -> None:
        assert len(texts(read(tmp_path / "a.csv", b"text\n" + b"x" * (1 << 20) + b"\n"))[0]) == 1 << 20

    @pytest.mark.parametrize("header", [b"id,body\n", b"text,a,a\n", b"\xff\n", b'"open'])
    def test_a_table_without_the_column_is_refused_whole(self, header: bytes, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="first line"):
            read(tmp_path / "a.csv", header + b"1,2\n")


class TestDocument:
    def test_an_array_of_objects(self, tmp_path: Path) -> None:
        data = ' [ {"text": "é"},\n {"text": 1} , {"text": "b", "n": NaN},\n{"text": "c"} ]\n'.encode()
        items = read(tmp_path / "a.json", data)
        assert texts(items) == ["é", "c"]
        assert len(reasons(items)) == 2
        assert [item.line for item in items] == [1, 2, 2, 3]
        assert [json.loads(data[item.offset : item.end]).get("text") for item in items] == ["é", 1, "b", "c"]

    def test_one_object(self, tmp_path: Path) -> None:
        assert texts(read(tmp_path / "a.json", b'{"text": "a"}\n')) == ["a"]

    @pytest.mark.parametrize("data", [b"", b" \n", b"[]", b"[ ]\n"])
    def test_an_empty_one(self, data: bytes, tmp_path: Path) -> None:
        assert read(tmp_path / "a.json", data) == []

    @pytest.mark.parametrize(
        "tail", [b"", b",", b",]", b", oops]", b"] x", b' {"text": "b"}]', b"," + b"[" * 200_000, b', "\xff"]']
    )
    def test_what_is_no_json_ends_it(self, tail: bytes, tmp_path: Path) -> None:
        items = read(tmp_path / "a.json", b'[{"text": "a"}' + tail)
        assert len(reasons(items)) == 1
        assert texts(items) == ([] if b"\xff" in tail else ["a"])


class TestInput:
    @pytest.mark.parametrize("name", ["missing.jsonl", "folder.jsonl", "pipe.jsonl", "a.pdf", "noending"])
    def test_what_is_no_readable_file_is_a_usage_error_at_once(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "folder.jsonl").mkdir()
        os.mkfifo(tmp_path / "pipe.jsonl")
        with pytest.raises(UsageError) as failure:
            check_input(tmp_path / name)
        assert name in str(failure.value.where)
        with pytest.raises(UsageError):
            read(tmp_path / name)

    def test_a_device_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
        with pytest.raises(UsageError, match="device"):
            check_input(tmp_path / "zero.jsonl")

    @pytest.mark.parametrize("keep", [-9, -1, 20])
    def test_damaged_gzip_gives_what_came_before(self, keep: int, tmp_path: Path) -> None:
        lines = b"".join(json.dumps({"text": os.urandom(40).hex()}).encode() + b"\n" for _ in range(5000))
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:keep])
        found: list[Item] = []
        with pytest.raises(DataError, match="damaged"):
            found.extend(read_records(tmp_path / "a.jsonl.gz", Fields()))
        (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
        with pytest.raises(DataError, match="damaged"):
            read(tmp_path / "b.jsonl.gz")

    @pytest.mark.parametrize("piece", [b"{}".ljust(4095) + b"\n", b"\0"])
    def test_a_gzip_bomb_is_refused(self, piece: bytes, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
            for _ in range(200):
                file.write(piece * ((1 << 20) // len(piece)))
        with pytest.raises(DataError, match="200 times"):
            for _ in read_records(tmp_path / "a.jsonl.gz", Fields()):
                pass

    def test_a_line_of_a_gigabyte_takes_little_memory(self, tmp_path: Path) -> None:
        with open(tmp_path / "a.jsonl", "wb") as file:
            file.write(GOOD)
            file.truncate(1 << 30)
            file.seek(0, 2)
            file.write(b"\n" + GOOD)
        code = (
            "import re; from pathlib import Path; from cmrn.memory.reading import *;"
            "items = list(read_records(Path('a.jsonl'), Fields()));"
            "assert [type(item).__name__ for item in items] == ['Good', 'Rejected', 'Good'], items;"
            "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 200 << 10


LINES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "a"]), inner),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)


@settings(max_examples=200)
@given(lines=st.lists(LINES, min_size=50, max_size=50), kind=st.sampled_from(["jsonl", "json", "csv", "txt", "tsv"]))
def test_ten_thousand_strange_lines_are_read_or_refused(
    lines: list[bytes], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"strange.{kind}"
    head = {"csv": b"id,text\n", "tsv": b"text\ta\n", "json": b"["}.get(kind, b"")
    data = head + (b",\n" if kind == "json" else b"\n").join(lines)
    end = 0
    # Only a table can be refused whole: where its first line ends in the middle of a quote, say.
    with suppress(DataError) if kind in ("csv", "tsv") else nullcontext():
        for item in read(path, data):
            assert end <= item.offset <= item.end <= len(data)
            end = item.end
            assert item.record.text.encode() if isinstance(item, Good) else item.reason
