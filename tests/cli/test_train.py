from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from cmrn.recipe import load_recipe
from cmrn.training.progress import EvaluationReport, Notice, StepReport
from cmrn_cli.console import Settings
from cmrn_cli.main import run
from cmrn_cli.progress import JsonReporter, LiveReporter, PlainReporter, watch
from tests.cli.conftest import Run

RECIPE = """\
output: runs/small
tokenizer: {vocab_size: 270}
model: {d_model: 32, head_dim: 16, num_blocks: 1, temporal_layers: 1, routing_k: 1, memory_dim: 16, memory_heads: 2}
experts: [{name: math, domains: [math]}, {name: legal, domains: [legal]}]
data: {sources: [{path: text.jsonl}], deduplicate: false}
training: {max_steps: 4, batch_size: 2, sequence_length: 32, eval_every: 2, checkpoint_every: 2, eval_tokens: 64}
"""
WORDS = {
    "math": ["integral", "sum", "proof", "prime", "of", "the"],
    "legal": ["court", "party", "notice", "shall", "of", "the"],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that trains in a second, beside its text."""
    draw = random.Random(0)
    with (tmp_path / "text.jsonl").open("w", encoding="utf-8") as file:
        for number in range(40):
            domain = ("math", "legal")[number % 2]
            text = " ".join(draw.choice(WORDS[domain]) for _ in range(40))
            file.write(json.dumps({"text": text, "domain": domain}) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, "utf-8")
    return path


def test_from_text_to_figures_a_sample_and_a_trace(cmrn: Run, recipe: Path) -> None:
    done = cmrn("train", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    for words in ("bits per byte", "routing purity", "math", "mean", "runs/small/checkpoints/step-4", "a sample:",
                  'cmrn trace "integral"'):  # fmt: skip
        assert words in done.stdout
    assert "step 4/4" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    traced = cmrn("trace", "integral", "--json")
    assert traced.returncode == 0, traced.stderr
    assert json.loads(traced.stdout)["experts"]


def test_json_lines_end_with_done_and_eval_repeats_its_figures(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    assert run(["train", "recipe.yaml", "--json", "--out", "elsewhere", "--max-steps", "2", "--seed", "5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2]
    assert {"loss", "tokens_per_s"} <= set(steps[0])
    last = lines[-1]
    assert last["event"] == "done"
    assert {"run", "checkpoint", "bits_per_byte", "routing_purity", "seconds"} <= set(last)
    assert set(last["bits_per_byte"]) == {"math", "legal", "mean"}
    assert load_recipe("elsewhere/recipe.resolved.yaml").seed == 5
    assert run(["eval", "-m", "elsewhere", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
    assert document["routing_purity"] == pytest.approx(last["routing_purity"], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["training.max_stepz=1"], 2, "did you mean max_steps?"),
        (["data.sources.0.path=gone.jsonl"], 2, "gone.jsonl"),
        (["experts.0.domains=[physics]"], 2, "physics"),
        (["model.routing_k=3"], 2, "more than the number of experts"),
        (["data.sources.0.path=empty.jsonl"], 3, "empty.jsonl"),
        (["data.sources.0.path=latin.jsonl"], 3, "UTF-8"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_failures_write_nothing(
    recipe: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(recipe.parent)
    (recipe.parent / "empty.jsonl").write_bytes(b"")
    (recipe.parent / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    before = sorted(os.listdir(recipe.parent))
    assert run(["train", "recipe.yaml", *arguments]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert sorted(os.listdir(recipe.parent)) == before


def test_an_interrupt_saves_and_says_how_to_go_on(recipe: Path, cmrn: Run) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cmrn_cli.main", "train", "recipe.yaml", "training.max_steps=5000", "--json"],
        cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert '"step": 1' in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    document = json.loads(errors.splitlines()[-1])["error"]
    assert document["code"] == 130
    assert "--resume" in document["hint"]
    assert list((recipe.parent / "runs" / "small" / "checkpoints").glob("step-*"))


def report(step: int, **changes: object) -> StepReport:
    fields = {
        "step": step,
        "max_steps": 3,
        "loss": 4.0 / step,
        "tokens_per_second": 1234.0,
        "eta_seconds": 65.0,
        "learning_rate": 1e-3,
        "expert_load": {"math": 0.75, "legal": 0.25},
    }
    return StepReport(**(fields | changes))  # type: ignore[arg-type]


EVALUATION = EvaluationReport(2, {"math": 2.0, "mean": 2.0}, {"math": 0.9, "mean": 0.9}, 100, 1.0, False)


def test_plain_lines_are_ten_seconds_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = PlainReporter()
    for step, at in ((1, 100.0), (2, 109.9), (3, 110.1), (4, 111.0), (5, 111.5)):
        now = at
        reporter.step(report(step, max_steps=5))
    reporter.evaluation(EVALUATION)
    reporter.notice(Notice("passed over \x1b[31m", "warning"))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["1/5", "3/5", "5/5"]
    assert "ETA 1:05" in lines[0]
    assert "math 75%" in lines[0]
    assert lines[3] == "step 2  bits per byte  math 2.000  mean 2.000"
    assert lines[4] == "warning: passed over \\x1b[31m"


def test_quiet_says_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(Settings(quiet=True)) as reporter:
        reporter.step(report(1))
        reporter.evaluation(EVALUATION)
        reporter.notice(Notice("fine"))
        reporter.notice(Notice("look", "warning"))
    assert capsys.readouterr() == ("", "warning: look\n")


def test_json_stays_json_when_the_loss_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(Settings(json=True)) as reporter:
        assert isinstance(reporter, JsonReporter)
        reporter.step(report(1, loss=float("nan"), skipped=True))
    line = json.loads(capsys.readouterr().out)
    assert (line["loss"], line["skipped"]) == (None, True)


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with watch(Settings()) as reporter:
        assert isinstance(reporter, PlainReporter)


@pytest.mark.parametrize("variable", ["NO_COLOR", "CI"])
def test_a_terminal_gets_the_live_display_unless_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with watch(Settings()) as reporter:
        assert isinstance(reporter, LiveReporter)
    monkeypatch.setenv(variable, "1")
    with watch(Settings()) as reporter:
        assert isinstance(reporter, PlainReporter)


def test_the_live_display_shows_step_loss_experts_and_domains() -> None:
    screen = Console(file=io.StringIO(), width=160, color_system=None)
    reporter = LiveReporter(Live(console=screen), screen)
    for step in (1, 2, 3):
        reporter.step(report(step))
    reporter.evaluation(EVALUATION)
    reporter.notice(Notice("passed over \x1b[31m", "warning"))
    screen.print(reporter.render())
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for words in ("step 3/3", "1,234 tok/s", "ETA 1:05", "loss 1.333", "math", "75%", "legal", "math 2.000", "step 2"):
        assert words in shown
    assert "\x1b" not in shown
