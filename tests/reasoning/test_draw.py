from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cmrn import CMRN, CMRNConfig, CMRNTokenizer
from cmrn.errors import CMRNError, UsageError
from cmrn.reasoning.draw import draw

PENGUINS = """
If all birds can fly, and penguins are birds, but penguins cannot fly,\x20
what can we conclude about the initial premise?
"""
TWEETY = "All birds can fly. Tweety is a bird. Can Tweety fly?"


def small_model(tokenizer: CMRNTokenizer | None) -> CMRN:
    torch.manual_seed(0)
    size = 300 if tokenizer is None else tokenizer.vocab_size
    config = CMRNConfig(vocab_size=size, d_model=16, head_dim=16, num_experts=2, memory_dim=16, num_blocks=1)
    return CMRN(config, tokenizer).eval()


@pytest.fixture(scope="module")
def model() -> CMRN:
    return small_model(CMRNTokenizer.train([TWEETY, PENGUINS] * 4, 300))


def ids_of(model: CMRN, text: str) -> torch.Tensor:
    assert model.tokenizer is not None
    return torch.tensor([model.tokenizer.encode(text)])


@pytest.fixture
def symbolic(model: CMRN) -> CMRN:
    model.set_reasoning_mode("symbolic")
    return model


@pytest.fixture(autouse=True)
def back_to_neural(model: CMRN) -> None:
    model.set_reasoning_mode("neural")


def test_the_trace_of_the_penguins_is_printed_step_by_step(symbolic: CMRN) -> None:
    assert symbolic.tokenizer is not None
    inputs = symbolic.tokenizer(PENGUINS, return_tensors="pt")
    outputs = symbolic(inputs.input_ids)
    lines = [f"Step {step.id}: {step.operation} -> {step.conclusion}" for step in outputs.reasoning_trace]
    assert lines[-1].endswith("it is not the case that all birds can fly")
    assert [line.split(":")[0] for line in lines] == [f"Step S{n}" for n in range(1, len(lines) + 1)]


def test_a_conclusion_names_what_it_rests_on() -> None:
    assert draw(TWEETY).conclusions == ("Tweety can fly (from P1 and P2).",)
    assert any("assuming that some penguin exists" in line for line in draw(PENGUINS).conclusions)


@pytest.mark.parametrize(
    "text", ["The integral of", "", "Bob is red. Frobnicate the of. Is Bob red?", "Tom is kind or red. Is Tom red?"]
)
def test_where_a_text_gives_nothing_certain_nothing_is_concluded(text: str) -> None:
    assert draw(text).conclusions == ()


def test_generation_begins_with_what_follows(symbolic: CMRN) -> None:
    assert symbolic.tokenizer is not None
    prompt = ids_of(symbolic, TWEETY)
    pieces: list[str] = []
    out = symbolic.generate(prompt, max_new_tokens=60, temperature=0, stream=pieces.append)
    assert symbolic.tokenizer.decode(out[0, prompt.shape[1] :].tolist()).startswith(" Tweety can fly (from P1 and P2).")
    assert "".join(pieces).startswith(" Tweety can fly (from P1 and P2).")
    assert symbolic.generate(prompt, max_new_tokens=3, temperature=0).shape[1] == prompt.shape[1] + 3


def test_the_mode_changes_nothing_but_the_trace(model: CMRN) -> None:
    ids = ids_of(model, TWEETY)
    plain = model(ids)
    model.set_reasoning_mode("symbolic")
    assert torch.equal(model(ids).logits, plain.logits)
    assert plain.reasoning_trace == ()
    assert model(ids, states=plain.states).reasoning_trace == ()


def test_padding_is_not_read(symbolic: CMRN) -> None:
    ids = ids_of(symbolic, TWEETY)
    padded = torch.cat((ids, ids[:, :5]), 1)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1])[None].long()
    assert symbolic(padded, attention_mask=mask).reasoning_trace == symbolic(ids).reasoning_trace


def test_what_the_mode_cannot_do_is_refused(symbolic: CMRN) -> None:
    with pytest.raises(UsageError, match="no reasoning mode"):
        symbolic.set_reasoning_mode("fuzzy")
    with pytest.raises(UsageError, match="one row at a time"):
        symbolic.generate(ids_of(symbolic, TWEETY).repeat(2, 1), max_new_tokens=1)
    with pytest.raises(CMRNError, match="tokenizer"):
        small_model(None).set_reasoning_mode("symbolic")


def test_the_reasoner_is_loaded_only_when_used() -> None:
    code = "import sys, cmrn.model; assert not [m for m in sys.modules if m.startswith('cmrn.reasoning')]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
