from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cmrn import CMRN, CMRNTokenizer
from cmrn.errors import CMRNError, DataError
from cmrn.inference import ExpertWeight, Trace, trace, trace_text
from cmrn.memory.entries import NOTHING, SHARED
from cmrn.records import Event

TEXT = "the cat sat. def f(x): naïve 猫 😀 <|endoftext|> end"


@pytest.fixture
def rememberer(model: CMRN, tokenizer: CMRNTokenizer) -> CMRN:
    """The model of these tests with a long-term memory, which is empty."""
    fields = {"episodic_memory": 96, "episodic_chunk": 8, "dropout": 0.0}
    torch.manual_seed(4)
    return CMRN(model.config.model_copy(update=fields), tokenizer).eval()


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
    assert list(document["events"][0]) == ["start", "end", "surprise", "previous"]


def test_events_name_the_one_before() -> None:
    events = (Event(0, 2, 1.0), Event(2, 5, 3.0, previous=0), Event(5, 6, 2.0, previous=1))
    document = Trace((), (), events, None).to_json()
    assert [event["previous"] for event in document["events"]] == [None, 0, 1]


def test_a_memory_that_holds_something_is_shown_to_be_read(rememberer: CMRN, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares are those of the forward pass; the memory is left as it was."""
    memory, ids = rememberer.episodic, rememberer.tokenizer(TEXT, return_tensors="pt").input_ids
    assert not any(token.memory for token in trace_text(rememberer, TEXT).tokens)
    with torch.no_grad():
        for namespace, record in (("math", 7), (SHARED, NOTHING)):
            memory.begin(namespace, record)
            rememberer(ids, update_memory=True)
        tokens, shown = memory.tokens, memory.shown
        memory.shown = memory.config.episodic_memory
        output = rememberer(ids)
        memory.shown = shown
    traced = trace_text(rememberer, TEXT)
    assert (memory.tokens, memory.shown) == (tokens, shown)
    for t, token in enumerate(traced.tokens):
        assert token.memory
        weights = [entry.weight for entry in token.memory]
        assert weights == sorted(weights, reverse=True)
        for entry in token.memory:
            assert (entry.record, entry.document, entry.namespace) in {(7, 0, "math"), (None, 1, SHARED)}
            shares = []
            for read in output.memory_hits:
                is_it_M = (read.documents_BTM[0, t] == entry.document) & (read.places_BTM[0, t] == entry.place)
                shares.append(float(read.weights_BTM[0, t, is_it_M].sum()))
            assert entry.weight == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    monkeypatch.setattr(trace, "CHUNK", 7)
    for one, other in zip(traced.tokens, trace_text(rememberer, TEXT).tokens, strict=True):
        assert other.memory[0].weight == pytest.approx(one.memory[0].weight, abs=1e-4)
    document = traced.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document["tokens"][0]["memory"][0]) == ["record", "document", "place", "namespace", "weight"]


def test_empty_text_is_refused(model: CMRN) -> None:
    with pytest.raises(DataError, match="empty"):
        trace_text(model, "")


def test_a_model_without_tokenizer_says_so(model: CMRN) -> None:
    with pytest.raises(CMRNError, match="no tokenizer"):
        trace_text(CMRN(model.config), TEXT)
