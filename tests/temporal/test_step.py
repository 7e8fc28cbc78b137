"""One token of the gated delta rule against its definition, and which form is chosen."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from cmrn.temporal import chunked, reference, rule, step
from tests.temporal.test_delta_rule import rule_inputs, run_with_gradients
from tests.tolerances import assert_close


@pytest.mark.parametrize("starts", [(), (0,)], ids=["within", "start"])
def test_one_token_equals_the_definition(starts: tuple[int, ...]) -> None:
    inputs = rule_inputs(1, starts=starts)
    expected, expected_gradients = run_with_gradients(reference.gated_delta_rule, inputs)
    actual, gradients = run_with_gradients(step.gated_delta_rule, inputs)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert_close(a, e)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name])


def test_token_by_token_equals_the_whole() -> None:
    inputs = rule_inputs(70, starts=(31,))
    state, outputs, surprises = inputs[5], [], []
    for t in range(70):
        o, state, surprise = step.gated_delta_rule(*(x[:, t : t + 1] for x in inputs[:5]), state)
        outputs.append(o)
        surprises.append(surprise)
    for a, e in zip(
        (torch.cat(outputs, 1), state, torch.cat(surprises, 1)), chunked.gated_delta_rule(*inputs), strict=True
    ):
        assert_close(a, e)


def test_types_are_those_of_q_and_of_the_state() -> None:
    inputs = rule_inputs(1)
    narrow = [x.to(torch.bfloat16) for x in inputs[:3]] + [x.float().requires_grad_() for x in inputs[3:]]
    with torch.autocast("cpu", torch.bfloat16):
        o, state, surprise = step.gated_delta_rule(*narrow)
    assert (o.dtype, state.dtype, surprise.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert state.requires_grad
    assert not surprise.requires_grad
    exact = reference.gated_delta_rule(*(x.double() for x in narrow))
    assert_close(state, exact[1], torch.float32)
    assert_close(surprise, exact[2], torch.float32)


@pytest.mark.parametrize(("length", "chosen"), [(1, step), (2, chunked)])
def test_one_token_takes_the_step(length: int, chosen: object, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def record(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        called.append(len(inputs))
        return inputs[2], inputs[5], inputs[4]

    monkeypatch.setattr(chosen, "gated_delta_rule", record)
    rule.gated_delta_rule(*rule_inputs(length))
    assert called == [6]


def test_a_step_is_faster_than_a_chunk_of_one() -> None:
    inputs = [x.float() for x in rule_inputs(1, width=(64, 64))]

    def seconds(form: object) -> float:
        started = time.perf_counter()
        for _ in range(20):
            form(*inputs)  # type: ignore[operator]
        return time.perf_counter() - started

    with torch.no_grad():
        pairs = [(seconds(step.gated_delta_rule), seconds(chunked.gated_delta_rule)) for _ in range(5)]
    assert min(a for a, _ in pairs) < min(b for _, b in pairs)
