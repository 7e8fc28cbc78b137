from __future__ import annotations

import json
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from cmrn.bench.report import Progress, Report, Row
from cmrn_cli import bench
from cmrn_cli.app import build_app
from cmrn_cli.main import run
from tests.bench.tiny_text import TINY, write_corpora


@dataclass(frozen=True)
class MixerOptions:
    device: str | None = None
    repeats: int = 20


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[MixerOptions]:
    """Stands in for a benchmark; remembers its options."""
    seen: list[MixerOptions] = []

    def measure(options: MixerOptions, progress: Progress) -> Report:
        seen.append(options)
        progress("timing")
        rows = (
            Row("forward", 1234.5, "ms", "SDPA", 2469.0, limit=1000.0, spread=0.01234),
            Row("alone", 0.0123456, "s"),
        )
        return Report("mixer", "a device", rows, {"heads": 8}, ("A note.",))

    module = types.ModuleType("cmrn.bench.mixer")
    vars(module).update(MixerOptions=MixerOptions, run=measure)
    monkeypatch.setitem(sys.modules, "cmrn.bench.mixer", module)
    return seen


@pytest.mark.parametrize("name", bench.EXAMPLES)
def test_help_ends_with_three_examples_that_parse(name: str) -> None:
    result = CliRunner().invoke(build_app(), ["bench", *name.split(), "-h"])
    assert result.exit_code == 0
    assert len([line for line in result.stdout.split("Examples:")[1].splitlines() if line.strip()]) >= 3
    group = typer.main.get_command(bench.build_app())
    for line in bench.EXAMPLES[name]:
        _, _, command, *rest = shlex.split(line)
        with group.make_context("bench", [command, *rest]) as context:
            found, sub, words = group.resolve_command(context, [command, *rest])  # type: ignore[attr-defined]
            assert sub is not None
            with sub.make_context(found, words, parent=context):
                pass


def test_a_table_a_document_and_bare_figures(measured: list[MixerOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "mixer", "--device", "cpu", "--repeats", "7"]) == 0
    assert measured == [MixerOptions("cpu", 7)]
    shown = capsys.readouterr()
    for word in ("forward", "1,234", "SDPA", "2,469", "0.500", "1,000", "0.01235", "a device"):
        assert word in shown.out
    assert "timing" in shown.err
    assert "A note." in shown.err
    assert "no CUDA device" in shown.err

    assert run(["bench", "mixer", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert measured[1] == MixerOptions("cpu", 20)
    assert {"schema_version", "bench", "device", "rows", "settings", "notes"} == set(document)
    assert {"name", "value", "unit", "peer", "peer_value", "ratio", "limit", "spread"} == set(document["rows"][0])
    assert document["rows"][0]["ratio"] == 0.5

    assert run(["bench", "mixer", "--device", "cpu", "-q"]) == 0
    assert capsys.readouterr().out == "forward\t1234.5\nalone\t0.0123456\n"


def test_quality_from_texts_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_corpora(tmp_path)
    words = ["bench", "quality", "--device", "cpu", "--data-root", str(root), "--cache", str(root / "cache")]
    for override in TINY:
        words += ["--set", override]
    assert run([*words, "--prepare-only"]) == 0
    assert "tokens are in" in capsys.readouterr().err
    words += ["--seeds", "1", "--seed", "4", "--variant", "Llama, Muon", "--results", str(tmp_path / "r.jsonl")]
    assert run([*words, "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["rows"][0]["peer"] == "Llama, Muon"
    assert "min left" in shown.err
    assert {json.loads(line)["seed"] for line in (tmp_path / "r.jsonl").read_text().splitlines()} == {4}
    assert run(words) == 0
    assert "%" in capsys.readouterr().out


def test_without_texts_the_exit_code_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("quality", "ablate"):
        words = ["bench", name, "--device", "cpu", "--data-root", str(tmp_path), "--cache", str(tmp_path / "cache")]
        assert run(words) == 2
        assert "--data-root" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["quality", "--setting", "x"], ["quality", "--task", "x"], ["speed"], ["mixer", "--gpus", "1"]]
)
def test_what_there_is_not_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
