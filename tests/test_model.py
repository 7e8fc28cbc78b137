from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn import CMRN, CMRNConfig, CMRNTokenizer
from cmrn.errors import UsageError
from tests.properties.small_models import TYPES, random_ids, small_config, small_model
from tests.tolerances import assert_close

LENGTH = 12


def gradients(model: CMRN, loss: Tensor) -> dict[str, Tensor | None]:
    names, leaves = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True), strict=True))


def test_the_quick_start_of_the_seed_runs() -> None:
    config = CMRNConfig(
        vocab_size=500, d_model=32, num_experts=4, memory_size=1000, memory_dim=32, routing_strategy="learned"
    )
    model = CMRN(config)
    input_ids = torch.randint(0, config.vocab_size, (2, 51))
    outputs = model(input_ids)
    assert outputs.logits.shape == (2, 51, 500)
    assert_close(outputs.routing_weights.sum(-1), torch.ones(2, 51))
    stats = outputs.memory_stats
    assert stats.working_entries == 2 * 51
    assert stats.working_capacity == 2 * config.working_memory
    assert stats.bytes == 2 * 2 * config.working_memory * 32 * 4
    assert outputs.loss is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_is_the_cross_entropy_of_shifted_labels(dtype: torch.dtype) -> None:
    model, ids_BT = small_model(dtype=dtype), random_ids(3, LENGTH)
    labels_BT = ids_BT.masked_fill(random_ids(3, LENGTH, 5) < 6, -100)
    output = model(ids_BT, labels_BT)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=-100)
    assert_close(output.losses.language, expected)
    assert output.losses.scored_tokens == (labels_BT[:, 1:] != -100).sum()
    actual_gradients, expected_gradients = gradients(model, output.losses.language), gradients(model, expected)
    for name, gradient in expected_gradients.items():
        if gradient is not None:
            assert_close(actual_gradients[name], gradient)


def test_ignored_labels_add_nothing() -> None:
    model, ids_BT = small_model(), random_ids(2, LENGTH)
    labels_BT = ids_BT.clone()
    labels_BT[:, 4:] = -100
    assert_close(model(ids_BT, labels_BT).losses.language, model(ids_BT[:, :4], ids_BT[:, :4]).losses.language)
    nothing = model(ids_BT, torch.full_like(ids_BT, -100))
    assert nothing.losses.language.item() == 0.0
    assert nothing.loss.isfinite()


def test_total_is_the_weighted_sum_of_its_parts() -> None:
    config = small_config(domain_loss_weight=0.5, z_loss_weight=0.25, latent_loss_weight=0.125)
    losses = small_model(config)(random_ids(2, LENGTH), random_ids(2, LENGTH), domain_ids=torch.tensor([0, 1])).losses
    parts = 0.5 * losses.domain + 0.25 * losses.router_z + 0.125 * losses.latent
    assert_close(losses.total, losses.language + parts)
    assert all(float(part.detach()) > 0 for part in (losses.domain, losses.router_z, losses.latent))


def test_domains_are_given_by_row_or_by_token() -> None:
    model, ids_BT = small_model(), random_ids(2, LENGTH)
    by_row = model(ids_BT, ids_BT, domain_ids=torch.tensor([0, -1])).losses
    by_token = model(ids_BT, ids_BT, domain_ids=torch.tensor([[0], [-1]]).expand(2, LENGTH)).losses
    assert_close(by_row.domain, by_token.domain)
    assert model(ids_BT, ids_BT, domain_ids=torch.tensor([-1, -1])).losses.domain.item() == 0.0
    assert model(ids_BT, ids_BT).losses.domain.item() == 0.0


def test_every_parameter_learns() -> None:
    model, ids_BT = small_model(small_config(routing_k=4)).train(), random_ids(8, 24)
    output = model(ids_BT, ids_BT, domain_ids=torch.arange(8) % 2)
    missing = [
        name for name, gradient in gradients(model, output.loss).items() if gradient is None or not gradient.any()
    ]
    assert not missing


