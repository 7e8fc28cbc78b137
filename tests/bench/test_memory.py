"""The memory cases: texts that hold what they ask for, readers that are asked fairly, figures that add up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cmrn.bench import memory, memory_mqar, mqar
from cmrn.bench.babi import Story, babi_questions, read_stories
from cmrn.bench.knn_lm import Datastore, Mixture
from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.bench.memory import MemoryOptions
from cmrn.bench.memory_compression import RoundTrip
from cmrn.bench.memory_documents import UNSCORED, bits, document_nats, scored_bytes
from cmrn.bench.memory_figures import Figure, Figures, rows_of
from cmrn.bench.memory_reading import answered, chunks, seen_by
from cmrn.bench.memory_text import Hay, Question, hidden
from cmrn.bench.passkey import DEPTHS, passkey_questions
from cmrn.bench.retrieval import pair_questions, read_pairs
from cmrn.config import CMRNConfig
from cmrn.errors import DataError, UsageError
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer
from tests.bench.tiny_memory import CHANGES, write_material

HAY = Hay([np.arange(100, 200), np.arange(200, 250)])


@pytest.fixture(scope="module")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train(["The pass key is 12345. Where is Mary? Answer: bathroom garden" * 3], 280)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"))


def small(**changes: object) -> CMRN:
    torch.manual_seed(0)
    fields = {"vocab_size": 280, "d_model": 32, "num_experts": 2, "num_blocks": 1, "head_dim": 16, "memory_dim": 32,
              "memory_heads": 2, "working_memory": 16, "dropout": 0.0, **changes}  # fmt: skip
    return CMRN(CMRNConfig.model_validate(fields)).eval()


def test_hay_is_read_round_and_round() -> None:
    assert HAY.take(148, 4).tolist() == [248, 249, 100, 101]
    assert len(HAY.take(5, 400)) == 400


def test_a_passkey_stands_at_its_depth(tokenizer: CMRNTokenizer) -> None:
    questions = passkey_questions(HAY, 400, tokenizer, 1)
    assert len(questions) == len(DEPTHS) == 10
    for depth, question in zip(DEPTHS, questions, strict=True):
        assert len(question.ids) == 400
        text, answer = tokenizer.decode(question.ids), tokenizer.decode(question.ids[-question.answer :])
        assert text.endswith(f"What is the pass key? The pass key is{answer}")
        needle = tokenizer.encode(f"The pass key is{answer}.")
        places = [i for i in range(400) if question.ids[i : i + len(needle)].tolist() == needle]
        assert len(places) == 1
        assert abs(places[0] / 400 - depth) < 0.2
    assert len({tuple(question.ids[-question.answer :]) for question in questions}) == 10


def test_statements_keep_their_order_and_must_fit(tokenizer: CMRNTokenizer) -> None:
    told = [(0.5, "Mary one"), (0.5, "Mary two"), (0.1, "Mary zero")]
    text = tokenizer.decode(hidden(HAY, 0, 200, told, "Where?", " bathroom", tokenizer).ids)
    assert text.index("zero") < text.index("one") < text.index("two") < text.index("Where?")
    with pytest.raises(ValueError, match="more than 10 tokens"):
        hidden(HAY, 0, 10, told, "Where?", " bathroom", tokenizer)


def test_stories_end_at_their_question(root: Path, tokenizer: CMRNTokenizer, tmp_path: Path) -> None:
    first, second, third = read_stories(root / "long_context", 1)
    moves = ("Mary moved to the bathroom.", "John went to the hallway.")
    assert first == Story(moves, "Where is Mary?", "bathroom")
    assert second == Story((*moves, "Mary moved to the garden."), "Where is Mary?", "garden")
    assert third.facts == ("John went to the park.",)
    asked = babi_questions([first, second, third], HAY, 300, tokenizer, 1, 5)
    assert [len(question.ids) for question in asked] == [300] * 3
    with pytest.raises(UsageError):
        read_stories(tmp_path, 1)
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text("no number here")
    with pytest.raises(DataError, match="not a line of bAbI"):
        read_stories(tmp_path, 1)


def test_pairs_are_asked_for_as_they_stand(root: Path, tokenizer: CMRNTokenizer, tmp_path: Path) -> None:
    (question, _) = pair_questions(read_pairs(root / "long_context"), tokenizer, 1, 9)
    text = tokenizer.decode(question.ids)
    assert '"key3": "value3"' in text
    assert text.endswith('Key: "key3"\nCorresponding value: "value3')
    with pytest.raises(UsageError):
        read_pairs(tmp_path)


@pytest.mark.parametrize(("length", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_chunks_cover_the_text_and_the_last_is_whole(length: int, size: int) -> None:
    parts = list(chunks(length, size))
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(length))
    assert parts[-1].stop - parts[-1].start == min(size, length)


class Echo(nn.Module):
    """Says again what it read `gap` tokens before."""

    def __init__(self, gap: int) -> None:
        super().__init__()
        self.gap, self.weight, self.seen = gap, nn.Parameter(torch.zeros(())), torch.zeros(0)

    def forward(self, ids: torch.Tensor, states: object = None, **options: object) -> object:
        self.seen = ids if states is None else torch.cat([self.seen, ids], 1)
        rolled = self.seen.roll(self.gap - 1, 1)[:, -ids.shape[1] :]
        logits = nn.functional.one_hot(rolled, 300).float()
        return type("Output", (), {"logits": logits, "states": 1})()


@pytest.mark.parametrize("chunk", [3, 7, 64])
def test_an_answer_counts_when_all_of_it_is_said(chunk: int) -> None:
    right = Question(np.array([9, 5, 6, 7, 1, 5, 6]), 2)
    wrong = Question(np.array([9, 5, 6, 7, 1, 5, 8]), 2)
    first_wrong = Question(np.array([9, 5, 6, 7, 1, 8, 6]), 2)
    longer = Question(np.array([4, 4, 9, 5, 6, 7, 1, 5]), 1)
    asked = [right, wrong, longer, first_wrong]
    assert answered(Echo(4), asked, "float32", chunk=chunk) == [True, False, True, False]  # type: ignore[arg-type]


def test_a_windowed_transformer_is_shown_all_it_can_see() -> None:
    torch.manual_seed(0)
    llama = Llama(LlamaConfig(280, 32, 2, 48, head_dim=16, window=8)).eval()
    assert seen_by(llama) == 15
    ids = torch.randint(0, 280, (1, 60))
    whole, part = llama(ids).logits[:, -1], llama(ids[:, -15:]).logits[:, -1]
    short = llama(ids[:, -14:]).logits[:, -1]
    assert torch.allclose(whole, part, atol=1e-5)
    assert not torch.allclose(whole, short, atol=1e-5)
    assert seen_by(Llama(LlamaConfig(280, 32, 2, 48, head_dim=16))) is None


def test_document_nats_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    llama = Llama(LlamaConfig(280, 32, 2, 48, head_dim=16, window=8)).eval()
    document = np.random.default_rng(0).integers(2, 280, UNSCORED + 300)
    ids = torch.from_numpy(document)[None]
    monkeypatch.setattr("cmrn.bench.memory_documents.PIECE", 256)
    monkeypatch.setattr("cmrn.bench.memory_documents.OVERLAPPING", 300)
    for reader in (model, llama):
        with torch.no_grad():
            logits = reader(ids).logits[0, UNSCORED - 1 : -1]
        whole = nn.functional.cross_entropy(logits, ids[0, UNSCORED:], reduction="sum")
        found = document_nats(reader, document, "float32")
        assert found.plain == pytest.approx(float(whole), rel=1e-4)
        assert found.mixed == {}
    assert scored_bytes([document], np.full(280, 2)) == 600
    assert bits(math.log(2) * 600, 600) == pytest.approx(1.0)


def test_knn_lm_mixes_what_followed_the_nearest() -> None:
    store, mixture = Datastore(), Mixture((0.25,), (0.5,))
    hidden_ND, logits_NV = torch.eye(4)[:3], torch.zeros(3, 5)
    alone = mixture.nats(store, hidden_ND, logits_NV, torch.tensor([0, 1, 2]))[0.25, 0.5]
    assert torch.allclose(alone, torch.full((3,), math.log(5)))
    store.add(torch.eye(4)[:2], torch.tensor([3, 4]))
    distances, followers = store.nearest(hidden_ND, 8)
    assert followers[0].tolist() == [3, 4]
    assert torch.allclose(distances[0], torch.tensor([0.0, 2.0]))
    share = 1 / (1 + math.exp(-2 / (0.5 * 4)))
    found = mixture.nats(store, hidden_ND[:1], logits_NV[:1], torch.tensor([3]))[0.25, 0.5]
    assert float(found) == pytest.approx(-math.log(0.25 * share + 0.75 / 5), rel=1e-5)


def test_every_entry_is_coded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmrn.bench.memory_compression.FITTED_ON", 40)
    model, trip = small(episodic_memory=256, episodic_chunk=16), RoundTrip()
    ids = torch.randint(0, 280, (2, 64))
    states = model(ids, update_memory=True).states
    block = model.episodic.blocks[0]  # type: ignore[union-attr]
    before = block.entries().keys_BHNC.clone()
    trip(model)
    coded = block.entries().keys_BHNC.clone()
    assert 0 < float((coded - before).abs().max()) < 1
    assert trip.bytes == (32, 2 * 2 * 16 * 4)
    model(ids, update_memory=True, states=states)
    later = block.entries().keys_BHNC.clone()
    trip(model)
    after = block.entries().keys_BHNC
    assert torch.equal(after[:, :, :48], later[:, :, :48])
    assert not torch.equal(after[:, :, 48:], later[:, :, 48:])


def test_figures_come_back_and_stand_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    kept = Figures(path)
    kept.add(Figure("pairs", "seventy-five", "ours", "a", 0.5, "answered"))
    kept.add(Figure("pairs", "seventy-five", "ours", "b", 0.9, "answered"))
    kept.add(Figure("pairs", "seventy-five", "other", "c", 0.3, "answered"))
    kept.add(Figure("documents", "books", "ours", "b", 0.95, "bits/byte", "smaller"))
    kept.add(Figure("documents", "books", "other", "c", 1.0, "bits/byte", "smaller"))
    pairs, books = rows_of(Figures(path).of(["pairs", "documents"]), "ours")
    assert (pairs.value, pairs.peer_value, pairs.ratio) == (0.9, 0.3, pytest.approx(3))
    assert books.detail["gap_percent"] == pytest.approx(-5)
    path.write_text("nonsense\n")
    with pytest.raises(DataError):
        Figures(path)


def test_every_case_gives_its_figures(root: Path, tmp_path: Path) -> None:
    options = MemoryOptions(
        "cpu", tuple(case for case in memory.CASES if case != "mqar"), lengths=(128,), count=2, overrides=CHANGES,
        data_root=root, cache=tmp_path, results=tmp_path / "figures.jsonl",
    )  # fmt: skip
    said: list[str] = []
    report = memory.run(options, said.append)
    names = {row.name for row in report.rows}
    assert {"passkey, 128 tokens, ten depths", "key-value retrieval, 75 keys", "reading 128 tokens"} <= names
    peers = {row.peer for row in report.rows}
    assert {"ours, memory off", "ours, trained without", "windowed Transformer"} <= peers
    assert len(list(tmp_path.glob("memory-*.safetensors"))) == 4
    again: list[str] = []
    memory.run(MemoryOptions(**{**vars(options), "cases": ("pairs",)}), again.append)
    assert not any("training" in line for line in again)


def test_recall_is_measured_with_memory_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqar, "TESTED", mqar.TESTED[:2])
    monkeypatch.setitem(memory_mqar.TRAINING, "batch_size", 2)
    device = torch.device("cpu")
    found = list(memory_mqar.recall_figures(memory.MODELS, 1, 1, device, lambda text: None))
    assert [figure.model for figure in found] == ["ours", "ours, memory off", "windowed Transformer"]
    assert {figure.name for figure in found} == {"MQAR, 4 pairs in 64 tokens"}
    assert all(0 <= figure.value <= 1 for figure in found)


@pytest.mark.parametrize("wrong", [{"cases": ("riddles",)}, {"variants": ("GPT",)}, {"data_root": Path("nowhere")}])
def test_what_is_not_there_is_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    options = MemoryOptions(**{"device": "cpu", "cases": ("pairs",), "cache": tmp_path, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        memory.run(options, lambda text: None)
