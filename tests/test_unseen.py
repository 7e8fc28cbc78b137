from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmrn import CMRN, CMRNConfig, CMRNTokenizer, ExpertConfig
from cmrn.data.documents import Document
from cmrn.data.evaluation import EvaluationSet
from cmrn.errors import CheckpointError
from cmrn.files import write_folder
from cmrn.pretrained import write_model_files
from cmrn.records import Routing
from cmrn.unseen import UNSEEN, DocumentScores, Unseen, UnseenScore, measure_unseen, read_unseen, unowned_share

EXPERTS = (
    ExpertConfig(name="math", domains=("math",)),
    ExpertConfig(name="proofs", domains=("math",)),
    ExpertConfig(name="law", domains=("law", "tax")),
    ExpertConfig(name="free"),
)


def config(experts: Sequence[ExpertConfig] = EXPERTS, **more: object) -> CMRNConfig:
    sizes = {"vocab_size": 300, "d_model": 32, "head_dim": 16, "num_blocks": 2, "temporal_layers": 1, "memory_dim": 16}
    return CMRNConfig(**{**sizes, "memory_heads": 2, "working_memory": 8, "experts": tuple(experts), **more})  # type: ignore[arg-type]


def routing(probabilities_BTE: Tensor) -> Routing:
    return Routing(probabilities_BTE, torch.empty(0), torch.empty(0), probabilities_BTE.log() + 3.0)


def test_what_no_domain_holds_is_unowned() -> None:
    first = torch.tensor([[[0.3, 0.4, 0.2, 0.1], [0.05, 0.05, 0.1, 0.8]]])
    second = torch.tensor([[[0.1, 0.1, 0.7, 0.1], [0.25, 0.25, 0.25, 0.25]]])
    found = unowned_share(config(), [routing(first), routing(second)])
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[(0.3 + 0.3) / 2, (0.9 + 0.5) / 2]]))


def test_there_is_no_score_without_domains_or_without_logits() -> None:
    weights = torch.full((1, 3, 4), 0.25)
    assert unowned_share(config([ExpertConfig(name=f"e{i}") for i in range(4)]), [routing(weights)]) is None
    assert unowned_share(config(), [Routing(weights, weights, weights, None)]) is None


def test_thresholds_are_read_off_between_the_lengths_measured() -> None:
    unseen = Unseen((1, 4, 16), (0.8, 0.6, 0.2), 0.95, 64)
    assert [unseen.threshold(n) for n in (1, 4, 16, 1000)] == [0.8, 0.6, 0.2, 0.2]
    assert unseen.threshold(2) == pytest.approx(0.7)
    assert unseen.threshold(8) == pytest.approx(0.4)


def test_a_verdict_needs_a_threshold() -> None:
    assert UnseenScore(0.5, None).is_unseen is None
    assert UnseenScore(0.5, 0.4).is_unseen is True
    assert UnseenScore(0.4, 0.4).is_unseen is False
    assert UnseenScore(0.5, 0.4).to_json() == {"score": 0.5, "threshold": 0.4, "is_unseen": True}


def test_documents_are_added_up_over_windows_and_padding_counts_for_nothing() -> None:
    scores = DocumentScores()
    nan = math.nan
    scores.add(torch.tensor([[0.1, 0.3, 0.9], [0.9, 0.5, nan]]), torch.tensor([[0, 0, 2], [2, 2, 7]]),
               torch.tensor([[True, True, True], [True, True, False]]))  # fmt: skip
    scores.add(torch.tensor([[0.2]]), torch.tensor([[0]]), torch.tensor([[True]]))
    assert scores.mean == pytest.approx((0.1 + 0.3 + 0.9 + 0.9 + 0.5 + 0.2) / 6)
    assert scores.unseen_share(Unseen((1,), (0.5,), 0.95, 64)) == 0.5
    assert scores.unseen_share(Unseen((1,), (0.1,), 0.95, 64)) == 1.0
    assert scores.unseen_share(Unseen((1,), (0.9,), 0.95, 64)) == 0.0


@pytest.fixture(scope="module")
def model() -> CMRN:
    tokenizer = CMRNTokenizer.train(["the sum of two numbers", "the court of law"] * 9, 290)
    torch.manual_seed(2)
    return CMRN(config(dropout=0.3, vocab_size=tokenizer.vocab_size), tokenizer)


