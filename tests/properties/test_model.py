"""What always holds of a model, whatever its parts: nothing leaks back, and no cut, padding or packing matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.model import CMRN
from cmrn.records import CMRNState, map_tensors
from tests.properties.small_models import (
    TYPES,
    VOCABULARY,
    assert_same_reading,
    assert_same_state,
    configs,
    embedding_gradient,
    pieces,
    random_documents,
    random_ids,
    small_config,
    small_model,
)
from tests.tolerances import assert_close

LENGTH = 18
cuts = st.sets(st.integers(1, LENGTH - 1), max_size=5)
seeds = st.integers(0, 1_000)


def assert_causal(model: CMRN, length: int, t: int, seed: int, documents_BT: Tensor | None = None) -> None:
    """No logit before t depends on token t or any after it; those from t on do."""
    ids_BT = random_ids(2, length, seed)
    for training in (False, True):
        gradient = embedding_gradient(model.train(training), ids_BT, t, documents_BT)
        assert torch.equal(gradient[:, t:], torch.zeros_like(gradient[:, t:]))
        assert gradient[:, t - 1].any()
    model.eval()
    changed = ids_BT.clone()
    changed[:, t] = (changed[:, t] + 7) % VOCABULARY
    with torch.no_grad():
        before, after = (model(ids, document_ids=documents_BT).logits for ids in (ids_BT, changed))
    torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0.0, atol=1e-12)
    assert not torch.allclose(after[:, t], before[:, t])


@given(config=configs(), t=st.integers(1, LENGTH - 1), seed=seeds)
def test_no_token_changes_what_was_said_before_it(config: CMRNConfig, t: int, seed: int) -> None:
    assert_causal(small_model(config, seed), LENGTH, t, seed)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("t", [1, 63, 64, 65, 100, 129])
def test_causality_across_chunks_of_the_recurrence(kind: str, t: int) -> None:
    assert_causal(small_model(small_config((kind, kind), working_memory=20)), 130, t, 3)
    assert_causal(small_model(small_config((kind, kind))), 130, t, 3, random_documents(2, 130))


@given(config=configs(), cuts=cuts, seed=seeds, packed=st.booleans())
def test_any_split_gives_the_same_reading_state_and_loss(
    config: CMRNConfig, cuts: set[int], seed: int, packed: bool
) -> None:
    model, ids_BT = small_model(config, seed), random_ids(2, LENGTH, seed)
    documents_BT = random_documents(2, LENGTH, seed) if packed else None
    labels_BT = ids_BT.masked_fill(random_ids(2, LENGTH, seed + 1) < 4, -100)
    whole = model(ids_BT, labels_BT, document_ids=documents_BT)
    outputs, states = [], None
    for part in pieces(LENGTH, cuts):
        documents = None if documents_BT is None else documents_BT[:, part]
        output = model(ids_BT[:, part], labels_BT[:, part], document_ids=documents, states=states)
        states = output.states
        outputs.append(output)
    assert_close(torch.cat([output.logits for output in outputs], 1), whole.logits)
    assert_close(torch.cat([output.routing_weights for output in outputs], 1), whole.routing_weights)
    begins = torch.cat([output.event_chain.begins_BT for output in outputs], 1)
    assert torch.equal(begins, whole.event_chain.begins_BT)
    scored = [output.losses.scored_tokens for output in outputs]
    nats = sum(output.losses.language * count for output, count in zip(outputs, scored, strict=True))
    assert sum(scored) == whole.losses.scored_tokens
    assert_close(nats / whole.losses.scored_tokens, whole.losses.language)
    assert_same_state(states, whole.states)


@settings(max_examples=5)
@given(cuts=st.sets(st.integers(1, 149), max_size=6), seed=seeds)
def test_long_texts_split_alike(cuts: set[int], seed: int) -> None:
    model, ids_BT = small_model(small_config(temporal_layers=2, working_memory=30)), random_ids(1, 150, seed)
    whole, states, logits = model(ids_BT), None, []
    for part in pieces(150, cuts):
        output = model(ids_BT[:, part], states=states)
        states = output.states
        logits.append(output.logits)
    assert_close(torch.cat(logits, 1), whole.logits)
    assert_same_state(states, whole.states)


@given(config=configs(), seed=seeds)
def test_reading_one_by_one_equals_reading_at_once(config: CMRNConfig, seed: int) -> None:
    model, ids_BT = small_model(config, seed), random_ids(2, LENGTH, seed)
    whole, states = model(ids_BT), None
    for t in range(LENGTH):
        output = model(ids_BT[:, t : t + 1], states=states)
        states = output.states
        assert_close(output.logits[:, 0], whole.logits[:, t])
    assert_same_state(states, whole.states)


def test_gradient_flows_through_carried_states_as_through_the_text() -> None:
    model, ids_BT = small_model(), random_ids(2, LENGTH)
    labels_BT = ids_BT.clone()
    labels_BT[:, :8] = -100
    whole = torch.autograd.grad(model(ids_BT, labels_BT).losses.language, list(model.parameters()), allow_unused=True)
    states = model(ids_BT[:, :8]).states
    rest = model(ids_BT[:, 8:], labels_BT[:, 8:], states=states)
    parts = torch.autograd.grad(rest.losses.language, list(model.parameters()), allow_unused=True)
    for (name, _), actual, expected in zip(model.named_parameters(), parts, whole, strict=True):
        assert (actual is None) == (expected is None), name
        if actual is not None:
            assert_close(actual, expected)
    cut = model(ids_BT[:, 8:], labels_BT[:, 8:], states=states.detach())
    shortened = torch.autograd.grad(cut.losses.language, list(model.parameters()), allow_unused=True)
    assert not torch.allclose(shortened[0], whole[0])


def spread(values_BT: Tensor, mask_BT: Tensor, filler: int) -> Tensor:
    """The values of each row at the places where the mask is true, in order; `filler` elsewhere."""
    return torch.full(mask_BT.shape, filler).masked_scatter(mask_BT, values_BT)


def random_mask(length: int, padding: int, seed: int) -> Tensor:
    """(2, length + padding), `length` places true in each row: padding on the left, on the right or in between."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, length + padding, generator=random)
    scores[1] = torch.arange(length + padding) * (1 if seed % 2 else -1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(length, 1).indices, True)


