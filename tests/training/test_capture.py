"""The captured step on a CUDA device: it trains as the plain one does, skips what is not finite, and restarts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.model import CMRN
from cmrn.training.capture import CapturedStep
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.step import PlainStep, TrainingStep, training_step
from tests.training.small_run import model_config, training_config
from tests.training.test_step import batch

pytestmark = pytest.mark.gpu

SHAPE = {"vocab_size": 280, "d_model": 128, "memory_dim": 128, "head_dim": 64, "expert_hidden": 128, "dropout": 0.0,
         "working_memory": 16}  # fmt: skip


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        model: nn.Module = Llama(LlamaConfig(vocab_size=280, d_model=128, layers=2, hidden=256, head_dim=64))
    else:
        model = CMRN(model_config(**SHAPE))
    return model.cuda().train()


def make(model: nn.Module, capture: bool) -> tuple[TrainingStep, OptimizerSet]:
    optimizers = OptimizerSet(parameter_groups(model, training_config(learning_rate=3e-3)))
    step = training_step(model, optimizers, 1.0, "bfloat16", capture=capture)
    assert isinstance(step, CapturedStep if capture else PlainStep)
    return step, optimizers


@pytest.mark.parametrize("rows", [8, 4])
@pytest.mark.parametrize("kind", ["llama", "cmrn"])
def test_it_trains_as_plain_steps_do(kind: str, rows: int) -> None:
    losses = []
    for capture in (False, True):
        step, _ = make(build(kind), capture)
        # Routing noise differs between the two, so their losses agree only roughly.
        losses.append([step(batch(8, 64, seed=n % 3), rows, 1.0)().loss for n in range(30)])
    plain, captured = losses
    assert captured[0] == pytest.approx(plain[0], abs=0.05)
    assert captured[-1] == pytest.approx(plain[-1], rel=0.1)
    assert captured[-1] < captured[0] - 1


def test_capturing_changes_nothing_but_what_the_step_does() -> None:
    model = build("cmrn")
    step, optimizers = make(model, True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.cuda.get_rng_state()
    step._record(batch(8, 64), 8)  # type: ignore[attr-defined]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert all(not state.any() for state in optimizers.tensors().values())
    assert all(block._compiled_call_impl is None for block in model.blocks)  # type: ignore[union-attr]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    model = build("cmrn")
    step, optimizers = make(model, True)
    assert step(batch(8, 64), 8, 1.0)().finite
    weight = model.final_norm.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in (*model.state_dict().items(), *optimizers.tensors().items())}
    assert not step(batch(8, 64), 8, 1.0)().finite
    for name, tensor in (*model.state_dict().items(), *optimizers.tensors().items()):
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
    with torch.no_grad():
        weight.copy_(kept)
    assert step(batch(8, 64), 8, 1.0)().finite


def test_another_shape_is_recorded_anew() -> None:
    step, _ = make(build("cmrn"), True)
    for rows, length in ((8, 64), (4, 96), (8, 64)):
        assert step(batch(rows, length), rows, 1.0)().finite


def test_a_saved_state_goes_on() -> None:
    model = build("llama")
    step, optimizers = make(model, True)
    for n in range(3):
        step(batch(8, 64, n), 8, 1.0)()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in optimizers.tensors().items()}
    after = step(batch(8, 64, 3), 8, 1.0)(), step(batch(8, 64, 4), 8, 1.0)()

    other = build("llama")
    other.load_state_dict(weights)
    again, resumed = make(other, True)
    resumed.load(state)
    for expected, seed in zip(after, (3, 4), strict=True):
        assert again(batch(8, 64, seed), 8, 1.0)().loss == pytest.approx(expected.loss, abs=1e-3)
