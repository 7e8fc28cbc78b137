from __future__ import annotations

import pytest

from cmrn.bench.context import ContextOptions, run

TINY = ("model.d_model=32", "model.memory_dim=32", "model.head_dim=16", "model.expert_hidden=32",
        "model.vocab_size=300", "model.working_memory=16", "tokenizer.vocab_size=300")  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_times_training_beside_a_llama_and_reading_by_length(device: str) -> None:
    told: list[str] = []
    options = ContextOptions(
        device, "quickstart", lengths=(16, 32), tokens=64, readings=(16, 48), repeats=3, overrides=TINY
    )
    report = run(options, told.append)
    training, reading = report.rows[:2], report.rows[2:]
    assert [row.name for row in training] == ["training, length 16", "training, length 32"]
    for row in training:
        assert row.unit == "tokens/s"
        assert row.value
        assert row.peer_value
        assert row.limit
        assert row.ratio == row.value / row.peer_value
        assert row.detail["ours"]["precision"] in ("float32", "bfloat16")
    assert len(reading) == 4
    assert all(row.value and row.unit == "µs a token" for row in reading)
    assert reading[0].ratio == 1.0
    assert report.settings["tokens_a_step"] == 64
    assert any("training at 16" in line for line in told)
