"""What the pages say is so: their commands exist, their sessions print what is shown, their Python runs."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import typer.main

from cmrn import CMRN, CMRNConfig, CMRNTokenizer
from tests.docs.blocks import CHECKOUT, Block, Command, blocks, commands, pages, shown_matches

ALL_BLOCKS = [block for page in pages() for block in blocks(page.read_text(encoding="utf-8"), page.name)]
ALL_COMMANDS = [command for block in ALL_BLOCKS for command in commands(block)]
CMRN_CALLS = [(c, words[1:]) for c in ALL_COMMANDS for words in c.segments if words[0] == "cmrn"]
SESSIONS = [block for block in ALL_BLOCKS if block.language == "console" and not block.why_not]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
# Largest values that a page's Python may ask for here; the structure of the example stays.
CAPS = {
    "vocab_size": 512,
    "d_model": 64,
    "head_dim": 32,
    "num_experts": 4,
    "num_blocks": 2,
    "memory_dim": 64,
    "memory_size": 1000,
    "max_steps": 2,
    "batch_size": 2,
    "sequence_length": 32,
    "max_length": 40,
    "max_new_tokens": 8,
}


def needs_no_model(command: Command) -> bool:
    """Whether a session's line runs in a moment, without a trained model."""
    words = [word for word in command.segments[0] if word != "--json"]
    quick = words[1:2] in (["recipe"], ["reason"], ["--version"], ["--help"]) or words[-1] == "--help"
    return command.runs and words[0] == "cmrn" and quick and len(command.segments) == 1


@pytest.mark.parametrize(
    "line",
    ["pip install -e '.[cpu]' && cmrn train recipes/quickstart.yaml", "pip install -e '.[dev]' && pytest"],
)
def test_readme_begins_with_the_two_commands(line: str) -> None:
    assert line in [command.line for block in blocks(README, "README.md") for command in commands(block)]


def test_readme_shows_sessions_and_python() -> None:
    languages = {block.language for block in blocks(README, "README.md")}
    assert {"console", "python"} <= languages


@pytest.mark.parametrize(("command", "words"), CMRN_CALLS, ids=lambda value: getattr(value, "line", None) or "words")
def test_every_command_parses(command: Command, words: list[str]) -> None:
    parse(words)


def parse(words: list[str]) -> None:
    """Read the words as the command line does, to the last flag, without doing what they say."""
    from cmrn_cli.app import build_app

    def disarm(node: object) -> None:
        if getattr(node, "callback", None) is not None:
            node.callback = lambda *args, **options: None  # type: ignore[attr-defined]
        for child in getattr(node, "commands", {}).values():
            disarm(child)

    command = typer.main.get_command(build_app())
    disarm(command)
    command.main(list(words), prog_name="cmrn", standalone_mode=False)


@pytest.mark.parametrize("words", [["trian", "x.yaml"], ["train"], ["recipe", "ls", "--jsn"], ["eval", "--tasks"]])
def test_a_command_that_does_not_exist_fails_to_parse(words: list[str]) -> None:
    with pytest.raises(Exception) as failure:  # noqa: PT011
        parse(words)
    assert "Usage" in type(failure.value).__name__ or "No such" in str(failure.value) or "issing" in str(failure.value)


def type_in(command: Command, folder: Path, seconds: int) -> str:
    """What a line prints, both streams, when typed in `folder`; a failure fails the test."""
    program = f'cmrn() {{ "{sys.executable}" -m cmrn_cli.main "$@"; }}; {command.line}'
    done = subprocess.run(
        ["bash", "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{command.place}: {command.line}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def beside_recipes(tmp_path: Path) -> Path:
    """An empty folder but for recipes/, as after a clone."""
    shutil.copytree(CHECKOUT / "recipes", tmp_path / "recipes")
    return tmp_path


@pytest.mark.parametrize("command", [c for c in ALL_COMMANDS if needs_no_model(c)], ids=lambda c: c.line)
def test_quick_sessions_print_what_is_shown(command: Command, beside_recipes: Path) -> None:
    actual = type_in(command, beside_recipes, 60)
    assert not command.printed or shown_matches(command.printed, actual, numbers=True), actual


@pytest.mark.slow
def test_readme_sessions_print_what_is_shown(beside_recipes: Path) -> None:
    """Every session of the README in order, the training included; figures may differ, words may not."""
    type_in(Command("README", "cmrn train recipes/quickstart.yaml", "", True), beside_recipes, 900)
    for block in SESSIONS:
        for command in commands(block) if block.place.startswith("README") else ():
            if command.segments[0][0] in ("cmrn", "echo", "printf", "cat"):
                actual = type_in(command, beside_recipes, 900)
                assert not command.printed or shown_matches(command.printed, actual, numbers=False), (
                    f"{command.place}: {command.line}\n{actual}"
                )


def shrink(code: str) -> str:
    """The same example with every size cut to CAPS."""

    def cap(match: re.Match[str]) -> str:
        return f"{match[1]}={min(int(match[2]), CAPS[match[1]])}"

    return re.sub(rf"\b({'|'.join(CAPS)})=(\d[\d_]*)\b", cap, code)


@pytest.fixture(scope="module")
def small_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a page's from_pretrained gets in place of a run it supposes."""
    tokenizer = CMRNTokenizer.train(["The integral of x is x squared over two. "] * 9, 300)
    config = CMRNConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, num_experts=4, memory_dim=32, memory_heads=2, num_blocks=2
    )
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    CMRN(config, tokenizer).save_pretrained(folder)
    return folder


def test_readme_python_runs(small_model_folder: Path, beside_recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def or_small(load: Callable[[object], object]) -> object:
        return staticmethod(lambda name: load(name if Path(str(name)).exists() else small_model_folder))

    monkeypatch.setattr(CMRN, "from_pretrained", or_small(CMRN.from_pretrained))
    monkeypatch.setattr(CMRNTokenizer, "from_pretrained", or_small(CMRNTokenizer.from_pretrained))
    monkeypatch.chdir(beside_recipes)
    torch.manual_seed(1)
    found = blocks(README, "README.md")
    names: dict[str, object] = {"__name__": "readme"}
    for block, after in pairwise([*found, None]):
        if block is not None and block.language == "python" and not block.why_not:
            printed = run_python(block, names)
            if after is not None and after.language == "text":
                assert shown_matches(after.text, printed, numbers=False), f"{after.place}\n{printed}"


def run_python(block: Block, names: dict[str, object]) -> str:
    """What a Python block prints, run with the names that earlier blocks left."""
    printed = io.StringIO()
    code = compile("\n" * int(block.place.rpartition(":")[2]) + shrink(block.text), "README.md", "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue()


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
