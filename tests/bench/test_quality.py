"""The whole way, from texts to a table, with models that learn nothing in four steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cmrn.bench import ablate, quality
from cmrn.bench.ablate import AblateOptions, ablation_specs
from cmrn.bench.measure import bits_per_byte, carried_bits_per_byte
from cmrn.bench.quality import QualityOptions, text_specs
from cmrn.bench.runs import Results
from cmrn.bench.settings import load_setting
from cmrn.bench.text import prepare, read
from cmrn.bench.train import train_run
from cmrn.bench.variants import build_model, sizes
from cmrn.errors import UsageError
from cmrn.model import CMRN
from tests.bench.tiny_text import TINY, write_corpora


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> QualityOptions:
    root = write_corpora(tmp_path_factory.mktemp("data"))
    return QualityOptions("cpu", overrides=TINY, data_root=root, cache=root / "cache", seeds=1)


def silent(_: str) -> None:
    pass


def test_setting_e_is_what_it_says() -> None:
    size = sizes(quality.cmrn_spec(load_setting("e").model))
    assert size["active"] == pytest.approx(17.7e6, rel=0.04)
    training = load_setting("e").training
    tokens = training.max_steps * training.batch_size * training.sequence_length
    assert tokens == pytest.approx(32e6, rel=0.01)
    assert load_setting("e").model.domains == ("medical", "math", "code", "legal", "literature", "general")


@pytest.mark.parametrize(
    "override", ["model.d_modle=3", "nothing", "data.x=1", "model.d_model=big", "training.max_steps=[", "model.="]
)
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(UsageError):
        load_setting("e", (override,))


def test_llamas_match_ours() -> None:
    specs = text_specs(load_setting("e"), "data")
    ours = sizes(specs["ours"].model)
    for name, spec in specs.items():
        if name == "Llama, equal total":
            assert sizes(spec.model)["total"] == pytest.approx(ours["total"], rel=0.01)
        elif name.startswith("Llama"):
            assert sizes(spec.model)["active"] == pytest.approx(ours["active"], rel=0.01), name
            assert spec.model["config"]["hidden"] % 8 == 0
    assert specs["Llama, window 256"].model["config"]["full_layers"] == [1, 4]
    assert specs["Llama, AdamW"].training["optimizer"] == "adamw"
    with pytest.raises(UsageError, match="no variant"):
        quality.choose(specs, QualityOptions(variants=("GPT",)))


@pytest.fixture(scope="module")
def made(options: QualityOptions) -> tuple[QualityOptions, quality.Report]:
    sweep = dataclasses.replace(
        options, variants=("Llama, Muon",), sweep=True, rates=(1e-3, 2e-3), equal_time=True,
        results=options.cache / "results.jsonl",
    )  # fmt: skip
    return sweep, quality.run(sweep, silent)


def test_a_sweep_then_seeds_then_equal_time(made: tuple[QualityOptions, quality.Report]) -> None:
    options, report = made
    lines = (options.results or Path()).read_text().splitlines()
    names = {row.name for row in report.rows}
    assert {"mean", "code", "mean, more context", "training, ours", "training, Llama, Muon, equal time"} <= names
    # Two rates for each side, and one run of equal time, unless its steps came out the same.
    assert len(lines) in (4, 5)
    assert all(row.value is not None and row.value > 0 for row in report.rows)


def test_a_second_call_repeats_nothing(made: tuple[QualityOptions, quality.Report]) -> None:
    options, report = made
    path = options.results or Path()
    before = path.read_text()
    plain = dataclasses.replace(options, sweep=False, equal_time=False)
    again = quality.run(plain, silent)
    assert path.read_text() == before
    assert again.rows[0] == report.rows[0]


def test_the_same_run_gives_the_same_figures(options: QualityOptions) -> None:
    setting = load_setting("e", TINY)
    text = read(prepare(options.data_root, options.cache, setting.model.vocab_size, silent))
    spec = text_specs(setting, text.fingerprint)["ours"]
    first, second = (train_run(spec, text, torch.device("cpu"), silent) for _ in range(2))
    assert first.figures == second.figures
    assert first.curve == second.curve
    assert first.tokens == 4 * 2 * 32


def test_states_carried_or_not_are_one_figure_where_a_window_holds_the_document(options: QualityOptions) -> None:
    setting = load_setting("e", TINY)
    text = read(prepare(options.data_root, options.cache, setting.model.vocab_size, silent))
    model = build_model(text_specs(setting, "")["ours"].model)
    assert isinstance(model, CMRN)
    plain, carried = (figure(model, text, 512, 4, "float32") for figure in (bits_per_byte, carried_bits_per_byte))
    assert carried == pytest.approx(plain, rel=1e-5)
    short = carried_bits_per_byte(model, text, 16, 2, "float32")
    assert short == pytest.approx(carried, rel=1e-4)
    assert plain["mean"] == pytest.approx(sum(plain[domain] for domain in text.domains) / 6)


def test_every_ablation_trains(options: QualityOptions) -> None:
    setting = load_setting("e", (*TINY, "model.temporal_layers=2", "model.expert_types=[general, symbolic]"))
    specs = ablation_specs(setting, "")
    ids = torch.randint(0, 320, (1, 8))
    assert len(specs) == 13
    assert not specs["each row read afresh"].training["carry_states"]
    for name, spec in specs.items():
        model = build_model(spec.model).train()
        loss = model(ids, labels=ids).loss
        assert loss is not None
        loss.backward()
        assert bool(loss.detach().isfinite()), name
    same = build_model(specs["one timescale"].model)
    assert isinstance(same, CMRN)
    assert {layer.timescale for block in same.blocks for layer in block.temporal.layers} == {1}  # type: ignore[union-attr]


def test_a_dense_layer_has_as_many_active_parameters() -> None:
    specs = ablation_specs(load_setting("e"), "")
    whole, dense, forgetful = (
        sizes(specs[name].model)["active"] for name in ("ours", "one dense layer for experts", "memory off")
    )
    assert dense == pytest.approx(whole, rel=0.03)
    assert forgetful < whole


def test_the_ablation_says_what_a_part_was_worth(options: QualityOptions) -> None:
    chosen = AblateOptions(**{**vars(options), "variants": ("memory off",)})
    report = ablate.run(chosen, silent)
    off = next(row for row in report.rows if row.name == "memory off")
    whole = next(row for row in report.rows if row.name == "ours")
    assert whole.detail["worth"] == 0.0
    assert off.value is not None
    assert off.detail["worth"] == pytest.approx(off.value - (whole.value or 0))


def test_a_run_that_fails_is_named(options: QualityOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(options, overrides=(*TINY, "training.precision=bfloat16"), gpus=0)
    monkeypatch.setattr(quality, "prepare", lambda *_: options.cache / "tokens-320-missing.npz")
    said: list[str] = []
    report = quality.run(dataclasses.replace(broken, variants=("Llama, Muon",)), said.append)
    assert [row for row in report.rows if row.name == "mean"] == []
    assert sum(note.startswith("failed") for note in report.notes) == 2
    assert any("no such file of tokens" in line for line in said)


def test_results_of_other_machines_join(tmp_path: Path, made: tuple[QualityOptions, quality.Report]) -> None:
    options, _ = made
    text = (options.results or Path()).read_text()
    both = tmp_path / "both.jsonl"
    both.write_text(text + text)
    assert len(Results(both)._found) == len(set(text.splitlines()))