@given(config=configs(), padding=st.integers(1, 5), seed=seeds, packed=st.booleans(), continued=st.booleans())
def test_padding_changes_nothing(config: CMRNConfig, padding: int, seed: int, packed: bool, continued: bool) -> None:
    model, ids_BT = small_model(config, seed), random_ids(2, LENGTH, seed)
    documents_BT = random_documents(2, LENGTH, seed) if packed else None
    domains_BT = random_ids(2, LENGTH, seed + 2) % 3 - 1
    before = model(random_ids(2, 5, seed + 1)).states if continued else None
    mask_BT = random_mask(LENGTH, padding, seed)

    alone = model(ids_BT, ids_BT, None, domains_BT, documents_BT, before)
    padded_ids = spread(ids_BT, mask_BT, seed % VOCABULARY)
    padded = model(
        padded_ids,
        padded_ids,
        mask_BT.long(),
        spread(domains_BT, mask_BT, 0),
        None if documents_BT is None else spread(documents_BT, mask_BT, 99),
        before,
    )
    mine = padded.logits[mask_BT].view_as(alone.logits)
    assert_close(mine, alone.logits)
    assert_close(padded.routing_weights[mask_BT].view_as(alone.routing_weights), alone.routing_weights)
    assert torch.equal(padded.event_chain.begins_BT[mask_BT].view(2, -1), alone.event_chain.begins_BT)
    assert not padded.event_chain.begins_BT[~mask_BT].any()
    for part in ("total", "language", "domain", "router_z", "latent", "scored_tokens"):
        torch.testing.assert_close(getattr(padded.losses, part), getattr(alone.losses, part), rtol=1e-10, atol=1e-10)
    for loads, expected in zip(
        model.expert_loads(padded.routing, mask_BT), model.expert_loads(alone.routing), strict=True
    ):
        assert_close(loads, expected)
    assert_same_state(padded.states, alone.states)
    onward = None if documents_BT is None else documents_BT[:, -1:].expand(-1, 6)
    following = random_ids(2, 6, seed + 3)
    assert_same_reading(
        model(following, document_ids=onward, states=padded.states),
        model(following, document_ids=onward, states=alone.states),
    )


@given(seed=seeds)
def test_rows_of_different_lengths_read_as_each_alone(seed: int) -> None:
    model, lengths = small_model(), (LENGTH, 1, 0, 11)
    ids_BT = random_ids(4, LENGTH, seed)
    mask_BT = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    together = model(ids_BT, attention_mask=mask_BT)
    after = model(random_ids(4, 4, seed + 1), states=together.states)
    for row, length in enumerate(lengths):
        states: CMRNState | None = None
        if length:
            alone = model(ids_BT[row : row + 1, :length])
            assert_same_reading(together, alone, (slice(row, row + 1), slice(0, length)))
            states = alone.states
        following = model(random_ids(4, 4, seed + 1)[row : row + 1], states=states)
        assert_same_reading(after, following, slice(row, row + 1))
    assert together.states.position_B.tolist() == list(lengths)


