from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from cmrn.data.evaluation import EvaluationSet
from cmrn.model import CMRN
from cmrn.training.metrics import evaluate
from tests.training.small_run import HELD_OUT, LENGTH, model_config, tokenizer


def make() -> tuple[CMRN, EvaluationSet]:
    """A model in training mode, and held-out text in one lane, so that no document is cut in two."""
    torch.manual_seed(0)
    words = tokenizer()
    config = model_config(dropout=0.5)
    return CMRN(config, words).train(), EvaluationSet.build(HELD_OUT, words, config.domains, LENGTH, 1)


def test_figures_are_those_of_each_document_read_whole_and_alone() -> None:
    model, held_out = make()
    result = evaluate(model, held_out)
    assert model.tokenizer is not None
    model.eval()
    bits, purity, scored = {}, {}, 0
    for name, owner in (("animals", 0), ("numbers", 1)):
        nats, size, pure, read = 0.0, 0, 0, 0
        for document in (document for document in HELD_OUT if document.domain == name):
            ids = torch.tensor([model.tokenizer.encode(document.text)])
            with torch.no_grad():
                output = model(ids)
            nats += float(F.cross_entropy(output.logits[0, :-1].double(), ids[0, 1:], reduction="sum"))
            size += sum(len(model.tokenizer.token_bytes(int(token))) for token in ids[0, 1:])
            pure += int((output.routing_weights.argmax(-1) == owner).sum())
            read += ids.shape[1]
            scored += ids.shape[1] - 1
        bits[name], purity[name] = nats / math.log(2) / size, pure / read
    assert result.tokens == scored
    for found, expected in ((result.bits_per_byte, bits), (result.routing_purity, purity)):
        assert found.keys() == {"animals", "numbers", "mean"}
        assert found["mean"] == pytest.approx((found["animals"] + found["numbers"]) / 2)
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_the_model_and_the_generators_are_left_as_they_were() -> None:
    model, held_out = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, held_out, 64)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(not tensor.is_inference() for tensor in model.state_dict().values())


def test_no_more_tokens_of_a_domain_are_read_than_asked_and_purity_needs_an_owner() -> None:
    words = tokenizer()
    config = model_config(experts=None, num_experts=2)
    held_out = EvaluationSet.build(HELD_OUT, words, config.domains, LENGTH, 2)
    result = evaluate(CMRN(config, words), held_out, 20)
    assert 0 < result.tokens <= 40
    assert result.routing_purity == {}
    assert result.bits_per_byte.keys() == {"animals", "numbers", "mean"}


def test_what_is_called_between_batches_can_end_it() -> None:
    model, held_out = make()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, held_out, between=stop)
    assert model.training
