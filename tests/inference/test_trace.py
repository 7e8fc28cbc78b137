from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn import CMRN
from cmrn.errors import CMRNError, DataError
from cmrn.inference import ExpertWeight, trace, trace_text

TEXT = "the cat sat. def f(x): naïve 猫 😀 <|endoftext|> end"


def sums_to_one(weights: tuple[ExpertWeight, ...]) -> bool:
    return abs(sum(weight.weight for weight in weights) - 1.0) < 1e-5


def is_ranked(weights: tuple[ExpertWeight, ...]) -> bool:
    return sorted((w.weight for w in weights), reverse=True) == [w.weight for w in weights]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_tokens_cover_the_text_and_weights_sum_to_one(model: CMRN, text: str) -> None:
    found = trace_text(model, text)
    covered = {place for token in found.tokens for place in range(token.start, token.end)}
    assert covered == set(range(len(text)))
    assert [token.text for token in found.tokens] == [text[token.start : token.end] for token in found.tokens]
    for token in found.tokens:
        assert len(token.blocks) == model.config.num_blocks
        assert all(sums_to_one(weights) and is_ranked(weights) for weights in (token.experts, *token.blocks))
        assert token.surprise >= 0
    assert [event.start for event in found.events] == [0, *(event.end for event in found.events[:-1])]
    assert found.events[-1].end == len(found.tokens)
    assert abs(sum(expert.weight for expert in found.experts) - 1.0) < 1e-5


def test_trace_shows_the_records_of_the_forward_pass(model: CMRN) -> None:
    ids = model.tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model.eval()(ids)
    found = trace_text(model.train(), TEXT)
    for index, expert in enumerate(model.config.named_experts):
        for t, token in enumerate(found.tokens):
            assert {w.name: w.weight for w in token.experts}[expert.name] == output.routing_weights[0, t, index]
            for block, routing in zip(token.blocks, output.routing, strict=True):
                assert {w.name: w.weight for w in block}[expert.name] == routing.weights_BTE[0, t, index]
        total = {e.name: e for e in found.experts}[expert.name]
        assert total.weight == pytest.approx(float(output.routing_weights[0, :, index].mean()), abs=1e-6)
        assert total.domains == expert.domains
    assert [token.surprise for token in found.tokens] == output.event_chain.surprise_BT[0].tolist()
    assert [event.start for event in found.events] == output.event_chain.begins_BT[0].nonzero()[:, 0].tolist()
    assert is_ranked(found.experts)
    assert model.training


def test_a_text_read_in_chunks_gives_the_same_trace(model: CMRN, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trace_text(model, TEXT)
    monkeypatch.setattr(trace, "CHUNK", 7)
    chunked = trace_text(model, TEXT)
    assert len(whole.tokens) > 14
    assert [e.start for e in chunked.events] == [e.start for e in whole.events]
    for one, other in zip(whole.tokens, chunked.tokens, strict=True):
        assert {w.name: pytest.approx(w.weight, abs=1e-4) for w in one.experts} == {
            w.name: w.weight for w in other.experts
        }
        assert one.surprise == pytest.approx(other.surprise, abs=1e-4)


def test_json_has_the_fixed_keys_and_plain_values(model: CMRN) -> None:
    document = trace_text(model, TEXT).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["experts", "tokens", "events", "unseen"]
    assert list(document["experts"][0]) == ["name", "domains", "weight"]
    keys = ["text", "start", "end", "experts", "blocks", "memory", "surprise", "unowned"]
    assert list(document["tokens"][0]) == keys
    assert list(document["tokens"][0]["experts"][0]) == ["name", "weight"]
    assert list(document["tokens"][0]["blocks"][0][0]) == ["name", "weight"]
    assert document["tokens"][0]["memory"] == []
    assert list(document["events"][0]) == ["start", "end", "surprise"]


def test_empty_text_is_refused(model: CMRN) -> None:
    with pytest.raises(DataError, match="empty"):
        trace_text(model, "")


def test_a_model_without_tokenizer_says_so(model: CMRN) -> None:
    with pytest.raises(CMRNError, match="no tokenizer"):
        trace_text(CMRN(model.config), TEXT)