@pytest.mark.parametrize("packed", [False, True])
def test_a_chunk_without_a_real_token_in_a_row_leaves_the_row_where_it_was(packed: bool) -> None:
    model, ids_BT = small_model(), random_ids(2, LENGTH)
    documents_BT = random_documents(2, LENGTH, 4) + 1 if packed else None
    first = model(ids_BT, document_ids=documents_BT)
    mask_BT = torch.tensor([[1], [0]]).expand(2, LENGTH)
    second = model(ids_BT, ids_BT, mask_BT, document_ids=documents_BT, states=first.states)
    onward = None if documents_BT is None else documents_BT[:, -1:].expand(-1, 5)
    following = model(ids_BT[:, :5], ids_BT[:, :5], document_ids=onward, states=second.states)
    for row, states in enumerate((second.states, first.states)):
        states = map_tensors(states, lambda tensor, row=row: tensor[row : row + 1])
        part = slice(row, row + 1)
        ids, documents = ids_BT[part, :5], None if onward is None else onward[part]
        alone = model(ids, ids, document_ids=documents, states=states)
        assert_same_reading(following, alone, part)
        assert alone.losses.scored_tokens == 5
        labels_BT = torch.full((2, 5), -100)
        labels_BT[row] = ids_BT[row, :5]
        scored = model(ids_BT[:, :5], labels_BT, document_ids=onward, states=second.states)
        assert_close(scored.losses.language, alone.losses.language)


@given(config=configs(), seed=seeds)
def test_batch_order_changes_nothing(config: CMRNConfig, seed: int) -> None:
    model, ids_BT = small_model(config, seed), random_ids(4, LENGTH, seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    first, shuffled = model(ids_BT, ids_BT), model(ids_BT[order], ids_BT[order])
    assert_same_reading(first, shuffled, order)
    assert_close(shuffled.loss, first.loss)


@given(config=configs(), seed=seeds, lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_documents_packed_in_a_row_equal_documents_alone(config: CMRNConfig, seed: int, lengths: list[int]) -> None:
    model, ids_BT = small_model(config, seed), random_ids(1, sum(lengths), seed)
    documents_BT = torch.repeat_interleave(torch.arange(len(lengths)) * 5 % 7, torch.tensor(lengths))[None]
    packed = model(ids_BT, ids_BT, document_ids=documents_BT)
    nats, begin = torch.zeros((), dtype=torch.float64), 0
    for length in lengths:
        part = slice(begin, begin + length)
        alone = model(ids_BT[:, part], ids_BT[:, part])
        assert_same_reading(packed, alone, (slice(None), part))
        nats = nats + alone.losses.language * alone.losses.scored_tokens
        begin += length
    assert packed.losses.scored_tokens == sum(lengths) - len(lengths)
    assert_close(packed.losses.language * packed.losses.scored_tokens, nats)
    following = random_ids(1, 3, seed + 1)
    assert_same_reading(
        model(following, document_ids=documents_BT[:, -1:].expand(-1, 3), states=packed.states),
        model(following, states=alone.states),
    )


def test_a_document_gets_no_gradient_from_its_neighbours() -> None:
    model, ids_BT = small_model(), random_ids(2, LENGTH)
    documents_BT = torch.zeros(2, LENGTH, dtype=torch.int64)
    documents_BT[:, 8:] = 1
    captured: list[Tensor] = []
    model.embedding.register_forward_hook(
        lambda module, inputs, output: captured.append(output.detach().requires_grad_()) or captured[-1]
    )
    logits = model(ids_BT, document_ids=documents_BT).logits
    (gradient,) = torch.autograd.grad(logits[:, 8:].square().sum(), captured[0])
    assert gradient[:, 8:].any()
    assert float(gradient[:, :8].abs().max()) < 1e-13


@given(config=configs(), seed=seeds)
def test_routing_weights_are_shares(config: CMRNConfig, seed: int) -> None:
    model = small_model(config, seed)
    for training in (False, True):
        output = model.train(training)(random_ids(2, LENGTH, seed))
        assert output.routing_weights.shape == (2, LENGTH, config.num_experts)
        assert_close(output.routing_weights.sum(-1), torch.ones(2, LENGTH, dtype=torch.float64))
        assert len(output.routing) == config.num_blocks
        for routing in output.routing:
            assert ((routing.weights_BTE > 0).sum(-1) == config.routing_k).all()
