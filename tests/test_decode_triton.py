"""Whole models that read one token by kernels against the plain ones; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.experts.pool import ExpertPool
from cmrn.generation import _after_one_token, _copy_tensors, _own
from cmrn.model import CMRN
from cmrn.records import CMRNOutput, CMRNState, map_tensors, tensors_of
from cmrn.sampling import SamplingConfig, draw
from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernels need Triton")

from cmrn.generation_triton import copy_all
from cmrn.sampling_triton import draw_one

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
USERS = ("temporal.layer", "temporal.events", "memory.attention", "routing.router", "model")


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """Read one token by the kernels, on whatever device."""
    with pytest.MonkeyPatch.context() as change:
        for user in USERS:
            change.setattr(f"cmrn.{user}.reads_one", lambda module, x_BTD, segments: on and x_BTD.shape[1] == 1)
        change.setattr(ExpertPool, "_are_few", lambda self, x_BTD: on and x_BTD.shape[1] == 1)
        yield


def make(pattern: bool, tied: bool) -> CMRN:
    torch.manual_seed(0)
    experts = tuple(
        ExpertConfig(name=f"e{i}", type="pattern" if pattern and i else "general", domains=("d",)) for i in range(3)
    )
    config = CMRNConfig(
        vocab_size=50, d_model=24, num_blocks=1, temporal_layers=2, head_dim=12, experts=experts, num_experts=3,
        memory_dim=20, memory_heads=2, working_memory=4, memory_blocks=(0,), router_dim=8, expert_hidden=16,
        tie_embeddings=tied, event_threshold=0.5, max_episode_length=3,
    )  # fmt: skip
    model = CMRN(config).to(DEVICE).eval()
    # Of the size that the layers add to, so that a norm enlarges no rounding error.
    torch.nn.init.normal_(model.embedding.weight)
    return model


def compare(actual: CMRNOutput, expected: CMRNOutput) -> None:
    assert_close(actual.logits, expected.logits)
    assert_close(actual.routing_weights, expected.routing_weights)
    assert torch.equal(actual.event_chain.begins_BT, expected.event_chain.begins_BT)
    pairs = zip(tensors_of(actual.states), tensors_of(expected.states), strict=True)
    for found, after in pairs:
        assert (found.shape, found.dtype) == (after.shape, after.dtype)
        if found.dtype.is_floating_point:
            assert_close(found, after, torch.float32)
        else:
            assert torch.equal(found, after)


@torch.no_grad()
@pytest.mark.parametrize(("pattern", "tied", "documents"), [(False, True, False), (True, False, True)])
def test_token_by_token_equals_the_plain_model(pattern: bool, tied: bool, documents: bool) -> None:
    model = make(pattern, tied)
    ids_BT = torch.randint(0, 50, (3, 9), device=DEVICE)
    names_BT = torch.tensor([[0] * 9, [0] * 7 + [1] * 2, [0] * 6 + [2, 2, 3]], device=DEVICE)

    def given(piece: slice) -> dict[str, Tensor]:
        return {"document_ids": names_BT[:, piece]} if documents else {}

    with kernels(False):
        states = model(ids_BT[:, :6], **given(slice(0, 6))).states
    for t in range(6, 9):
        piece = slice(t, t + 1)
        outputs = []
        for on in (True, False):
            with kernels(on):
                outputs.append(model(ids_BT[:, piece], states=states, **given(piece)))
        compare(*outputs)
        states = outputs[0].states


@torch.no_grad()
def test_a_text_may_begin_with_the_kernels() -> None:
    model = make(False, True)
    ids_BT = torch.randint(0, 50, (1, 1), device=DEVICE)
    with kernels(True):
        actual = model(ids_BT)
    with kernels(False):
        expected = model(ids_BT)
    assert_close(actual.logits, expected.logits)


@pytest.mark.parametrize("vocabulary", [7, 50, 9001])
def test_a_draw_in_one_launch_is_the_plain_draw(vocabulary: int) -> None:
    torch.manual_seed(0)
    logits_BV = 3 * torch.randn(6, vocabulary, device=DEVICE)
    logits_BV[1, 3:] = -torch.inf
    waiting_BV = torch.empty_like(logits_BV).exponential_()
    expected = ((logits_BV / 0.7).softmax(-1) / waiting_BV).argmax(-1)
    logits_BV[2, 5], logits_BV[3] = torch.nan, -torch.inf
    logits_BV[4, 0] = torch.inf
    expected[2:5] = -1
    assert torch.equal(draw_one(logits_BV, waiting_BV, 0.7), expected)


def test_all_tensors_of_a_state_are_copied_at_once() -> None:
    torch.manual_seed(0)
    shapes = ((3, 5), (2, 1, 9001), (4,), (1,), (0, 2))
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64)
    sources = [torch.randn(shape, device=DEVICE).to(kind) for shape, kind in zip(shapes, kinds, strict=True)]
    sources[0] = sources[0].t().contiguous().t()
    targets = [torch.zeros_like(source, memory_format=torch.contiguous_format) for source in sources]
    copy_all(targets, sources)
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source)


@torch.no_grad()
def test_a_model_s_state_is_copied() -> None:
    model = make(True, True)
    first, second = (model(torch.randint(0, 50, (2, 3), device=DEVICE)).states for _ in range(2))
    own: CMRNState = map_tensors(first, _own)
    _copy_tensors(own, second)
    for target, source in zip(tensors_of(own), tensors_of(second), strict=True):
        assert torch.equal(target, source)


@torch.no_grad()
def test_a_compiler_can_take_a_step_whole() -> None:
    model = make(False, True)
    prompts = torch.randint(0, 50, (2, 2, 3), device=DEVICE)
    first, second = (_after_one_token(model(prompt_BT).states) for prompt_BT in prompts)
    own: CMRNState = map_tensors(first, _own)
    ids_BT = torch.randint(0, 50, (2, 1), device=DEVICE)

    def step() -> Tensor:
        output = model(ids_BT, states=own)
        _copy_tensors(own, output.states)
        return output.logits

    results = []
    # Only a CPU's ids are looked at by the host.
    with kernels(True), patch("cmrn.arguments.check_range", lambda *_: None):
        for run in (step, torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")):
            _copy_tensors(own, second)
            results.append([run(), *map(_own, tensors_of(own))])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.gpu
@torch.no_grad()
def test_a_token_on_the_device_is_read_by_kernels() -> None:
    model = make(False, True)
    ids_BT = torch.randint(0, 50, (2, 7), device=DEVICE)
    states = model(ids_BT[:, :6]).states
    actual = model(ids_BT[:, 6:], states=states)
    with torch.enable_grad():
        expected = model(ids_BT[:, 6:], states=states)
    compare(actual, expected)


@pytest.mark.gpu
def test_a_draw_on_the_device_repeats_with_its_generator() -> None:
    logits_BV = torch.randn(4, 100, device=DEVICE)
    draws = [draw(logits_BV, SamplingConfig(0.9), torch.Generator(DEVICE).manual_seed(3)) for _ in range(2)]
    assert torch.equal(*draws)
