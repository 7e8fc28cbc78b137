from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cmrn.bench import mqar, quality
from cmrn.bench.llama import LlamaOutput
from cmrn.bench.mqar import Recall, accuracy, batches, examples, recall_specs, state_bytes
from cmrn.bench.quality import QualityOptions
from cmrn.bench.variants import build_model


@pytest.mark.parametrize("task", [*mqar.TRAINED, *mqar.TESTED], ids=str)
def test_every_key_is_asked_for_once_and_answered_by_its_value(task: Recall) -> None:
    ids, labels = examples(task, 5, np.random.default_rng(0))
    assert ids.shape == labels.shape == (5, task.length)
    for row, label in zip(ids, labels, strict=True):
        keys, values = row[: 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2]
        assert len(set(keys)) == len(set(values)) == task.pairs
        assert (keys >= 1).all()
        assert (keys < 4096).all()
        assert (values >= 4096).all()
        pairs = dict(zip(keys.tolist(), values.tolist(), strict=True))
        places = np.flatnonzero(label != -100)
        assert (places >= 2 * task.pairs + 1).all()
        asked = {int(row[place - 1]): int(label[place]) for place in places}
        assert asked == pairs


def test_distinct_numbers_are_equally_likely_everywhere() -> None:
    drawn = mqar._distinct(np.random.default_rng(0), 20_000, 6, 3)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    shares = np.stack([(drawn == number).mean(0) for number in range(6)])
    assert shares == pytest.approx(np.full((6, 3), 1 / 6), abs=0.012)


def test_gaps_follow_a_power_law() -> None:
    _, labels = examples(Recall(1, 1024), 4000, np.random.default_rng(0))
    gaps = (np.argmax(labels != -100, axis=1) - 3) // 2
    # w_i = i**-0.99 over 511 places: the first has 1 / H chances.
    chance = 1 / np.sum(np.arange(1, 512) ** -0.99)
    assert np.mean(gaps == 0) == pytest.approx(chance, abs=0.02)
    assert np.median(gaps) < 30


def test_rows_of_short_texts_are_documents() -> None:
    stream = batches(1, 3)
    first, second = next(stream), next(stream)
    assert first.input_ids_BT.shape == (3, 256)
    assert first.document_ids_BT[0].unique().tolist() == [0, 1, 2, 3]
    assert second.document_ids_BT[0].unique().tolist() == [0, 1]
    assert not torch.equal(first.labels_BT, first.input_ids_BT)


class Oracle(nn.Module):
    """Looks the value up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, ids: torch.Tensor) -> LlamaOutput:
        logits = torch.zeros(*ids.shape, 8192)
        for row, text in enumerate(ids.tolist()):
            seen: dict[int, int] = {}
            for place, token in enumerate(text[:-1]):
                logits[row, place, seen.setdefault(token, text[place + 1])] = 1.0
        return LlamaOutput(logits, None, None, None)


def test_accuracy_of_one_who_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqar, "TESTED", (Recall(4, 64), Recall(8, 64)))
    figures = accuracy(Oracle(), 20, "float32")  # type: ignore[arg-type]
    assert set(figures) == {"4", "8", "mean"}
    assert figures["mean"] > 0.9


def test_variants_and_their_states() -> None:
    specs = recall_specs(64, {"batch_size": 2, "sequence_length": 256})
    sizes = {name: state_bytes(spec.model, 1024) for name, spec in specs.items()}
    assert sizes["attention"] == 2 * 1024 * 2 * 64 * 2
    assert sizes["delta rule alone"] == 2 * 64 * 64 * 4
    assert sizes["attention, window 64"] == sizes["delta rule alone"]
    assert sizes["ours, W = 256"] == sizes["ours, W = 0"] + 256 * 2 * 64 * 2
    for spec in specs.values():
        assert build_model(spec.model)(torch.randint(0, 8192, (1, 8))).logits.shape == (1, 8, 8192)


def test_a_run_of_recall_reaches_the_table() -> None:
    said: list[str] = []
    small = ("training.max_steps=2", "training.batch_size=2", "training.warmup_steps=1", "model.d_model=64")
    options = QualityOptions("cpu", task="mqar", overrides=small, seeds=1, variants=("attention",))
    report = quality.run(options, said.append)
    assert [row.name for row in report.rows][:2] == ["attention, 4 pairs", "attention, 8 pairs"]
    assert report.rows[-1].name == "attention, mean"
    assert report.rows[0].detail["state_bytes"] == 2 * 1024 * 2 * 64 * 2
