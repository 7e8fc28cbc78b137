"""The chunked gated delta rule against its definition, and the definition against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cmrn.temporal import chunked, reference
from tests.tolerances import assert_close

Rule = Callable[..., tuple[Tensor, Tensor, Tensor]]
NAMES = ("q", "k", "v", "g", "beta", "state")
LENGTHS = (1, 2, 63, 64, 65, 131, 200)
BATCH, HEADS, KEY, VALUE = 2, 2, 5, 3


def rule_inputs(
    length: int, *, starts: tuple[int, ...] = (), correlated: bool = False, width: tuple[int, int] = (KEY, VALUE)
) -> list[Tensor]:
    """q, k, v, g, beta and a state in float64; g is -inf at `starts`, in the first row only."""
    random = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=random)

    key_width, value_width = width
    q, k = (F.normalize(normal(BATCH, length, HEADS, key_width), dim=-1) for _ in range(2))
    v, beta = normal(BATCH, length, HEADS, value_width), normal(BATCH, length, HEADS).sigmoid()
    g = -F.softplus(normal(BATCH, length, HEADS) - 2.0)
    if correlated:
        k = F.normalize(k + 4.0 * k[:, :1], dim=-1)
        beta = 1.0 - 0.01 * beta
        g = 0.1 * g
    for start in starts:
        g[0, start] = -torch.inf
    return [q, k, v, g, beta, normal(BATCH, HEADS, key_width, value_width)]


def run_with_gradients(rule: Rule, inputs: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Output, last state and surprise, and the gradient of every input through output and state together."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    o, state, surprise = rule(*leaves)
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, dtype=torch.float64, generator=random).to(x.dtype) for x in (o, state)]
    gradients = torch.autograd.grad((o * weights[0]).sum() + (state * weights[1]).sum(), leaves)
    return [o, state, surprise], dict(zip(NAMES, gradients, strict=True))


def assert_same(inputs: list[Tensor]) -> None:
    """Chunked and reference agree in value and in every gradient."""
    expected, expected_gradients = run_with_gradients(reference.gated_delta_rule, inputs)
    actual, gradients = run_with_gradients(chunked.gated_delta_rule, inputs)
    for name, a, e in zip(("o", "state", "surprise"), actual, expected, strict=True):
        assert a.shape == e.shape, name
        assert_close(a, e)
    for name, gradient in gradients.items():
        assert_close(gradient, expected_gradients[name])
    assert not gradients["g"][inputs[3].isneginf()].any()


@pytest.mark.parametrize("correlated", [False, True], ids=["random", "correlated"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_the_definition(length: int, correlated: bool) -> None:
    assert_same(rule_inputs(length, correlated=correlated))


@pytest.mark.parametrize("starts", [(0,), (63,), (64,), (65,), (0, 64), (127, 128, 129), (0, 1, 2, 130), (5, 70, 71)])
def test_documents_may_start_anywhere(starts: tuple[int, ...]) -> None:
    assert_same(rule_inputs(131, starts=starts))
    assert_same(rule_inputs(131, starts=starts, correlated=True))


@given(length=st.integers(1, 40), size=st.integers(1, 9), starts=st.sets(st.integers(0, 39), max_size=6))
def test_any_length_chunk_and_starts(length: int, size: int, starts: set[int]) -> None:
    inside = tuple(start for start in starts if start < length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "CHUNK", size)
        assert_same(rule_inputs(length, starts=inside))


@pytest.mark.parametrize("keep", ["o", "state"])
def test_gradient_through_one_result_alone(keep: str) -> None:
    inputs = rule_inputs(70, starts=(66,))
    gradients = []
    for rule in (chunked.gated_delta_rule, reference.gated_delta_rule):
        leaves = [x.clone().requires_grad_() for x in inputs]
        o, state, _ = rule(*leaves)
        gradients.append(torch.autograd.grad((o if keep == "o" else state).square().sum(), leaves, allow_unused=True))
    for actual, expected in zip(*gradients, strict=True):
        assert_close(actual, torch.zeros_like(actual) if expected is None else expected)


@pytest.mark.parametrize(("length", "size"), [(3, 64), (7, 3), (8, 4)])
def test_gradcheck(length: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK", size)
    q, k, v, g, beta, state = (x[:1] for x in rule_inputs(length, width=(3, 2)))
    begins = torch.zeros_like(g, dtype=torch.bool)
    begins[0, length // 2] = True

    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        o, last, _ = chunked.gated_delta_rule(q, k, v, g.masked_fill(begins, -torch.inf), beta, state)
        return o, last

    leaves = [x.clone().requires_grad_() for x in (q, k, v, g, beta, state)]
    assert torch.autograd.gradcheck(rule, leaves)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm().detach() / expected.norm().detach())


@pytest.mark.parametrize(("correlated", "allowed"), [(False, 1e-2), (True, 2.5e-2)], ids=["random", "correlated"])
@pytest.mark.parametrize("starts", [(), (0, 40, 128)])
def test_bfloat16_products_stay_close(correlated: bool, allowed: float, starts: tuple[int, ...]) -> None:
    exact = rule_inputs(200, starts=starts, correlated=correlated, width=(32, 32))
    narrow = [x.to(torch.bfloat16) for x in exact[:3]] + [x.float() for x in exact[3:]]
    expected, expected_gradients = run_with_gradients(reference.gated_delta_rule, [x.double() for x in narrow])
    actual, gradients = run_with_gradients(chunked.gated_delta_rule, narrow)
    assert [x.dtype for x in actual] == [torch.bfloat16, torch.float32, torch.float32]
    errors = [relative_error(a, e) for a, e in zip(actual, expected, strict=True)]
    assert max(errors) <= allowed, errors
    found = {name: relative_error(gradient, expected_gradients[name]) for name, gradient in gradients.items()}
    assert max(found.values()) <= allowed, found


def test_definition_by_hand() -> None:
    """One head, key and value of width 1: S = 2·½ = 1; error ½(3 − 1) = 1; S = 2; read with q = 5."""
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    half = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    for rule in (reference.gated_delta_rule, chunked.gated_delta_rule):
        o, state, surprise = rule(5 * one, one, 3 * one, half.log(), half, 2 * one)
        assert o.item() == pytest.approx(10.0)
        assert state.item() == pytest.approx(2.0)
        assert surprise.item() == pytest.approx(1.0)


def test_orthonormal_keys_are_recalled_exactly() -> None:
    """β = 1, no decay, orthonormal keys: linear attention, which stores every value without interference."""
    size = 8
    keys = torch.eye(size, dtype=torch.float64)[None, :, None]
    values = torch.randn(1, size, 1, 4, dtype=torch.float64)
    zeros, ones = torch.zeros(1, size, 1, dtype=torch.float64), torch.ones(1, size, 1, dtype=torch.float64)
    state = torch.zeros(1, 1, size, 4, dtype=torch.float64)
    for rule in (reference.gated_delta_rule, chunked.gated_delta_rule):
        o, last, surprise = rule(keys, keys, values, zeros, ones, state)
        assert_close(o, values)
        assert_close(last[0, 0], torch.einsum("tk,tv->kv", keys[0, :, 0], values[0, :, 0]))
        assert_close(surprise, values.norm(dim=-1))
        again, _, unsurprised = rule(keys, keys, values, zeros, ones, last)
        assert_close(again, values)
        assert_close(unsurprised, zeros)


def test_writing_a_key_again_replaces_its_value() -> None:
    key = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 2, 1, 2)
    values = torch.tensor([3.0, -1.0], dtype=torch.float64).view(1, 2, 1, 1)
    rates = torch.zeros(1, 2, 1, dtype=torch.float64)
    state = torch.zeros(1, 1, 2, 1, dtype=torch.float64)
    for rule in (reference.gated_delta_rule, chunked.gated_delta_rule):
        o, last, surprise = rule(key, key, values, rates, rates + 1, state)
        assert_close(o, values)
        assert last.flatten().tolist() == [-1.0, 0.0]
        assert surprise.flatten().tolist() == [3.0, 4.0]


def test_without_writes_the_state_decays_by_the_product() -> None:
    q, k, v, g, beta, state = rule_inputs(100)
    _, last, surprise = chunked.gated_delta_rule(q, k, v, g, torch.zeros_like(beta), state)
    assert_close(last, g.sum(1).exp()[..., None, None] * state)
    assert not surprise.any()


def test_a_document_forgets_the_state_and_what_came_before() -> None:
    inputs = rule_inputs(90, starts=(30,))
    fresh = [x[:1, 30:] for x in inputs[:5]] + [torch.zeros_like(inputs[5][:1])]
    o, state, surprise = chunked.gated_delta_rule(*inputs)
    alone = chunked.gated_delta_rule(*fresh)
    for packed, single in zip((o[:1, 30:], state[:1], surprise[:1, 30:]), alone, strict=True):
        assert_close(packed, single)


def test_strong_decay_neither_overflows_nor_loses_gradient() -> None:
    q, k, v, g, beta, state = (x.float() for x in rule_inputs(130))
    leaves = [x.requires_grad_() for x in (q, k, v, 200.0 * g, beta, state)]
    o, last, _ = chunked.gated_delta_rule(*leaves)
    gradients = torch.autograd.grad(o.square().sum() + last.square().sum(), leaves)
    assert all(x.isfinite().all() for x in (o, last, *gradients))