@pytest.mark.parametrize("strategy", ["learned", "random"])
@pytest.mark.parametrize("continued", [False, True])
def test_gradient_checkpointing_changes_nothing(strategy: str, continued: bool) -> None:
    results = []
    for checkpointing in (False, True):
        config = small_config(dropout=0.3, gradient_checkpointing=checkpointing, routing_k=2, routing_strategy=strategy)
        model, ids_BT = small_model(config).train(), random_ids(2, LENGTH)
        torch.manual_seed(11)
        states = model(ids_BT).states if continued else None
        output = model(ids_BT, ids_BT, states=states)
        results.append((output.logits, output.loss, gradients(model, output.loss), torch.rand(3)))
    (logits, loss, plain, random), (again, loss_again, recomputed, random_again) = results
    assert torch.equal(logits, again)
    assert torch.equal(loss, loss_again)
    assert torch.equal(random, random_again)
    for name, gradient in plain.items():
        assert (gradient is None) == (recomputed[name] is None), name
        if gradient is not None:
            assert_close(recomputed[name], gradient)


def test_checkpointing_recomputes_blocks_in_the_backward_pass() -> None:
    model, calls = small_model(small_config(gradient_checkpointing=True)).train(), []
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: calls.append(torch.is_grad_enabled()))
    loss = model(random_ids(2, LENGTH), random_ids(2, LENGTH)).loss
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2


def test_dropout_acts_in_training_only() -> None:
    config, ids_BT = small_config(dropout=0.4, routing_strategy="hash", types=("general", "general")), random_ids(2, 9)
    model = small_model(config)
    assert torch.equal(model(ids_BT).logits, model(ids_BT).logits)
    model.train()
    assert not torch.equal(model(ids_BT).logits, model(ids_BT).logits)
    model.config = config
    plain = small_model(small_config(dropout=0.0, routing_strategy="hash", types=("general", "general"))).train()
    assert torch.equal(plain(ids_BT).logits, plain(ids_BT).logits)


def test_frozen_parameters_stay_bit_identical() -> None:
    model, ids_BT = small_model(small_config(routing_k=4)).train(), random_ids(4, LENGTH)
    frozen = {name for name, _ in model.named_parameters() if ".experts.experts.general_0." in name or "memory" in name}
    assert len(frozen) > 4
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(ids_BT, ids_BT).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_a_few_steps_learn_a_small_text() -> None:
    torch.manual_seed(0)
    model = small_model(dtype=torch.float32).train()
    ids_BT = torch.arange(16).repeat(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        output = model(ids_BT, ids_BT)
        output.loss.backward()
        optimizer.step()
        losses.append(output.losses.language.item())
    assert losses[0] > 2.0
    assert losses[-1] < 0.5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_saving_and_loading_changes_nothing(kind: str, tied: bool, tmp_path: Path) -> None:
    tokenizer = CMRNTokenizer.train(["the cat sat on the mat"], 260)
    config = small_config((kind, "general"), vocab_size=tokenizer.vocab_size, tie_embeddings=tied)
    model = small_model(config, dtype=torch.float32)
    model.tokenizer = tokenizer
    model.set_routing_temperature(0.37)
    model.update_balance([torch.tensor([0.9, 0.1])] * config.num_blocks)
    model.save_pretrained(tmp_path / "saved")
    loaded = CMRN.from_pretrained(tmp_path / "saved")
    assert loaded.config == config
    assert not loaded.training
    assert loaded.tokenizer == tokenizer
    ids_BT = tokenizer("the mat sat", return_tensors="pt").input_ids
    assert torch.equal(loaded(ids_BT).logits, model(ids_BT).logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.blocks[0].router.routing_network.temperature.item() == pytest.approx(0.37)
    assert loaded.blocks[0].router.routing_network.bias_E.any()


def test_temperature_and_balance_reach_every_router() -> None:
    model = small_model()
    networks = [block.router.routing_network for block in model.blocks]
    before = [network.bias_E.clone() for network in networks]
    model.set_routing_temperature(2.5)
    model.update_balance([torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])])
    rate = model.config.balance_rate
    assert all(network.temperature.item() == 2.5 for network in networks)
    assert_close(networks[0].bias_E - before[0], rate * torch.tensor([-1.0, 1.0, 1.0, 1.0]).double())
    assert_close(networks[1].bias_E - before[1], rate * torch.tensor([1.0, 1.0, 1.0, -1.0]).double())


