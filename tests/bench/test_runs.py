from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cmrn.bench.launch import Machines, launch
from cmrn.bench.report import Report
from cmrn.bench.runs import Result, Results, RunSpec, code_version
from cmrn.bench.table import best_rates, quality_report
from cmrn.errors import DataError

TRAINING = {"learning_rate": 1e-3, "batch_size": 2, "sequence_length": 8, "optimizer": "muon", "max_steps": 3}
SPEC = RunSpec("e", "ours", 1, {"kind": "cmrn"}, TRAINING, "data")


def result(spec: RunSpec, mean: float, speed: float = 100.0) -> Result:
    figures = {"code": mean - 0.1, "math": mean + 0.1, "mean": mean}
    return Result(spec.key, spec.family, spec.setting, spec.variant, spec.seed, spec.rate, 48, 48 / speed, speed,
                  figures, steps=3, where={"device": "cpu", "commit": "abc"})  # fmt: skip


def test_a_run_is_known_by_what_it_does() -> None:
    assert RunSpec.from_json(SPEC.to_json()) == SPEC
    assert dataclasses.replace(SPEC, variant="other", setting="small").key == SPEC.key
    for change in ({"seed": 2}, {"data": "other"}, {"model": {}}, {"training": {}}):
        assert dataclasses.replace(SPEC, **change).key != SPEC.key  # type: ignore[arg-type]
    assert SPEC.with_training(learning_rate=2.0).family == SPEC.family
    assert SPEC.with_training(max_steps=9).family != SPEC.family
    assert SPEC.with_training(max_steps=9).structure == SPEC.structure


def test_results_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    results = Results(path)
    results.add(result(SPEC, 1.5))
    again = Results(path)
    assert again.get(SPEC) == results.get(SPEC)
    assert again.missing([SPEC, dataclasses.replace(SPEC, seed=2), dataclasses.replace(SPEC, seed=2)]) == [
        dataclasses.replace(SPEC, seed=2)
    ]
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match="not a result"):
        Results(path)


def test_nothing_is_started_where_nothing_is_missing() -> None:
    results = Results(None)
    results.add(result(SPEC, 1.5))
    assert launch([SPEC], results, Machines(gpus=3), None, lambda _: None) == []


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Machines().slots == (None,)
    assert Machines(2, 2).slots == ("0", "1", "0", "1")
    assert Machines(2, 1, only="1").slots == ("1",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert Machines(2).slots == ("5", "7")


def test_the_best_rate_is_the_lowest_finite_mean() -> None:
    results = Results(None)
    for rate, mean in ((1e-3, 1.4), (2e-3, 1.2), (4e-3, float("nan"))):
        results.add(result(SPEC.with_training(learning_rate=rate), mean))
    assert best_rates({"ours": SPEC}, results)["ours"].rate == 2e-3
    assert best_rates({"ours": SPEC}, results, largest=True)["ours"].rate == 1e-3
    assert best_rates({"ours": dataclasses.replace(SPEC, data="new")}, results)["ours"].rate == 1e-3


def report() -> Report:
    results = Results(None)
    peer = dataclasses.replace(SPEC, variant="peer", model={"kind": "llama"})
    for spec, base in ((SPEC, 1.0), (peer, 1.1)):
        for seed in (1, 2):
            results.add(result(dataclasses.replace(spec, seed=seed), base + seed / 100))
        for rate in (2e-3, 4e-3):
            results.add(result(spec.with_training(learning_rate=rate), 9.0))
    return quality_report("quality", {"ours": SPEC, "peer": peer}, results, (1, 2), [peer], "ours")


def test_the_table_pairs_seeds_and_says_what_is_not_as_it_should_be() -> None:
    made = report()
    mean, code, math, *speeds = made.rows
    assert (mean.name, mean.peer) == ("mean", "peer")
    assert (mean.value, mean.peer_value) == pytest.approx((1.015, 1.115))
    assert mean.spread == pytest.approx(0.01 / 2**0.5)
    assert mean.detail["gap_percent"] == pytest.approx(50 * (1.01 / 1.11 + 1.02 / 1.12) - 100)
    assert (code.name, math.name) == ("code", "math")
    assert [row.name for row in speeds] == ["training, ours", "training, peer"]
    assert made.settings["commits"] == ["abc"]
    assert any("edge" in note for note in made.notes)
    assert any(note.startswith("failed: peer") for note in made.notes)


def test_the_code_has_a_name() -> None:
    assert set(code_version()) == {"commit", "code"}
