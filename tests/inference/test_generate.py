from __future__ import annotations

import pytest
import torch

from cmrn import CMRN
from cmrn.errors import CMRNError, UsageError
from cmrn.inference import Generation, generate_text

PROMPTS = ["the cat", "", "猫😀", "a" * 300]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_pieces_are_the_text(model: CMRN, prompt: str) -> None:
    pieces: list[str] = []
    done = generate_text(model, prompt, max_new_tokens=24, temperature=1.5, seed=2, stream=pieces.append)
    assert "".join(pieces) == done.text
    assert 1 <= done.new_tokens <= 24
    assert done.prompt_tokens == len(model.tokenizer.encode(prompt))
    assert done.tokens_per_second > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_text_is_what_the_ids_decode_to(model: CMRN, temperature: float) -> None:
    tokenizer = model.tokenizer
    done = generate_text(model, "the cat", max_new_tokens=20, temperature=temperature, seed=5)
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=20, temperature=temperature, seed=5)
    assert done.text == tokenizer.decode(out[0, ids.shape[1] :].tolist())


def test_seed_decides_the_text(model: CMRN) -> None:
    texts = [generate_text(model, "the", max_new_tokens=30, temperature=1.0, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_text_ends_before_a_stop_string(model: CMRN) -> None:
    whole = generate_text(model, "the cat", max_new_tokens=40, temperature=0.9, seed=4)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 2]
    cut = generate_text(model, "the cat", max_new_tokens=40, temperature=0.9, seed=4, stop=["never this", stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.new_tokens < whole.new_tokens


def test_empty_prompt_reads_the_end_of_text_token(model: CMRN) -> None:
    done = generate_text(model, "", max_new_tokens=12, temperature=0.0)
    out = model.generate(torch.tensor([[model.tokenizer.eos_token_id]]), max_new_tokens=12, temperature=0.0)
    assert done.prompt_tokens == 0
    assert done.text == model.tokenizer.decode(out[0, 1:].tolist())


def test_generation_leaves_the_model_as_it_was(model: CMRN) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate_text(model, "the cat", max_new_tokens=4)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_nothing_asked_for_gives_nothing(model: CMRN) -> None:
    done = generate_text(model, "the cat", max_new_tokens=0)
    assert done == Generation("", done.prompt_tokens, 0, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": -1}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 2.0}, {"stop": [""]}]
)
def test_wrong_settings_are_refused_with_the_model_as_it_was(model: CMRN, wrong: dict[str, object]) -> None:
    model.train()
    with pytest.raises(UsageError):
        generate_text(model, "the cat", **wrong)
    assert model.training


def test_a_model_without_tokenizer_says_so(model: CMRN) -> None:
    with pytest.raises(CMRNError, match="no tokenizer"):
        generate_text(CMRN(model.config), "the cat")
