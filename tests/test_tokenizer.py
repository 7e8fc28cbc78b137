"""Any text comes back exactly, however it is cut, streamed or stored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.tokenizer import END_OF_TEXT, PADDING, SPECIAL_TOKENS, CMRNTokenizer

TRAINING = [
    "def area(radius):\n        return 3.14159 * radius ** 2\n\n\n    # the area of a circle\n" * 20,
    "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20,
    "naïve café, Ελλάδα, 日本語, 🙂🙂🙂 " * 20,
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, "\r\n", "\n    ", "\t", " ", "  ", "é", "e\u0301", "🙂", "日本", "1234", "times", ","]
)
TEXTS = UNICODE | st.lists(PIECES, max_size=30).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train(TRAINING, vocab_size=420)


@given(text=TEXTS)
def test_any_text_comes_back_exactly(tokenizer: CMRNTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "x"])[0] == ids
    assert min(ids, default=2) >= len(SPECIAL_TOKENS)
    assert int(tokenizer.byte_lengths[ids].sum()) == len(text.encode())


@given(text=TEXTS, chunk_size=st.integers(4, 40))
def test_chunks_join_to_the_text_and_fit(tokenizer: CMRNTokenizer, text: str, chunk_size: int) -> None:
    chunks = tokenizer.chunk_text(text, chunk_size)
    assert "".join(chunks) == text
    assert all(0 < len(tokenizer.encode(chunk)) <= chunk_size for chunk in chunks)


@given(text=TEXTS)
def test_offsets_span_the_characters_of_each_token(tokenizer: CMRNTokenizer, text: str) -> None:
    ids, spans = tokenizer.encode(text), tokenizer.offsets(text)
    assert len(spans) == len(ids)
    for token_id, (start, end) in zip(ids, spans, strict=True):
        assert start < end
        assert tokenizer.token_bytes(token_id) in text[start:end].encode()
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))


@given(ids=st.lists(st.integers(0, 299), max_size=60))
def test_streaming_any_ids_equals_decoding_them(tokenizer: CMRNTokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def test_the_stream_holds_back_an_unfinished_character(tokenizer: CMRNTokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in tokenizer.encode("𝔘")]
    assert len(pieces) == 4
    assert pieces == ["", "", "", "𝔘"]


def test_a_lone_surrogate_is_refused_by_name(tokenizer: CMRNTokenizer) -> None:
    for call in (tokenizer.encode, tokenizer, tokenizer.offsets, lambda text: tokenizer.chunk_text(text, 8)):
        with pytest.raises(DataError, match=r"U\+D83D, at character 2"):
            call("ab\ud83d")
    with pytest.raises(DataError, match="lone surrogate"):
        CMRNTokenizer.train(["\udc00"], 300)


def test_special_tokens_in_text_are_ordinary_text(tokenizer: CMRNTokenizer) -> None:
    assert not {0, 1} & set(tokenizer.encode(f"a{END_OF_TEXT}{PADDING}b"))
    assert tokenizer.decode([0, *tokenizer.encode("a"), 1]) == "a"
    assert tokenizer.decode([0, *tokenizer.encode("a"), 1], skip_special_tokens=False) == f"{END_OF_TEXT}a{PADDING}"
    again = CMRNTokenizer.from_json(tokenizer.to_json())
    assert again.encode(END_OF_TEXT) == tokenizer.encode(END_OF_TEXT) != [0]


def test_every_byte_has_a_token(tokenizer: CMRNTokenizer) -> None:
    assert {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)} >= {bytes([byte]) for byte in range(256)}


def test_indentation_is_one_token(tokenizer: CMRNTokenizer) -> None:
    assert b"):\n       " in [
        tokenizer.token_bytes(token_id) for token_id in tokenizer.encode("f(radius):\n        return")
    ]


def test_tensors_are_padded_on_the_right(tokenizer: CMRNTokenizer) -> None:
    encoded = tokenizer(["a", "the age of wisdom"], return_tensors="pt")
    assert encoded.input_ids.dtype == encoded["attention_mask"].dtype == torch.int64
    assert encoded.input_ids.shape == encoded.attention_mask.shape
    assert encoded.input_ids[0].tolist() == tokenizer.encode("a") + [1] * (encoded.input_ids.shape[1] - 1)
    assert encoded.attention_mask.sum(1).tolist() == [1, len(tokenizer.encode("the age of wisdom"))]
    assert tokenizer("wisdom", return_tensors="pt").input_ids.tolist() == [tokenizer.encode("wisdom")]
    assert tokenizer("wisdom").input_ids == tokenizer.encode("wisdom")
    assert dict(**tokenizer(["a", "bc"])) == {
        "input_ids": tokenizer.encode_batch(["a", "bc"]),
        "attention_mask": [[1], [1, 1]],
    }
    with pytest.raises(UsageError, match="return_tensors"):
        tokenizer("a", return_tensors="tf")  # type: ignore[arg-type]


def test_training_gives_the_same_tokenizer_in_every_process(tokenizer: CMRNTokenizer) -> None:
    code = (
        "import json, sys; from cmrn.tokenizer import CMRNTokenizer;"
        "print(CMRNTokenizer.train(json.load(sys.stdin), 420).fingerprint)"
    )
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(TRAINING),
            env={"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == tokenizer.fingerprint


def test_saving_and_loading_change_nothing(tokenizer: CMRNTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "deep" / "folder")
    folder = tmp_path / "deep" / "folder"
    for place in (folder, folder / "tokenizer.json", str(folder)):
        assert CMRNTokenizer.from_pretrained(place) == tokenizer
    assert [file.name for file in folder.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields["model"].update(type="WordPiece"), "not a"),
        (lambda fields: fields.update(normalizer={"type": "Lowercase"}), "without normalizer"),
        (lambda fields: fields["added_tokens"].pop(), "special tokens"),
        (lambda fields: fields.pop("model"), "not a tokenizer"),
        (lambda fields: fields["model"]["vocab"].pop("a"), "ids are not"),
    ],
)
def test_a_foreign_or_corrupt_file_is_refused(tokenizer: CMRNTokenizer, change, message: str, tmp_path: Path) -> None:
    fields = json.loads(tokenizer.to_json())
    change(fields)
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=message) as caught:
        CMRNTokenizer.from_pretrained(tmp_path)
    assert caught.value.where == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_what_is_not_a_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        CMRNTokenizer.from_pretrained(tmp_path)


def test_a_name_that_is_nothing_says_so() -> None:
    with pytest.raises(CheckpointError, match="no such tokenizer"):
        CMRNTokenizer.from_pretrained("cmrn-base")


def test_impossible_requests_are_refused(tokenizer: CMRNTokenizer) -> None:
    with pytest.raises(UsageError, match="too small"):
        CMRNTokenizer.train(TRAINING, 257)
    with pytest.raises(DataError, match="no text"):
        CMRNTokenizer.train(["", ""], 300)
    with pytest.raises(UsageError, match="chunk_size"):
        tokenizer.chunk_text("a", 0)
    with pytest.raises(UsageError, match="more than 2 tokens"):
        tokenizer.chunk_text("a𝔘", 2)
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            tokenizer.decode([token_id])


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(UNICODE.filter(bool), min_size=1, max_size=5), vocab_size=st.integers(258, 300))
def test_training_on_any_text_stays_within_the_vocabulary(texts: list[str], vocab_size: int) -> None:
    trained = CMRNTokenizer.train(texts, vocab_size)
    assert 258 <= trained.vocab_size <= vocab_size
    assert [trained.decode(trained.encode(text)) for text in texts] == texts
