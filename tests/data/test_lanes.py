"""Lanes read section after section to its end, every token once an epoch, and follow from seed and cursor alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.data import Cursor, Document, LaneDataset, lanes
from cmrn.errors import CheckpointError
from cmrn.tokenizer import CMRNTokenizer
from tests.data.test_packing import DOCUMENTS, SMALL, TEXT


def build(documents: list[Document], tokenizer: CMRNTokenizer, length: int = 8, **options: object) -> LaneDataset:
    return LaneDataset.build(documents, tokenizer, ("math", "code"), length, **options)  # type: ignore[arg-type]


@given(texts=st.lists(TEXT, min_size=1, max_size=6), length=SMALL, seed=st.integers(0, 9), count=st.integers(1, 4))
def test_lanes_hold_every_document_once_an_epoch(
    tokenizer: CMRNTokenizer, texts: list[str], length: int, seed: int, count: int
) -> None:
    data = build([Document(text) for text in texts], tokenizer, length, seed=seed)
    wanted = Counter(tuple(tokenizer.encode(text)) for text in texts)
    found, open_in = Counter[tuple[int, ...]](), [[] for _ in range(count)]  # type: ignore[var-annotated]
    cursor = data.start()
    while cursor.rows[0] <= 2 * len(texts) + count:
        batch, cursor = data.batch(cursor, count)
        for lane, ids in enumerate(batch.input_ids_BT.tolist()):
            for token_id in ids:
                if token_id == tokenizer.eos_token_id:
                    found[tuple(open_in[lane])] += 1
                    open_in[lane] = []
                else:
                    open_in[lane].append(token_id)
    drawn = Counter({text: 2 * times for text, times in wanted.items()})
    assert all(found[text] + count >= drawn[text] for text in wanted)
    assert found.keys() <= wanted.keys()


@given(documents=DOCUMENTS, length=SMALL, count=st.integers(1, 5), seed=st.integers(0, 9))
def test_a_row_goes_on_with_the_document_its_lane_was_in(
    tokenizer: CMRNTokenizer, documents: list[Document], length: int, count: int, seed: int
) -> None:
    data = build(documents, tokenizer, length, seed=seed)
    first, cursor = data.batch(data.start(), count)
    second, _ = data.batch(cursor, count)
    numbers = torch.cat([first.document_ids_BT, second.document_ids_BT], 1)
    ended = torch.cat([first.input_ids_BT, second.input_ids_BT], 1)[:, :-1] == tokenizer.eos_token_id
    assert torch.equal(numbers[:, 1:] - numbers[:, :-1], ended.long())
    assert (numbers[:, 0] == 0).all()


@given(documents=DOCUMENTS, length=SMALL, count=st.integers(1, 5), steps=st.integers(1, 6))
def test_a_cursor_read_back_gives_the_same_batches(
    tokenizer: CMRNTokenizer, documents: list[Document], length: int, count: int, steps: int
) -> None:
    data, again = build(documents, tokenizer, length), build(documents, tokenizer, length)
    cursor = data.start()
    for _ in range(steps):
        _, cursor = data.batch(cursor, count)
    one, _ = data.batch(cursor, count)
    other, _ = again.batch(Cursor.from_json(cursor.to_json()), count)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_long_documents_are_read_in_sections(tokenizer: CMRNTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SECTION", 10)
    data = build([Document("question. " * 40)], tokenizer, 8)
    cursor, sections = data.start(), Counter[int]()
    while cursor.rows[0] < 12:
        batch, cursor = data.batch(cursor, 1)
        sections.update(batch.document_ids_BT[0].tolist())
    lengths = [sections[number] for number in range(10)]
    assert set(lengths[:2]) <= {10, data.tokens % 10 or 10}
    assert max(lengths) == 10


def test_tokens_follow_the_weights(tokenizer: CMRNTokenizer) -> None:
    texts = [Document("that is the question. " * 30, "math", source_index=0)] * 3
    texts += [Document("not", "code", source_index=1)] * 3
    data = build(texts, tokenizer, 16, weights=[1.0, 3.0])
    cursor, tokens = data.start(), Counter[int]()
    for _ in range(200):
        batch, cursor = data.batch(cursor, 4)
        tokens.update(batch.domain_ids_BT.flatten().tolist())
    assert tokens[1] / sum(tokens.values()) == pytest.approx(0.75, abs=0.05)


def test_a_cursor_of_other_lanes_is_refused(tokenizer: CMRNTokenizer) -> None:
    data = build([Document("that is the question.")], tokenizer, 4)
    _, cursor = data.batch(data.start(), 2)
    with pytest.raises(CheckpointError, match="2 lanes, the batch has 3"):
        data.batch(cursor, 3)
    with pytest.raises(CheckpointError, match="four counts"):
        Cursor.from_json('{"rows": [1], "lanes": [[1, 2]]}')
