from __future__ import annotations

import pytest
import torch

from cmrn.config import ExpertConfig, ExpertType
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.domain_expert import remove_expert, routing_networks, silenced
from cmrn.errors import UsageError
from cmrn.experts.growth import hash_tensors
from cmrn.model import CMRN
from cmrn.training.metrics import evaluate
from cmrn.training.trainer import CMRNTrainer
from tests.training.small_run import (
    ANIMALS,
    HELD_OUT,
    LENGTH,
    TRAIN,
    Recorder,
    datasets,
    make_trainer,
    model_config,
    tokenizer,
    training_config,
)


def mixtures(first: int, count: int) -> list[Document]:
    """Text of old words in an order of its own."""
    return [
        Document(f"few; {ANIMALS[i % 5]} = {ANIMALS[i // 5 % 5]} saw\n" * 6 + str(i), "ignored", source_index=3)
        for i in range(first, first + count)
    ]


NEW, NEW_HELD_OUT = mixtures(0, 20), [Document(d.text, "mixed") for d in mixtures(100, 4)]


def base(steps: int = 30, **changes: object) -> CMRN:
    trainer = make_trainer(None, max_steps=steps)
    trainer.train(datasets(tokenizer(), trainer.model.config)[0])
    return trainer.model


def held_out(model: CMRN) -> EvaluationSet:
    return EvaluationSet.build([*HELD_OUT, *NEW_HELD_OUT], tokenizer(), model.config.domains, LENGTH, 2)


def trainer_of(model: CMRN, **changes: object) -> CMRNTrainer:
    return CMRNTrainer(model, training_config(**changes), seed=3, device="cpu")


def snapshot(model: CMRN) -> str:
    return hash_tensors(model.state_dict())


@pytest.fixture(scope="module")
def trained() -> CMRN:
    return base()


def test_a_domain_is_learnt_and_the_old_ones_stay(trained: CMRN) -> None:
    before, model_before = snapshot(trained), evaluate(trained, held_out(trained)).bits_per_byte
    trainer = trainer_of(trained, max_steps=80, learning_rate=3e-2)
    trainer.add_domain_expert("mixed")
    told = trainer.model
    result = trainer.continual_train(NEW, "mixed", replay=TRAIN, eval_dataset=held_out(told), keep_threshold=0.01)
    assert result.experts == ("mixed",)
    assert result.bits_per_byte["mixed"] < 0.985 * model_before["mixed"]
    assert result.margin is not None
    assert result.margin.worse <= 0.01
    assert all(result.bits_per_byte[name] < 1.02 * model_before[name] for name in ("animals", "numbers"))
    assert result.routing_purity["mixed"] > 0.5
    assert result.trained_tokens == 80 * 4 * LENGTH
    assert snapshot(trained) == before == snapshot(remove_expert(trainer.model, "mixed")) == result.sha256
    ids = torch.arange(32)[None] * 7 % 280
    with silenced(trainer.model, "mixed"):
        assert torch.equal(trainer.model(ids).logits, trained.eval()(ids).logits)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer.model.config.balance_rate == trained.config.balance_rate


@pytest.mark.parametrize("kind", ["symbolic", "pattern", "generative"])
@pytest.mark.parametrize("changes", [{}, {"carry_states": True, "optimizer": "adamw", "micro_batch_size": 2}])
def test_nothing_else_changes_whatever_the_type(trained: CMRN, kind: ExpertType, changes: dict[str, object]) -> None:
    trainer = trainer_of(trained, max_steps=3, **changes)
    trainer.add_domain_expert("mixed", ExpertConfig(name="x", type=kind))
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    result = trainer.continual_train(NEW, "mixed")
    assert result.margin is None
    assert result.bits_per_byte == {}
    assert snapshot(remove_expert(trainer.model, "mixed")) == snapshot(trained)
    changed = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, start[key])}
    assert any(".experts.mixed.up" in key for key in changed)
    assert all(".experts.mixed." in key or key.endswith(("weight_ER", "bias_E")) for key in changed)


def test_the_only_pattern_expert_brings_its_features_and_takes_them_away() -> None:
    plain = tuple(ExpertConfig(name=name) for name in ("one", "two"))
    torch.manual_seed(1)
    model = CMRN(model_config(experts=plain), tokenizer())
    trainer = trainer_of(model, max_steps=2)
    trainer.add_domain_expert("mixed", ExpertConfig(name="x", type="pattern"))
    start = trainer.model.state_dict()["blocks.0.experts.ngram.weight"].clone()
    trainer.continual_train(NEW, "mixed")
    assert not torch.equal(trainer.model.state_dict()["blocks.0.experts.ngram.weight"], start)
    assert snapshot(remove_expert(trainer.model, "mixed")) == snapshot(model)


