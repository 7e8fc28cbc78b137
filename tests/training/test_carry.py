"""A state carried from batch to batch is the state of the text read in one go."""

from __future__ import annotations

import pytest
import torch

from cmrn.data.packing import Batch
from cmrn.errors import CheckpointError, UsageError
from cmrn.model import CMRN
from cmrn.records import tensors_of
from cmrn.training.accumulate import accumulate
from cmrn.training.carry import fill_states, fresh_states, join_rows, keep_finite, rows_of, state_tensors
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.step import PlainStep
from tests.training.small_run import datasets, make_trainer, model_config, tokenizer, training_config


def chunks(rows: int = 3, length: int = 24, seed: int = 0) -> tuple[Batch, Batch, Batch]:
    """(a text, its first half, its second half), of documents that go on across the middle."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 280, (rows, 2 * length), generator=draw)
    documents = (torch.rand(rows, 2 * length, generator=draw) < 0.05).cumsum(1)
    whole = Batch(ids, documents, torch.zeros_like(ids), ids.clone())
    halves = (
        Batch(**{name: each[:, part] for name, each in vars(whole).items()})
        for part in (slice(0, length), slice(length, None))
    )
    return whole, *halves  # type: ignore[return-value]


def model() -> CMRN:
    torch.manual_seed(0)
    return CMRN(model_config(dropout=0.0)).double().eval()


def test_halves_read_on_from_one_another_give_the_loss_of_the_whole() -> None:
    net, (whole, first, second) = model(), chunks()
    apart = accumulate(net, whole, 3, "float32", fresh_states(net, whole, "float32"))
    assert torch.equal(apart.loss, accumulate(net, whole, 3, "float32").loss)
    one = accumulate(net, first, 3, "float32", fresh_states(net, first, "float32"))
    two = accumulate(net, second, 3, "float32", one.states)
    counts = [int((each.document_ids_BT[:, 1:] == each.document_ids_BT[:, :-1]).sum()) for each in (first, second)]
    counts[1] += int((second.document_ids_BT[:, 0] == first.document_ids_BT[:, -1]).sum())
    together = (one.loss * counts[0] + two.loss * counts[1]) / sum(counts)
    torch.testing.assert_close(together, apart.loss, rtol=1e-10, atol=1e-10)
    assert apart.states is not None
    assert two.states is not None
    ends = [net(whole.input_ids_BT, document_ids=whole.document_ids_BT).states, two.states]
    for expected, actual in zip(*(tensors_of(each.blocks[0].temporal[0].memory_BHKV) for each in ends), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_what_is_carried_has_no_gradient_and_micro_batches_change_nothing() -> None:
    net, (_, first, second) = model(), chunks()
    states = accumulate(net, first, 3, "float32", fresh_states(net, first, "float32")).states
    assert states is not None
    assert not any(each.requires_grad for each in tensors_of(states))
    whole, rows = (accumulate(net, second, size, "float32", states) for size in (3, 1))
    torch.testing.assert_close(rows.loss, whole.loss)
    assert rows.states is not None
    assert whole.states is not None
    for one, other in zip(tensors_of(rows.states), tensors_of(whole.states), strict=True):
        torch.testing.assert_close(one, other)
    parts = [rows_of(states, slice(row, row + 1)) for row in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(join_rows(parts)), tensors_of(states), strict=True))


def test_the_step_carries_on_and_a_step_that_is_not_finite_leaves_the_state() -> None:
    net, (_, first, second) = model().float(), chunks()
    config = training_config()
    step = PlainStep(net, OptimizerSet(parameter_groups(net, config)), 1.0, "float32", carry=True)
    assert step.carried.tensors() == {}
    step(first, 3, 0.0)()
    kept = {name: each.clone() for name, each in step.carried.tensors().items()}
    assert kept
    again = PlainStep(net, OptimizerSet(parameter_groups(net, config)), 1.0, "float32", carry=True)
    again.carried.restore(kept)
    assert again(second, 3, 0.0)().loss == step(second, 3, 0.0)().loss
    kept = {name: each.clone() for name, each in step.carried.tensors().items()}
    with torch.no_grad():
        net.embedding.weight[2:] = torch.nan
    assert not step(first, 3, 0.0)().finite
    assert all(torch.equal(each, kept[name]) for name, each in step.carried.tensors().items())


def test_buffers_take_what_is_finite_and_refuse_what_is_not_theirs() -> None:
    net, (_, first, _) = model(), chunks()
    states = fresh_states(net, first, "float32")
    new = accumulate(net, first, 3, "float32", states).states
    assert new is not None
    before = {name: each.clone() for name, each in state_tensors(states).items()}
    keep_finite(states, new, torch.zeros(()))
    assert all(torch.equal(each, before[name]) for name, each in state_tensors(states).items())
    keep_finite(states, new, torch.ones(()))
    assert any(not torch.equal(each, before[name]) for name, each in state_tensors(states).items())
    fill_states(states, before)
    assert all(torch.equal(each, before[name]) for name, each in state_tensors(states).items())
    with pytest.raises(CheckpointError, match="not of this model and batch"):
        fill_states(states, dict(list(before.items())[1:]))


def test_a_long_term_memory_that_the_model_lacks_is_not_read() -> None:
    trainer = make_trainer(None, memory_reach=4)
    with pytest.raises(UsageError, match="the model has none"):
        trainer.train(*datasets(tokenizer(), trainer.model.config))


def test_rows_that_do_not_read_on_are_refused() -> None:
    trainer = make_trainer(None, carry_states=True)
    with pytest.raises(UsageError, match="LaneDataset"):
        trainer.train(*datasets(tokenizer(), trainer.model.config))
