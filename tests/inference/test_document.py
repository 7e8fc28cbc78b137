from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cmrn import CMRN, CMRNConfig, CMRNTokenizer
from cmrn.errors import DataError, UsageError
from cmrn.inference.document import PIECE, read_document, text_of

TEXT = "the cat sat on the mat, naïve café, 猫と犬 😀. " * 8


@pytest.fixture(scope="module")
def reader() -> CMRN:
    tokenizer = CMRNTokenizer.train([TEXT], 300)
    config = CMRNConfig(vocab_size=tokenizer.vocab_size, d_model=32, head_dim=16, num_blocks=2, temporal_layers=1,
                        memory_dim=16, memory_heads=2, num_experts=2, working_memory=16, episodic_memory=96,
                        episodic_chunk=16, episodic_keep=8, gradient_checkpointing=False)  # fmt: skip
    torch.manual_seed(1)
    return CMRN(config, tokenizer).double().eval()


def test_a_file_comes_in_pieces_that_are_its_text(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(TEXT * 400, encoding="utf-8")
    pieces = list(text_of(path))
    assert "".join(pieces) == TEXT * 400
    assert len(pieces) > 2
    assert max(len(piece.encode()) for piece in pieces) <= PIECE + 3


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"a" * PIECE + b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        list(text_of(path))
    path.write_bytes("猫".encode()[:2])
    with pytest.raises(DataError, match="not UTF-8"):
        list(text_of(path))
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot be read"):
            list(text_of(wrong))


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_reading_in_pieces_is_reading_at_once(reader: CMRN, chunk: int) -> None:
    ids = torch.tensor([reader.tokenizer.encode(TEXT)])
    with torch.no_grad():
        reader.reset_memory()
        whole = reader(ids, update_memory=True).states
        wanted = reader.episodic.entries(reader.config.reading_blocks[0]).keys_BHNC.clone()
        reader.reset_memory()
        reading = read_document(reader, [TEXT], chunk=chunk)
    assert reading.tokens == ids.shape[1]
    found = reader.episodic.entries(reader.config.reading_blocks[0]).keys_BHNC
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(reading.states.last_hidden_BD, whole.last_hidden_BD, rtol=0, atol=1e-9)


def test_memory_stays_within_its_capacity_whatever_the_length(reader: CMRN) -> None:
    reader.reset_memory()
    sizes = []
    for times in (2, 8):
        told: list[int] = []
        reading = read_document(reader, [TEXT] * times, chunk=64, progress=told.append)
        sizes.append((len(reader.episodic), reader.episodic.stats().bytes))
        assert told == [*range(64, reading.tokens, 64), reading.tokens]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == reader.episodic.stats().capacity


def test_a_model_without_long_term_memory_carries_its_state(reader: CMRN) -> None:
    config = reader.config.model_copy(update={"episodic_memory": 0})
    torch.manual_seed(1)
    plain = CMRN(config, reader.tokenizer).double().train()
    reading = read_document(plain, [TEXT], chunk=10)
    assert plain.training
    plain.eval()
    with torch.no_grad():
        whole = plain(torch.tensor([reader.tokenizer.encode(TEXT)])).states
    torch.testing.assert_close(reading.states.last_hidden_BD, whole.last_hidden_BD, rtol=0, atol=1e-9)


def test_nothing_to_read_is_refused(reader: CMRN) -> None:
    for text in ([], [""], ["", ""]):
        with pytest.raises(DataError, match="no text"):
            read_document(reader, text)
    with pytest.raises(UsageError, match="chunk"):
        read_document(reader, [TEXT], chunk=0)


def test_the_seeds_example_of_a_long_document_runs_as_printed(reader: CMRN) -> None:
    model, tokenizer, long_document = reader.float(), reader.tokenizer, TEXT * 40
    model.reset_memory()
    chunks = tokenizer.chunk_text(long_document, chunk_size=2048)

    for chunk in chunks:
        inputs = tokenizer(chunk, return_tensors="pt")
        _ = model(inputs.input_ids, update_memory=True)

    question = "What are the main conclusions drawn in this document?"
    question_inputs = tokenizer(question, return_tensors="pt")
    answer = model.generate(question_inputs.input_ids, max_length=150)
    assert len(chunks) > 1
    assert len(model.episodic) == model.episodic.stats().capacity
    assert question_inputs.input_ids.shape[1] < answer.shape[1] <= 150
    model.double()
