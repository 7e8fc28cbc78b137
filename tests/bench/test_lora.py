from __future__ import annotations

import copy
import warnings

import pytest
import torch

from cmrn.bench.lora import adapt, adapted_maps, merge, rank_for
from cmrn.config import CMRNConfig
from cmrn.model import CMRN

IDS = torch.arange(24).reshape(2, 12) % 50


def small() -> CMRN:
    torch.manual_seed(0)
    return CMRN(
        CMRNConfig(
            vocab_size=50, d_model=16, head_dim=8, num_experts=3, memory_dim=16, memory_heads=2, num_blocks=2,
            expert_types=("general",), dropout=0.0, temporal_layers=1, gradient_checkpointing=False,
        )
    ).double()  # fmt: skip


def test_an_adapted_model_begins_as_it_was_and_only_its_adapters_learn() -> None:
    model = small()
    before, weights = model.eval()(IDS).logits, copy.deepcopy(model.state_dict())
    learning = adapt(model, 2)
    assert torch.equal(model(IDS).logits, before)
    assert all(name.endswith(("down_A", "up_B")) for name in learning)
    assert len(learning) == 2 * len(adapted_maps(model))
    model.train()(IDS, labels=IDS).losses.total.backward()
    with torch.no_grad():
        for parameter in learning.values():
            parameter -= 0.5 * parameter.grad
    after = model.eval()(IDS).logits
    assert not torch.allclose(after, before)
    merge(model)
    torch.testing.assert_close(model(IDS).logits, after, rtol=1e-10, atol=1e-12)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed <= {f"{name}.weight" for name in adapted_maps(model)}


@pytest.mark.parametrize("parameters", [1, 2_000, 20_000])
def test_the_rank_gives_about_as_many_parameters_as_asked_for(parameters: int) -> None:
    model = small()
    rank = rank_for(model, parameters)
    size = sum(parameter.numel() for parameter in adapt(model, rank).values())
    assert abs(size - parameters) <= size / rank


def test_outputs_and_gradients_are_those_of_peft() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        ours, theirs = small(), small()
        learning = adapt(ours, 3, alpha=6.0)
        config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(adapted_maps(theirs)), lora_dropout=0.0)
        wrapped = peft.get_peft_model(theirs, config)
    shapes = {"down_A": "lora_A", "up_B": "lora_B"}
    pairs = []
    table = dict(wrapped.named_parameters())
    for name, parameter in learning.items():
        place, _, part = name.rpartition(".")
        place = place.replace(".parametrizations.weight.0", "")
        other = table[f"base_model.model.{place}.{shapes[part]}.default.weight"]
        with torch.no_grad():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
            other.copy_(parameter)
        pairs.append((parameter, other))
    outputs = [model(IDS, labels=IDS) for model in (ours.train(), wrapped.double().train())]
    torch.manual_seed(1)
    for model in (ours, wrapped):
        torch.manual_seed(1)
        output = model(IDS, labels=IDS)
        outputs.append(output)
        output.losses.total.backward()
    torch.testing.assert_close(outputs[2].logits, outputs[3].logits, rtol=1e-9, atol=1e-11)
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-8, atol=1e-11)
