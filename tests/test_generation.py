from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmrn import CMRN, CMRNTokenizer
from cmrn.errors import CMRNError, UsageError
from cmrn.generation import PREFILL, WORTH_CAPTURING, CapturedDecoder, StopWatch, read_prompt
from cmrn.sampling import SamplingConfig
from tests.properties.small_models import VOCABULARY, random_ids, small_config, small_model

TEXTS = ["the cat sat on the mat, naïve café 猫と犬 😀. "] * 8


@pytest.fixture(scope="module")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train(TEXTS, 290)


@pytest.fixture(scope="module")
def model(tokenizer: CMRNTokenizer) -> CMRN:
    made = small_model(small_config(vocab_size=tokenizer.vocab_size, dropout=0.2), dtype=torch.float32)
    made.tokenizer = tokenizer
    return made.train()


def naive_greedy(model: CMRN, ids_BT: Tensor, count: int) -> Tensor:
    """The likeliest token after the whole text so far, read anew for every token."""
    model.eval()
    for _ in range(count):
        ids_BT = torch.cat([ids_BT, model(ids_BT).logits[:, -1].argmax(-1, keepdim=True)], 1)
    model.train()
    return ids_BT


def test_greedy_continues_as_reading_everything_anew_would() -> None:
    model, ids_BT = small_model().train(), random_ids(3, 7) % 20 + 2
    out = model.generate(ids_BT, max_new_tokens=12, temperature=0.0)
    expected = naive_greedy(model, ids_BT, 12)
    ended = (expected[:, 7:] == 0).long().cumsum(1)
    kept = torch.cat([torch.ones_like(ids_BT), (ended - (expected[:, 7:] == 0).long() == 0).long()], 1).bool()
    assert torch.equal(out[kept[:, : out.shape[1]]], expected[:, : out.shape[1]][kept[:, : out.shape[1]]])


def test_limits(model: CMRN) -> None:
    ids_BT = random_ids(2, 5) + 2

    def length(**limits: int) -> int:
        return model.generate(ids_BT, seed=1, **limits).shape[1]

    assert length(max_new_tokens=0) == length(max_length=5) == 5
    assert 5 < length(max_length=9) <= 9
    assert 5 < length(max_new_tokens=3) <= 8
    assert 5 < length(max_new_tokens=3, max_length=100) <= 8
    assert 5 < length(max_new_tokens=30, max_length=7) <= 7
    assert length() <= 5 + 128


def test_prompt_comes_back_in_front_and_ids_are_of_the_vocabulary(model: CMRN) -> None:
    ids_BT = random_ids(2, 5)
    out = model.generate(ids_BT, max_new_tokens=20, seed=3)
    assert torch.equal(out[:, :5], ids_BT)
    assert out.dtype == torch.int64
    assert 0 <= int(out.min()) <= int(out.max()) < model.config.vocab_size