def test_rows_tell_new_text_from_old_and_share_tokens_as_before(trained: CMRN) -> None:
    """Fitted on training text, measured on held-out text, which is made of the same words in another order."""
    from cmrn.data.packing import PackedDataset
    from cmrn.domain_expert import add_expert
    from cmrn.training.row import fit_rows

    owner = ExpertConfig(name="mixed", domains=("mixed",))
    model = add_expert(add_expert(trained, owner, seed=1), owner.model_copy(update={"name": "more"}), seed=2).eval()
    names, words = ("mixed", "more"), tokenizer()
    with torch.no_grad():
        for network in routing_networks(model):
            network.weight_ER[-1] = 0.1
    before = [network.weight_ER[-1] - network.weight_ER[-2] for network in routing_networks(model)]
    new, old = (PackedDataset.build(texts, words, model.config.domains, LENGTH) for texts in (NEW, TRAIN))
    config = training_config(max_steps=4)
    fit = fit_rows(model, names, new, old, config, "float32", trained=False)
    assert fit.tokens >= 2 * 2_048
    for network, difference in zip(routing_networks(model), before, strict=True):
        torch.testing.assert_close(network.weight_ER[-1] - network.weight_ER[-2], difference, atol=1e-5, rtol=1e-4)

    def taken(texts: list[Document]) -> float:
        ids = torch.tensor([words.encode(document.text)[:40] for document in texts])
        with torch.no_grad():
            return float((model(ids).routing_weights[..., -2:].sum(-1) > 0.5).float().mean())

    assert taken(NEW_HELD_OUT) > taken(HELD_OUT) + 0.15


def test_experts_that_are_forced_read_every_token_and_nothing_is_left_of_it(trained: CMRN) -> None:
    from cmrn.domain_expert import add_expert
    from cmrn.training.row import forced

    model = add_expert(trained, ExpertConfig(name="new")).train()
    before, ids = snapshot(model), torch.arange(64).reshape(2, 32)
    with forced(model, ("new",)):
        weights_BTE = model(ids).routing_weights
    assert bool((weights_BTE[..., -1] > 0).all())
    assert snapshot(model) == before


def test_several_experts_of_one_domain_are_trained_together(trained: CMRN) -> None:
    from cmrn.training.continual import owners_of

    trainer = trainer_of(trained, max_steps=2)
    for name in ("mixed", "mixed_2"):
        trainer.add_domain_expert(name, ExpertConfig(name=name, domains=("mixed",)))
    assert owners_of(trainer.model, "mixed") == ("mixed", "mixed_2")
    start = trainer.model.state_dict()
    start = {key: value.clone() for key, value in start.items()}
    result = trainer.continual_train(NEW, "mixed", replay=TRAIN)
    assert result.experts == ("mixed", "mixed_2")
    changed = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, start[key])}
    assert all(any(f".experts.{name}.up" in key for key in changed) for name in result.experts)
    assert snapshot(remove_expert(remove_expert(trainer.model, "mixed"), "mixed_2")) == snapshot(trained)


def test_the_margin_holds_old_text_whatever_the_row_says(trained: CMRN) -> None:
    """A row made to take every token of old text has to be held back by the choice alone."""
    from cmrn.domain_expert import add_expert
    from cmrn.training.row import Fit, choose_margin

    model = add_expert(trained, ExpertConfig(name="greedy")).eval()
    with torch.no_grad():
        for network in routing_networks(model):
            network.weight_ER[-1] = 4 * network.weight_ER[0]
    sample = EvaluationSet.build(TRAIN, tokenizer(), model.config.domains, LENGTH, 2)
    before = evaluate(trained, sample).bits_per_byte
    assert max(bits / before[name] for name, bits in evaluate(model, sample).bits_per_byte.items()) > 1.006
    margin = choose_margin(model, ("greedy",), Fit((0.0, 0.0), 0), sample, 0.003, "float32", 10_000)
    assert margin.value > 0
    assert margin.worse <= 0.003
    after = evaluate(model, sample).bits_per_byte
    assert max(bits / before[name] for name, bits in after.items()) <= 1.003
    assert margin.tokens > sum(sample.tokens.values())


def test_unfrozen_all_of_it_is_trained(trained: CMRN) -> None:
    trainer = trainer_of(trained, max_steps=2)
    trainer.add_domain_expert("mixed")
    result = trainer.continual_train(NEW, "mixed", freeze_existing_experts=False, replay=TRAIN)
    assert (result.sha256, result.margin) == (None, None)
    assert snapshot(remove_expert(trainer.model, "mixed")) != snapshot(trained)


def test_what_was_to_stand_still_is_checked(trained: CMRN, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmrn.errors import GuaranteeError
    from cmrn.training import continual

    trainer = trainer_of(trained, max_steps=2)
    trainer.add_domain_expert("mixed")
    monkeypatch.setattr(continual, "_only_rows", lambda weight, index: lambda gradient: gradient)
    with pytest.raises(GuaranteeError, match="has changed"):
        trainer.continual_train(NEW, "mixed")


def test_names_and_domains_that_do_not_exist(trained: CMRN) -> None:
    trainer = trainer_of(trained, max_steps=1)
    with pytest.raises(UsageError, match="no expert owns the domain 'law'"):
        trainer.continual_train(NEW, "law")
    for name in ("zoo", "no name", "../x", "shared"):
        with pytest.raises(UsageError):
            trainer.add_domain_expert(name)
    assert trainer.model is trained


def test_the_reporter_hears_of_every_step(trained: CMRN) -> None:
    told = Recorder()
    trainer = CMRNTrainer(trained, training_config(max_steps=2), seed=3, device="cpu", reporter=told)
    trainer.add_domain_expert("mixed")
    trainer.continual_train(NEW, "mixed")
    assert [report.step for report in told.steps] == [1, 2]
    assert told.steps[-1].expert_load["mixed"] > 0
