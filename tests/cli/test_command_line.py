from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from cmrn_cli import add_expert, doctor, evaluate, expert, generate, recipe, trace, train
from cmrn_cli.app import build_app
from cmrn_cli.main import run
from tests.cli.conftest import Run

HEAVY = ("torch", "faiss", "transformers", "numpy", "pydantic", "tokenizers", "yaml")
COMMANDS = ["", "train", "generate", "trace", "eval", "recipe", "recipe ls", "recipe show", "recipe cp",
            "recipe validate", "doctor", "trace-routing", "add-expert", "expert", "expert ls", "expert show",
            "expert rm", "expert rename", "expert export", "expert import", "expert ablate"]  # fmt: skip
EXAMPLES = [
    *train.EXAMPLES, *generate.EXAMPLES, *trace.EXAMPLES, *evaluate.EXAMPLES, *doctor.EXAMPLES,
    *add_expert.EXAMPLES, *(line for lines in (*recipe.EXAMPLES.values(), *expert.EXAMPLES.values()) for line in lines),
]  # fmt: skip


def test_help_and_recipe_lists_load_nothing_they_do_not_need() -> None:
    code = (
        "import sys; from cmrn_cli.main import run; run(['--help']);"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LOADED []")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_works_everywhere_and_ends_with_three_examples(name: str, flag: str) -> None:
    result = CliRunner().invoke(build_app(), [*name.split(), flag])
    assert result.exit_code == 0
    shown = result.stdout.split("Examples:")[1].strip().splitlines()
    assert len([line for line in shown if line.strip()]) >= 3
    assert "-h" in result.stdout


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_parse(line: str) -> None:
    command = line.split("|")[-1].split(">")[0]
    words = shlex.split(command)
    assert words[0] == "cmrn"
    tree = typer.main.get_command(build_app())
    with tree.make_context("cmrn", words[1:]) as context:
        name, sub, rest = tree.resolve_command(context, [*context._protected_args, *context.args])
        assert sub is not None
        with sub.make_context(name, rest, parent=context):
            pass


def test_no_command_shows_help(cmrn: Run) -> None:
    done = cmrn()
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_version(cmrn: Run) -> None:
    for flag in ("-V", "--version"):
        done = cmrn(flag)
        assert done.returncode == 0
        assert re.fullmatch(r"cmrn \d+\.\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["--bogus"], "No such option"),
        (["reason"], "Missing argument"),
        (["trace"], "nothing to read"),
        (["recipe"], "Missing command"),
        (["generate", "x", "--temperature", "-1"], "temperature"),
        (["generate", "x", "--top-k", "none"], "top-k"),
        (["train", "missing.yaml"], "no such recipe"),
        (["recipe", "show", "missing"], "no shipped recipe"),
        (["recipe", "validate", "quickstart", "seed=-1"], "argument 'seed=-1'"),
    ],
)
def test_usage_errors_exit_2_in_words_and_in_json(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    plain = capsys.readouterr()
    assert plain.out == ""
    assert words in plain.err
    assert "Traceback" not in plain.err
    assert run(["--json", *arguments]) == 2
    machine = capsys.readouterr()
    assert machine.out == ""
    assert json.loads(machine.err)["error"]["code"] == 2
    assert list(tmp_path.iterdir()) == []


def test_global_options_count_before_and_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for words in (["--json", "recipe", "ls"], ["recipe", "--json", "ls"], ["recipe", "ls", "--json"]):
        assert run(words) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert json.loads(printed[0])["schema_version"] == 1


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "cmrn_cli.main", "recipe", "show", "quickstart"],
            stdout=closed, stderr=subprocess.PIPE, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.stderr == b""
    assert done.returncode == 0