def test_seed_decides_and_leaves_the_global_generator_alone(model: CMRN) -> None:
    ids_BT = random_ids(2, 5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (model.generate(ids_BT, max_new_tokens=16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_rows_do_not_disturb_one_another(model: CMRN) -> None:
    ids_BT = random_ids(3, 6) + 2
    together = model.generate(ids_BT, max_new_tokens=15, temperature=0.0)
    for row in range(3):
        alone = model.generate(ids_BT[row : row + 1], max_new_tokens=15, temperature=0.0)
        assert torch.equal(together[row, : alone.shape[1]], alone[0])


class Scripted(CMRN):
    """A model whose likeliest next token is the last one plus one."""

    def _logits(self, hidden: Tensor) -> Tensor:
        following = (self.read[:, -1:] + 1) % self.config.vocab_size
        return torch.nn.functional.one_hot(following, self.config.vocab_size).float().expand(*hidden.shape[:2], -1)

    def forward(self, input_ids: Tensor, *args: object, **kwargs: object) -> object:
        self.read = input_ids
        return super().forward(input_ids, *args, **kwargs)


def test_a_row_that_ended_is_padded_and_the_end_of_all_stops() -> None:
    model, last = Scripted(small_config()), small_config().vocab_size - 1
    out = model.generate(torch.tensor([[last - 1], [last - 3]]), max_new_tokens=50, temperature=0.0)
    assert out.tolist() == [[last - 1, last, 0, 1, 1], [last - 3, last - 2, last - 1, last, 0]]


def test_stream_and_stop(model: CMRN, tokenizer: CMRNTokenizer) -> None:
    ids_BT = tokenizer("the cat", return_tensors="pt").input_ids
    pieces: list[str] = []
    out = model.generate(ids_BT, max_new_tokens=40, seed=9, stream=pieces.append)
    text = tokenizer.decode(out[0, ids_BT.shape[1] :].tolist())
    assert "".join(pieces) == text
    stop = text[len(text) // 2 :][:2]
    pieces.clear()
    short = model.generate(ids_BT, max_new_tokens=40, seed=9, stop=stop, stream=pieces.append)
    assert short.shape[1] < out.shape[1]
    assert torch.equal(short, out[:, : short.shape[1]])
    assert "".join(pieces) == text[: text.index(stop)]


def test_stop_ends_each_row_by_itself(model: CMRN, tokenizer: CMRNTokenizer) -> None:
    ids_BT = random_ids(3, 4) + 2
    free = model.generate(ids_BT, max_new_tokens=25, seed=2)
    first = tokenizer.decode(free[0, 4:].tolist())
    stop = first[len(first) // 2 :][:2]
    stopped = model.generate(ids_BT, max_new_tokens=25, seed=2, stop=[stop])
    texts = [tokenizer.decode(row[4:].tolist()) for row in stopped]
    assert first.startswith(texts[0])
    assert texts[0].index(stop) == first.index(stop)
    assert len(texts[0]) < len(first)
    others = [tokenizer.decode(row[4:].tolist()) for row in free[1:]]
    assert all(text == other for text, other in zip(texts[1:], others, strict=True) if stop not in other)
    assert any(stop not in other for other in others)


def watch(tokenizer: CMRNTokenizer, text: str, stop: list[str]) -> tuple[list[str], bool]:
    pieces: list[str] = []
    watcher = StopWatch(tokenizer, stop, pieces.append)
    for token_id in tokenizer.encode(text):
        watcher.push(token_id)
        if watcher.stopped:
            break
    watcher.finish()
    return pieces, watcher.stopped


@pytest.mark.parametrize(
    ("text", "stop", "passed", "stopped"),
    [
        ("the cat sat", ["sat"], "the cat ", True),
        ("the cat sat", ["sad"], "the cat sat", False),
        ("the cat sat on", ["on", "cat"], "the ", True),
        ("a 猫と犬", ["と"], "a 猫", True),
        ("aab", ["ab"], "a", True),
        ("the", [], "the", False),
    ],
)
def test_stop_string_is_found_across_tokens_and_never_passed_on(
    tokenizer: CMRNTokenizer, text: str, stop: list[str], passed: str, stopped: bool
) -> None:
    pieces, found = watch(tokenizer, text, stop)
    assert ("".join(pieces), found) == (passed, stopped)
    assert all(pieces)


def test_a_long_prompt_is_read_in_pieces() -> None:
    config = small_config(("general",), num_blocks=1, routing_k=1, memory_blocks=(0,))
    model, ids_BT = small_model(config), random_ids(1, PREFILL + 3)
    read: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    out = model.generate(ids_BT, max_new_tokens=1, temperature=0.0)
    assert read[:2] == [PREFILL, 3]
    assert int(out[0, -1]) == int(model(ids_BT).logits[0, -1].argmax())


def test_what_was_generated_can_be_trained_on(model: CMRN) -> None:
    out = model.generate(random_ids(1, 4), max_new_tokens=5, seed=1)
    model(out, out).loss.backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())
    model.zero_grad()


def test_training_mode_is_restored_after_an_error(model: CMRN) -> None:
    for wrong in ({"max_length": 3}, {"max_new_tokens": -1}, {"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}):
        with pytest.raises(UsageError):
            model.generate(random_ids(1, 5), **wrong)
    assert model.training


def test_stream_is_for_one_row_and_text_needs_a_tokenizer(model: CMRN) -> None:
    with pytest.raises(UsageError, match="one row"):
        model.generate(random_ids(2, 5), stream=print)
    with pytest.raises(UsageError, match="empty"):
        model.generate(random_ids(1, 5), stop="")
    for settings in ({"stop": "a"}, {"stream": print}):
        with pytest.raises(CMRNError, match="no tokenizer"):
            small_model().generate(random_ids(1, 5), **settings)


@pytest.mark.gpu
def test_a_captured_step_writes_what_plain_steps_write() -> None:
    model, ids_BT = small_model(dtype=torch.float32).cuda().eval(), (random_ids(3, 7) % 20 + 2).cuda()
    expected = naive_greedy(model, ids_BT, WORTH_CAPTURING)
    out = model.generate(ids_BT, max_new_tokens=WORTH_CAPTURING, temperature=0.0)
    for row in range(3):
        ends = (expected[row, 7:] == CMRNTokenizer.eos_token_id).nonzero()
        last = 7 + int(ends[0]) + 1 if len(ends) else out.shape[1]
        assert torch.equal(out[row, :last], expected[row, :last])


@pytest.mark.gpu
def test_on_a_device_the_same_seed_gives_the_same_text_and_memory_stays_flat() -> None:
    model, ids_BT = small_model(dtype=torch.float32).cuda().eval(), (random_ids(1, 7) % 20 + 2).cuda()
    first, again = (model.generate(ids_BT, max_new_tokens=40, seed=3) for _ in range(2))
    assert torch.equal(first, again)
    with torch.no_grad():
        read = read_prompt(model, ids_BT)
        decoder = CapturedDecoder(model, read.logits[:, -1], read.states, SamplingConfig(), None)
        decoder.step()
        used = torch.cuda.memory_allocated()
        for _ in range(200):
            decoder.step()
    assert torch.cuda.memory_allocated() == used


@pytest.mark.gpu
def test_an_id_outside_the_vocabulary_is_refused_on_a_device_too() -> None:
    model = small_model(dtype=torch.float32).cuda().eval()
    with pytest.raises(UsageError, match="outside the vocabulary"):
        model.generate(torch.tensor([[2, VOCABULARY]], device="cuda"), max_new_tokens=1)
    assert model.generate(torch.tensor([[2, VOCABULARY - 1]], device="cuda"), max_new_tokens=1).shape == (1, 3)
