"""The baseline is a right Transformer: nothing less would be a fair peer."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from cmrn.bench.counts import active_parameters, llama_of_equal_active, llama_of_equal_total, total_parameters
from cmrn.bench.llama import Llama, LlamaConfig, attend
from cmrn.config import CMRNConfig
from cmrn.model import CMRN

SMALL = LlamaConfig(vocab_size=61, d_model=16, layers=3, hidden=24, head_dim=8)
KINDS = {
    "plain": SMALL,
    "conv": dataclasses.replace(SMALL, conv=True),
    "window": dataclasses.replace(SMALL, window=4, full_layers=(1,)),
    "documents": dataclasses.replace(SMALL, mask_documents=True, window=5, full_layers=(0,), conv=True),
}


def make(config: LlamaConfig) -> Llama:
    torch.manual_seed(0)
    return Llama(config).double()


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_a_later_one(kind: str) -> None:
    model, ids = make(KINDS[kind]), torch.randint(0, 61, (2, 13))
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    documents = torch.zeros_like(ids)
    before, after = (model(each, document_ids=documents).logits for each in (ids, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("kind", ["plain", "conv", "window"])
@pytest.mark.parametrize("pieces", [(13,), (5, 8), (6, 1, 1, 5)])
def test_reading_through_a_cache_changes_nothing(kind: str, pieces: tuple[int, ...]) -> None:
    model, ids = make(KINDS[kind]), torch.randint(0, 61, (2, 13))
    whole = model(ids, labels=ids)
    assert whole.loss is not None
    cache, logits, nats = model.empty_cache(2, 16, torch.float64), [], 0.0
    for part in ids.split(list(pieces), 1):
        output = model(part, labels=part, states=cache)
        assert output.losses is not None
        logits.append(output.logits)
        nats += float((output.losses.language * output.losses.scored_tokens).detach())
        assert output.states is not None
        cache = output.states
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=1e-10, atol=1e-10)
    assert nats / (2 * 12) == pytest.approx(float(whole.loss.detach()))
    assert cache.length == 13
    assert cache.bytes == 3 * 2 * 2 * 16 * 13 * 8


@pytest.mark.parametrize(("length", "window"), [(13, 4), (12, 4), (5, 1), (9, 8), (6, 9)])
@pytest.mark.parametrize("cut", [False, True])
def test_a_window_is_a_masked_attention(length: int, window: int, cut: bool) -> None:
    q, k, v = torch.randn(3, 2, 3, length, 4, dtype=torch.float64)
    documents = torch.randint(0, 2, (2, length)).cumsum(1) if cut else None
    back = torch.arange(length)[:, None] - torch.arange(length)
    mask = ((back >= 0) & (back < window))[None, None]
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, window, documents), wanted)


def test_documents_do_not_read_one_another() -> None:
    model = make(KINDS["documents"])
    first, second = torch.randint(0, 61, (1, 5)), torch.randint(0, 61, (1, 6))
    documents = torch.tensor([[0] * 5 + [1] * 6])
    packed = model(torch.cat([first, second], 1), document_ids=documents).logits
    # RoPE turns by differences of place, so a document's logits do not depend on where it begins.
    torch.testing.assert_close(packed[:, 5:], model(second, document_ids=documents[:, 5:]).logits)
    open_packed = make(SMALL)(torch.cat([first, second], 1), document_ids=documents).logits
    assert not torch.allclose(open_packed[:, 5:], make(SMALL)(second).logits)


def test_the_loss_is_that_of_the_other_model() -> None:
    """Same targets, same mean: a document's first token and padding are not scored."""
    model, ids = make(SMALL), torch.randint(0, 61, (2, 9))
    documents = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    output = model(ids, labels=ids, attention_mask=mask, document_ids=documents)
    targets = ids[:, 1:].clone()
    targets[0, 3] = -100
    targets[1, 6:] = -100
    wanted = F.cross_entropy(output.logits[:, :-1].reshape(-1, 61), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, wanted)
    ours = CMRN(CMRNConfig(vocab_size=61, d_model=16, head_dim=8, num_blocks=1, num_experts=2, memory_dim=16))
    other = ours(ids, labels=ids, attention_mask=mask, document_ids=documents)
    assert output.losses is not None
    assert int(output.losses.scored_tokens) == int(other.losses.scored_tokens) == 7 + 6
    assert output.routing == ()


def test_every_parameter_learns() -> None:
    model = make(KINDS["conv"])
    ids = torch.randint(0, 61, (2, 9))
    loss = model(ids, labels=ids).loss
    assert loss is not None
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {"d_model": 384, "num_blocks": 10, "temporal_layers": 1, "expert_hidden": 256, "memory_dim": 384},
        {"d_model": 256, "num_blocks": 2, "temporal_layers": 3, "num_experts": 4, "memory_dim": 256},
        {"d_model": 64, "head_dim": 32, "num_blocks": 2, "expert_types": ("general",), "memory_dim": 64},
    ],
)
def test_counts_and_llamas_of_equal_size(fields: dict[str, object]) -> None:
    config = CMRNConfig(vocab_size=512, **fields)  # type: ignore[arg-type]
    with torch.device("meta"):
        ours = CMRN(config)
        active, total = active_parameters(ours), total_parameters(ours)
        equal_active = Llama(llama_of_equal_active(config, active))
        equal_total = Llama(llama_of_equal_total(config, active, total))
    assert total == sum(p.numel() for p in ours.parameters()) - 512 * config.d_model
    assert active < total
    assert total_parameters(equal_active) == pytest.approx(active, rel=0.01)
    assert total_parameters(equal_total) == pytest.approx(total, rel=0.01)
    assert equal_active.config.d_model == config.d_model
    assert active_parameters(equal_active) == total_parameters(equal_active)


def test_active_parameters_are_those_of_the_experts_that_read() -> None:
    fields = {"vocab_size": 64, "d_model": 32, "head_dim": 16, "num_blocks": 2, "memory_dim": 32,
              "expert_types": ("general",)}  # fmt: skip
    few, many = (CMRN(CMRNConfig(num_experts=count, routing_k=2, **fields)) for count in (2, 8))  # type: ignore[arg-type]
    per_expert_router = 2 * 6 * 64
    assert active_parameters(few) == total_parameters(few)
    assert active_parameters(many) == active_parameters(few) + per_expert_router


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_on_cuda_the_gradients_stay(kind: str) -> None:
    model = make(dataclasses.replace(KINDS[kind], d_model=64, head_dim=32, hidden=96, window=KINDS[kind].window and 64))
    ids = torch.randint(0, 61, (2, 300))
    documents = (torch.arange(300) > 130).long().expand(2, -1)

    def gradients(where: Llama, device: str, narrow: bool) -> dict[str, torch.Tensor]:
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            loss = where(ids.to(device), ids.to(device), document_ids=documents.to(device)).loss
        assert loss is not None
        loss.backward()
        return {name: p.grad.double().cpu() for name, p in where.named_parameters() if p.grad is not None}

    wanted = gradients(model, "cpu", narrow=False)
    found = gradients(copy.deepcopy(model).float().cuda(), "cuda", narrow=True)
    errors = {name: float((found[name] - wanted[name]).norm()) for name in wanted}
    sizes = {name: float(wanted[name].norm()) for name in wanted}
    # Gradients of the QK-norms are small differences of large numbers.
    assert all(errors[name] < 0.15 * sizes[name] for name in wanted), {n: errors[n] / sizes[n] for n in wanted}
    assert sum(each**2 for each in errors.values()) < 0.02**2 * sum(each**2 for each in sizes.values())
