"""What always holds of a model that reads long-term memory, carried in its states or held by the episodic memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.errors import UsageError
from cmrn.model import CMRN
from cmrn.records import LongReading
from tests.properties.small_models import (
    VOCABULARY,
    assert_same_state,
    embedding_gradient,
    pieces,
    random_documents,
    random_ids,
    small_config,
    small_model,
)
from tests.tolerances import assert_close

LENGTH = 26
cuts = st.sets(st.integers(1, LENGTH - 1), max_size=5)
seeds = st.integers(0, 1_000)
readings = st.sampled_from([LongReading(40), LongReading(40, 2, 0), LongReading(8, 3, 2), LongReading(40, 0, 3)])


def config(**changes: object) -> CMRNConfig:
    fields = {"working_memory": 5, "episodic_memory": 64, "episodic_chunk": 4, "episodic_reads": 0}
    return small_config(("general", "pattern"), **(fields | changes))


def model_of(seed: int = 1, **changes: object) -> CMRN:
    """Every learned part of long-term memory is moved from where it starts."""
    model = small_model(config(**changes), seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".memory.salience." in name:
                tensor.add_(0.3 * torch.randn_like(tensor))
    return model


@given(reading=readings, t=st.integers(1, LENGTH - 1), seed=seeds, packed=st.booleans())
def test_no_token_changes_what_was_said_before_it(reading: LongReading, t: int, seed: int, packed: bool) -> None:
    model, ids_BT = model_of(seed), random_ids(2, LENGTH, seed)
    documents_BT = random_documents(2, LENGTH, seed) if packed else None
    model.set_long_reading(reading)
    gradient = embedding_gradient(model, ids_BT, t, documents_BT)
    assert torch.equal(gradient[:, t:], torch.zeros_like(gradient[:, t:]))
    changed = ids_BT.clone()
    changed[:, t] = (changed[:, t] + 7) % VOCABULARY
    with torch.no_grad():
        before, after = (model(ids, document_ids=documents_BT).logits for ids in (ids_BT, changed))
    torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0.0, atol=1e-12)


@given(t=st.integers(1, LENGTH - 1), seed=seeds, keep=st.sampled_from([0, 2]), reads=st.sampled_from([0, 3]))
@torch.no_grad()
def test_nothing_stored_later_changes_what_was_said(t: int, seed: int, keep: int, reads: int) -> None:
    model, ids_BT = model_of(seed, episodic_keep=keep, episodic_reads=reads), random_ids(2, LENGTH, seed)
    changed = ids_BT.clone()
    changed[:, t] = (changed[:, t] + 7) % VOCABULARY
    logits = []
    for ids in (ids_BT, changed):
        model.reset_memory()
        logits.append(model(ids, update_memory=True).logits)
    torch.testing.assert_close(logits[1][:, :t], logits[0][:, :t], rtol=0.0, atol=1e-12)
    assert not torch.allclose(logits[1][:, t], logits[0][:, t])


def test_far_tokens_are_read_through_long_term_memory() -> None:
    """Without the recurrence, whose state also reaches back: only the memory read tells of a token beyond W."""
    model, ids_BT = model_of(memory_blocks=(0,)), random_ids(1, LENGTH)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".temporal." in name and name.endswith("output.weight"):
                tensor.zero_()
    for reading, reaches in ((None, False), (LongReading(40), True), (LongReading(8), False)):
        model.set_long_reading(reading)
        captured: list[Tensor] = []
        hook = model.embedding.register_forward_hook(
            lambda module, inputs, output, seen=captured: seen.append(output.detach().requires_grad_()) or seen[0]
        )
        logits = model(ids_BT).logits
        hook.remove()
        (gradient,) = torch.autograd.grad(logits[:, -1].sum(), captured[0])
        # A block that reads 5 tokens back and some convolutions of 4 and 3 tokens see no further than this.
        assert bool(gradient[:, :2].any()) == reaches


@given(reading=readings, cuts=cuts, seed=seeds, packed=st.booleans())
def test_any_split_gives_the_same_reading_state_and_loss(
    reading: LongReading, cuts: set[int], seed: int, packed: bool
) -> None:
    model, ids_BT = model_of(seed), random_ids(2, LENGTH, seed)
    documents_BT = random_documents(2, LENGTH, seed) if packed else None
    model.set_long_reading(reading)
    whole = model(ids_BT, ids_BT, document_ids=documents_BT)
    outputs, states = [], None
    for part in pieces(LENGTH, cuts):
        documents = None if documents_BT is None else documents_BT[:, part]
        outputs.append(model(ids_BT[:, part], ids_BT[:, part], document_ids=documents, states=states))
        states = outputs[-1].states
    assert_close(torch.cat([output.logits for output in outputs], 1), whole.logits)
    begins = torch.cat([output.event_chain.begins_BT for output in outputs], 1)
    assert torch.equal(begins, whole.event_chain.begins_BT)
    nats = sum(output.losses.language * output.losses.scored_tokens for output in outputs)
    assert_close(nats / whole.losses.scored_tokens, whole.losses.language)
    assert states is not None
    assert_same_state(states, whole.states)


@given(
    cuts=cuts,
    seed=seeds,
    keep=st.sampled_from([0, 2]),
    reads=st.sampled_from([0, 3]),
    capacity=st.sampled_from([8, 64]),
)
@torch.no_grad()
def test_any_split_remembers_alike(cuts: set[int], seed: int, keep: int, reads: int, capacity: int) -> None:
    model = model_of(seed, episodic_keep=keep, episodic_reads=reads, episodic_memory=capacity)
    ids_BT = random_ids(2, LENGTH, seed)
    whole = model(ids_BT, update_memory=True).logits
    held = [model.episodic.entries(block) for block in model.config.reading_blocks]
    model.reset_memory()
    states, logits = None, []
    for part in pieces(LENGTH, cuts):
        output = model(ids_BT[:, part], states=states, update_memory=True)
        states = output.states
        logits.append(output.logits)
    assert_close(torch.cat(logits, 1), whole)
    for block, expected in zip(model.config.reading_blocks, held, strict=True):
        for mine, theirs in zip(vars(model.episodic.entries(block)).values(), vars(expected).values(), strict=True):
            assert_close(mine.double(), theirs.double())


@given(seed=seeds, keep=st.sampled_from([0, 2]), reads=st.sampled_from([0, 3]))
@torch.no_grad()
def test_what_is_stored_reads_as_what_is_carried(seed: int, keep: int, reads: int) -> None:
    model, ids_BT = model_of(seed, episodic_keep=keep, episodic_reads=reads), random_ids(2, LENGTH, seed)
    stored = model(ids_BT, update_memory=True).logits
    model.set_long_reading(LongReading(40, keep, reads))
    assert_close(model(ids_BT).logits, stored)


@settings(max_examples=10)
@given(seed=seeds, packed=st.booleans())
def test_memory_off_is_a_model_without_memory(seed: int, packed: bool) -> None:
    model, ids_BT = model_of(seed), random_ids(2, LENGTH, seed)
    documents_BT = random_documents(2, LENGTH, seed) if packed else None
    bare = small_model(config(episodic_memory=0), seed)
    bare.load_state_dict({name: t for name, t in model.state_dict().items() if ".memory.salience." not in name})
    expected = bare(ids_BT, ids_BT, document_ids=documents_BT)

    def same(**arguments: object) -> bool:
        output = model(ids_BT, ids_BT, document_ids=documents_BT, **arguments)
        return torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)

    assert same()
    with torch.no_grad():
        model(random_ids(1, LENGTH, seed + 1), update_memory=True)
    assert same(use_memory=False)
    assert not same()
    assert not same(use_memory=True)
    model.train()
    assert same()
    model.eval().reset_memory()
    assert same()
    assert same(use_memory=True)


@given(reading=readings, seed=seeds, packed=st.booleans(), padding=st.integers(1, 4))
def test_padding_and_the_order_of_rows_change_nothing(
    reading: LongReading, seed: int, packed: bool, padding: int
) -> None:
    model, ids_BT = model_of(seed), random_ids(3, LENGTH, seed)
    documents_BT = random_documents(3, LENGTH, seed) if packed else torch.zeros_like(ids_BT)
    model.set_long_reading(reading)
    whole = model(ids_BT, document_ids=documents_BT)
    turned = model(ids_BT.flip(0), document_ids=documents_BT.flip(0))
    assert_close(turned.logits.flip(0), whole.logits)
    mask_BT = torch.ones(3, LENGTH + padding, dtype=torch.bool)
    mask_BT[0, :padding] = mask_BT[1, LENGTH:] = mask_BT[2, 3 : 3 + padding] = False
    padded_ids, padded_documents = (
        torch.zeros(mask_BT.shape, dtype=torch.int64).masked_scatter(mask_BT, each) for each in (ids_BT, documents_BT)
    )
    padded_documents[~mask_BT] = documents_BT[0, 0]
    padded = model(padded_ids, attention_mask=mask_BT, document_ids=padded_documents)
    assert_close(padded.logits[mask_BT].view_as(whole.logits), whole.logits)
    assert_same_state(padded.states, whole.states)


def test_gradient_flows_through_carried_entries() -> None:
    model, ids_BT = model_of(), random_ids(2, LENGTH)
    model.set_long_reading(LongReading(40))
    labels_BT = ids_BT.clone()
    labels_BT[:, :14] = -100
    parameters = list(model.parameters())
    whole = torch.autograd.grad(model(ids_BT, labels_BT).losses.language, parameters, allow_unused=True)
    states = model(ids_BT[:, :14]).states
    rest = model(ids_BT[:, 14:], labels_BT[:, 14:], states=states)
    parts = torch.autograd.grad(rest.losses.language, parameters, allow_unused=True)
    for (name, _), actual, expected in zip(model.named_parameters(), parts, whole, strict=True):
        assert (actual is None) == (expected is None), name
        if actual is not None:
            assert_close(actual, expected)
    reached = {name for (name, _), g in zip(model.named_parameters(), whole, strict=True) if g is not None and g.any()}
    assert {name for name, _ in model.named_parameters() if ".memory.salience." in name} <= reached


def test_salience_is_a_part_of_the_loss() -> None:
    model, ids_BT = model_of(salience_loss_weight=0.5), random_ids(2, LENGTH)
    assert model(ids_BT, ids_BT).losses.salience is None
    without = model(ids_BT, ids_BT).losses
    assert_close(without.total, without.language + _auxiliary(model, without))
    model.set_long_reading(LongReading(40))
    losses = model(ids_BT, ids_BT).losses
    assert 0 < float(losses.salience.detach()) < 1
    assert_close(losses.total, losses.language + _auxiliary(model, losses) + 0.5 * losses.salience)


def _auxiliary(model: CMRN, losses: object) -> Tensor:
    config = model.config
    pairs = (("domain", "domain_loss_weight"), ("router_z", "z_loss_weight"), ("latent", "latent_loss_weight"))
    return sum(getattr(losses, part) * getattr(config, weight) for part, weight in pairs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_stored_may_be_read_with_gradient(checkpointing: bool) -> None:
    model, ids_BT = model_of(gradient_checkpointing=checkpointing).train(), random_ids(1, LENGTH)
    model(ids_BT, update_memory=True)
    losses = model(ids_BT, ids_BT, update_memory=True).losses
    losses.total.backward()
    assert model.episodic.tokens == 2 * LENGTH
    reached = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.any()}
    assert any(name.endswith("memory.salience.log_sharpness") for name in reached)


@torch.no_grad()
def test_a_question_reads_the_document_before_it() -> None:
    model, text_BT, question_BT = model_of(), random_ids(1, 10, 3), random_ids(4, 6, 4)
    without = model(question_BT).logits
    model(text_BT, update_memory=True)
    assert model.episodic.waiting == 2
    read = model(question_BT)
    assert model.episodic.waiting == 0
    assert not torch.isclose(read.logits[:, 0], without[:, 0]).all()
    assert torch.equal(model(question_BT).logits, read.logits)
    rest = model(question_BT[:, :2])
    again = model(question_BT[:, 2:], states=rest.states)
    assert_close(torch.cat([rest.logits, again.logits], 1), read.logits)
    assert read.memory_stats.episodic_entries == 10 * 2
    model.reset_memory()
    assert torch.equal(model(question_BT).logits, without)


@torch.no_grad()
def test_hits_name_what_was_read() -> None:
    model = model_of(episodic_reads=2)
    model.episodic.begin("law", record=11)
    model(random_ids(1, 12, 3), update_memory=True)
    model.episodic.shown = 3
    hits = model(random_ids(2, 5, 4)).memory_hits
    assert len(hits) == len(model.config.reading_blocks)
    for hit in hits:
        assert hit.records_BTM.shape == (2, 5, 3)
        read = hit.weights_BTM > 0
        assert read[..., 0].all()
        assert (hit.records_BTM[read] == 11).all()
        assert (hit.records_BTM[~read] == -1).all()
        assert ((hit.places_BTM[read] >= 0) & (hit.places_BTM[read] < 12)).all()
        assert {model.episodic.namespaces[i] for i in hit.namespaces_BTM[read]} == {"law"}
        assert (hit.weights_BTM.sum(-1) <= 1).all()
    model.episodic.readable = frozenset()
    assert all((hit.weights_BTM == 0).all() for hit in model(random_ids(2, 5, 4)).memory_hits)


@torch.no_grad()
def test_a_namespace_that_may_not_be_read_is_as_if_it_were_not_there() -> None:
    model, ids_BT = model_of(), random_ids(1, 6, 4)
    without = model(ids_BT).logits
    model.episodic.begin("law")
    model(random_ids(1, 12, 3), update_memory=True)
    model.episodic.readable = frozenset({"medicine"})
    assert_close(model(ids_BT).logits, without)
    model.episodic.readable = frozenset({"law"})
    assert not torch.allclose(model(ids_BT).logits, without)


def test_mistakes() -> None:
    bare, model = small_model(config(episodic_memory=0)), model_of()
    ids_BT = random_ids(2, 6)
    for arguments in ({"update_memory": True}, {"use_memory": True}):
        with pytest.raises(UsageError, match="no long-term memory"):
            bare(ids_BT, **arguments)
    with pytest.raises(UsageError, match="no long-term memory"):
        bare.set_long_reading(LongReading(4))
    bare.reset_memory()
    with pytest.raises(UsageError, match="no attention_mask"):
        model(ids_BT, attention_mask=torch.tensor([[1] * 5 + [0], [1] * 6]), update_memory=True)
    with pytest.raises(UsageError, match="no attention_mask, no document_ids"):
        model(ids_BT, document_ids=torch.tensor([[0, 0, 1, 1, 1, 1]] * 2), update_memory=True)
    model(ids_BT, update_memory=True)
    with pytest.raises(UsageError, match="what 2 rows read, and this call has 1"):
        model(ids_BT[:1], update_memory=True)