def test_an_encoding_without_the_characters_does_not_fail(cmrn: Run) -> None:
    done = cmrn("recipe", "ls", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()
    done = cmrn("recipe", "show", "é\U0001f600", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert "\\xe9" in done.stderr


class TestRecipe:
    def test_three_mistakes_are_printed_at_once_and_fast(self, cmrn: Run, tmp_path: Path) -> None:
        text = "seed: x\ndata:\n  sources: [{path: a.txt, wieght: 1}]\ntraining:\n  lr: 1e-4\n"
        (tmp_path / "bad.yaml").write_text(text, "utf-8")
        started = time.perf_counter()
        done = cmrn("recipe", "validate", "bad.yaml")
        assert time.perf_counter() - started < 2
        assert done.returncode == 2
        for words in ("bad.yaml:1:1", "bad.yaml:3:27", "did you mean weight?", "bad.yaml:5:3", "learning_rate"):
            assert words in done.stderr

    def test_train_refuses_it_without_loading_torch_or_writing(self, cmrn: Run, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("data: {}\n", "utf-8")
        done = cmrn("train", "bad.yaml")
        assert done.returncode == 2
        assert os.listdir(tmp_path) == ["bad.yaml"]

    def test_show_is_the_file_and_cp_writes_it_once(self, cmrn: Run, tmp_path: Path) -> None:
        shown = cmrn("recipe", "show", "quickstart").stdout
        assert cmrn("recipe", "cp", "quickstart", "mine.yaml").stdout == "mine.yaml\n"
        assert (tmp_path / "mine.yaml").read_text("utf-8") == shown
        (tmp_path / "mine.yaml").write_text("changed", "utf-8")
        again = cmrn("recipe", "cp", "quickstart", "mine.yaml")
        assert again.returncode == 2
        assert "--force" in again.stderr
        assert (tmp_path / "mine.yaml").read_text("utf-8") == "changed"
        assert cmrn("recipe", "cp", "quickstart", "mine.yaml", "--force").returncode == 0
        assert (tmp_path / "mine.yaml").read_text("utf-8") == shown

    def test_validate_says_ok_and_resolves(self, cmrn: Run, tmp_path: Path) -> None:
        done = cmrn("recipe", "validate", "quickstart", "training.max_steps=7")
        assert done.returncode == 0
        assert "7 steps" in done.stdout
        assert cmrn("recipe", "validate", "quickstart", "-q").stdout == ""
        resolved = cmrn("recipe", "validate", "quickstart", "-v").stdout
        (tmp_path / "resolved.yaml").write_text(resolved, "utf-8")
        assert cmrn("recipe", "validate", "resolved.yaml", "-v").stdout == resolved
        document = json.loads(cmrn("recipe", "validate", "quickstart", "--json").stdout)
        assert document["ok"] is True
        assert document["recipe"]["model"]["experts"][0]["name"]

    def test_a_hostile_recipe_cannot_steer_the_terminal(self, cmrn: Run, tmp_path: Path) -> None:
        text = '"\\e[31m\\u202E": 1\ndata: {sources: [{path: "\\e]0;x\\a", wieght: 1}]}\n'
        (tmp_path / "bad.yaml").write_text(text, "utf-8")
        done = cmrn("recipe", "validate", "bad.yaml")
        assert done.returncode == 2
        assert not set(done.stderr) & set("\x1b\u202e\x07")
        assert "\\x1b[31m\\u202e" in done.stderr


class TestDoctor:
    def test_reports_and_exits_0(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(["doctor", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        names = {check["name"] for check in document["checks"]}
        assert {"python", "torch", "device", "faiss", "MiniLM weights", "sqlite", "memory", "disk", "runs"} <= names
        assert document["ok"] is True
        assert run(["doctor"]) == 0
        assert "torch" in capsys.readouterr().out

    def test_a_corrupt_newest_checkpoint_is_exit_4(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        copy = shutil.copytree(checkpoint, tmp_path / "runs" / "one" / "checkpoints" / "step-3")
        assert run(["doctor", "--json"]) == 0
        assert "newest checkpoint" in capsys.readouterr().out
        weights = copy / "router.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        assert run(["doctor"]) == 4
        shown = capsys.readouterr()
        assert "BROKEN" in shown.out
        assert "router.safetensors" in shown.err

    def test_a_missing_essential_package_is_exit_7(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def version(name: str) -> str:
            if name == "tokenizers":
                raise PackageNotFoundError(name)
            return "1"

        monkeypatch.setattr(doctor, "version", version)
        assert run(["doctor", "--json"]) == 7
        shown = capsys.readouterr()
        assert json.loads(shown.out)["ok"] is False
        assert "tokenizers" in json.loads(shown.err)["error"]["where"]