def held_out(model: CMRN, **texts: str) -> EvaluationSet:
    assert model.tokenizer is not None
    documents = [Document(text, name) for name, text in texts.items()]
    return EvaluationSet.build(documents, model.tokenizer, model.config.domains, 64, 2)


def test_95_of_100_held_out_pieces_lie_below_what_is_measured(model: CMRN) -> None:
    math, law = (" ".join(f"{words} {number * 7919 % 997}" for number in range(900)) for words in ("the sum", "of law"))
    text = held_out(model, math=math, law=law, poetry="shall I compare thee " * 300)
    model.train()
    unseen = measure_unseen(model, text)
    assert model.training
    assert unseen is not None
    assert unseen == measure_unseen(model, text)
    pieces = {domain: text.pieces(domain, 32, 128) for domain in ("math", "law")}
    assert unseen.pieces == sum(map(len, pieces.values())) > 32
    below = 0
    for ids_NT in pieces.values():
        with torch.no_grad():
            found = unowned_share(model.config, model.eval()(ids_NT).routing)
        assert found is not None
        below += int((found.double().mean(1) <= unseen.threshold(128)).sum())
    assert below / unseen.pieces == pytest.approx(0.95, abs=0.02)


def test_too_little_text_says_nothing(model: CMRN) -> None:
    assert measure_unseen(model, held_out(model, math="1 + 1", law="no")) is None
    assert measure_unseen(model, held_out(model, poetry="shall I compare thee " * 300)) is None


def test_pieces_lie_within_documents_and_are_spread(model: CMRN) -> None:
    assert model.tokenizer is not None
    texts = [f"document {number}: " + f"{number}" * 150 for number in range(9)]
    documents = EvaluationSet.build(
        [Document(text, "math") for text in texts], model.tokenizer, model.config.domains, 64, 2
    )
    pieces = documents.pieces("math", 5, 8)
    assert pieces.shape == (5, 8)
    found = [model.tokenizer.decode(row) for row in pieces]
    assert all(any(piece in text for text in texts) for piece in found)
    assert len(set(found)) > 3
    assert documents.pieces("math", 5, 100_000).shape == (0, 100_000)


def save(folder: Path, model: CMRN, content: str | None) -> Path:
    with write_folder(folder) as temporary:
        write_model_files(temporary, model.config, model.state_dict(), None)
        if content is not None:
            (temporary / UNSEEN).write_text(content, encoding="utf-8")
    return folder


def test_it_is_read_back_from_a_model_folder(model: CMRN, tmp_path: Path) -> None:
    unseen = Unseen((1, 8), (0.7, 0.1 + 0.2), 0.95, 64)
    assert read_unseen(save(tmp_path / "with", model, unseen.to_json())) == unseen
    assert read_unseen(save(tmp_path / "without", model, None)) is None
    assert read_unseen("owner/name") is None
    CMRN.from_pretrained(tmp_path / "with")


@pytest.mark.parametrize(
    "change",
    [{"format_version": 2}, {"lengths": [1]}, {"lengths": [8, 1]}, {"lengths": [0, 1]}, {"more": 1},
     {"thresholds": ["a", "b"]}, {"thresholds": [1.0, float("inf")]}, {"lengths": None}],
)  # fmt: skip
def test_what_cannot_be_understood_is_named(model: CMRN, tmp_path: Path, change: dict[str, object]) -> None:
    document = json.loads(Unseen((1, 8), (0.7, 0.3), 0.95, 64).to_json())
    folder = save(tmp_path / "model", model, json.dumps({**document, **change}))
    with pytest.raises(CheckpointError, match=UNSEEN):
        read_unseen(folder)


def test_one_that_was_changed_or_slipped_in_is_refused(model: CMRN, tmp_path: Path) -> None:
    content = Unseen((1,), (0.7,), 0.95, 64).to_json()
    folder = save(tmp_path / "model", model, content)
    (folder / UNSEEN).write_text(content.replace("0.7", "0.9"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=UNSEEN):
        read_unseen(folder)
    other = save(tmp_path / "other", model, None)
    (other / UNSEEN).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=UNSEEN):
        read_unseen(other)