@pytest.mark.parametrize("strategy", ["hash", "random"])
def test_fixed_routing_has_nothing_to_balance(strategy: str) -> None:
    model = small_model(small_config(routing_strategy=strategy))
    model.set_routing_temperature(2.0)
    model.update_balance([torch.ones(4) / 4] * 2)
    losses = model(random_ids(2, LENGTH), random_ids(2, LENGTH), domain_ids=torch.tensor([0, 1])).losses
    assert losses.domain.item() == losses.router_z.item() == 0.0


def test_hash_routing_follows_the_token_and_random_routing_the_place() -> None:
    ids_BT, other_BT = random_ids(1, 40), random_ids(1, 40, 9)
    by_token, by_place = (small_model(small_config(routing_strategy=strategy)) for strategy in ("hash", "random"))
    for mine, theirs in zip(by_place(ids_BT).routing, by_place(other_BT).routing, strict=True):
        assert torch.equal(mine.indices_BTK, theirs.indices_BTK)
        assert mine.indices_BTK.unique().numel() == 4
    same_BT = ids_BT == other_BT
    for mine, theirs in zip(by_token(ids_BT).routing, by_token(other_BT).routing, strict=True):
        assert torch.equal(mine.indices_BTK[same_BT], theirs.indices_BTK[same_BT])
        assert not torch.equal(mine.indices_BTK, theirs.indices_BTK)


def test_memory_is_read_in_the_blocks_named() -> None:
    model = small_model(small_config(num_blocks=3, memory_blocks=(2,)))
    assert [block.memory is not None for block in model.blocks] == [False, False, True]
    assert model(random_ids(1, LENGTH)).memory_stats.working_entries == model.config.working_memory


def test_bfloat16_stays_close_to_float32() -> None:
    config = small_config(routing_strategy="hash", d_model=64, head_dim=32, memory_dim=64, expert_hidden=64)
    model, ids_BT = small_model(config, dtype=torch.float32), random_ids(4, 100)
    exact = model(ids_BT, ids_BT)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids_BT, ids_BT)
    error = (mixed.logits.float() - exact.logits).norm() / exact.logits.norm()
    assert float(error.detach()) < 5e-2
    assert mixed.loss.dtype == torch.float32
    assert_close(mixed.losses.language, exact.losses.language, torch.bfloat16)
    pure = model.bfloat16()(ids_BT, ids_BT)
    assert pure.logits.dtype == torch.bfloat16
    pure.loss.backward()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (2, 0)])
def test_ids_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = small_model()
    with pytest.raises(UsageError, match="shape"):
        model(torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(UsageError, match="shape"):
        model.generate(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("bad", [-1, 23, 10_000])
def test_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    ids_BT = random_ids(2, 4)
    ids_BT[1, 2] = bad
    with pytest.raises(UsageError, match=rf"token id {bad} is outside the vocabulary of 23 tokens"):
        small_model()(ids_BT)
    with pytest.raises(UsageError, match=rf"label {bad} is outside the vocabulary of 23 tokens"):
        small_model()(random_ids(2, 4), ids_BT)


@pytest.mark.parametrize("name", ["labels", "attention_mask", "document_ids", "domain_ids"])
@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (3, 4), (4,), (3,)])
def test_arguments_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=rf"{name} has the shape"):
        small_model()(random_ids(2, 4), **{name: torch.ones(shape, dtype=torch.int64)})


def test_domains_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UsageError, match="domain id 2 is outside the 2 domains"):
        small_model()(random_ids(2, 4), random_ids(2, 4), domain_ids=torch.tensor([0, 2]))


def test_states_of_another_batch_are_refused() -> None:
    model = small_model()
    with pytest.raises(UsageError, match="states are of 2 rows"):
        model(random_ids(3, 4), states=model(random_ids(2, 4)).states)
