"""Lanes hold every held-out token once, in order, and count the bytes that are scored."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn.data import Document, EvaluationSet
from cmrn.data.evaluation import UNLABELLED
from cmrn.tokenizer import CMRNTokenizer

TEXT = st.lists(st.sampled_from(["be", "not", "🙂", "x1", "question. "]), min_size=1, max_size=20).map(" ".join)
DOCUMENT = st.builds(Document, TEXT, st.sampled_from([None, "math", "other"]))


@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=8),
    length=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    most=st.none() | st.integers(1, 60),
)
def test_lanes_hold_the_text_in_order(
    tokenizer: CMRNTokenizer, documents: list[Document], length: int, batch_size: int, most: int | None
) -> None:
    held = EvaluationSet.build(documents, tokenizer, ("math",), length, batch_size)
    assert set(held.domains) == {document.domain or UNLABELLED for document in documents}
    for name, stream in held.streams(most).items():
        windows = list(stream)
        ids, labels, numbers, real, scored = (
            torch.cat([getattr(window, field) for window in windows], dim=1)
            for field in ("input_ids_BT", "labels_BT", "document_ids_BT", "attention_mask_BT", "scored_BT")
        )
        tokens = held.tokens[name] if most is None else min(most, held.tokens[name])
        assert int(real.sum()) == tokens
        assert ids.shape[0] <= batch_size
        assert all(window.input_ids_BT.shape[1] <= length for window in windows)
        assert torch.equal(labels, ids.masked_fill(~real, -100))
        assert (ids[~real] == tokenizer.pad_token_id).all()
        texts = sorted(d.text for d in documents if (d.domain or UNLABELLED) == name)
        flat, flat_numbers = ids[real], numbers[real]
        read = [tokenizer.decode(flat[flat_numbers == number]) for number in flat_numbers.unique()]
        if most is None:
            assert sorted(read) == texts
        first = torch.ones_like(real)
        first[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        assert torch.equal(scored, real & ~first)
        assert (numbers.diff(dim=1) >= 0).all()
        assert sum(window.scored_bytes for window in windows) == sum(
            len(tokenizer.token_bytes(token_id)) for token_id in ids[scored].tolist()
        )
        assert {window.domain_id for window in windows} == {0 if name == "math" else -1}


def test_the_order_depends_on_the_texts_alone(tokenizer: CMRNTokenizer) -> None:
    documents = [Document(f"question {number} to be or not", "math") for number in range(20)]
    first, second = (
        EvaluationSet.build(part, tokenizer, ("math",), 8, 2).streams(64)["math"]
        for part in (documents, documents[::-1])
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.input_ids_BT, b.input_ids_BT)


def test_a_real_prefix_is_at_the_left_of_every_row(tokenizer: CMRNTokenizer) -> None:
    held = EvaluationSet.build([Document("to be or not to be " * 30)], tokenizer, (), 16, 4)
    for window in held.streams()[UNLABELLED]:
        mask = window.attention_mask_BT.long()
        assert (mask.diff(dim=1) <= 0).all()
