"""Hostile strings through every command (G10): nothing that steers a terminal comes out, and nothing breaks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cmrn.bench.faults.commands import BUG
from cmrn.bench.faults.launcher import launcher
from cmrn.bench.faults.strings import hostile_strings
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["hostile", "steering"]

ROUNDS = 500
AT_ONCE = 10
CODES = frozenset({0, 2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 23})
PRELOAD = (
    "cmrn_cli.app", "cmrn_cli.main", "cmrn.memory.exchange", "cmrn.memory.index", "cmrn.memory.populate", "cmrn.model",
    "cmrn.reasoning.reason", "cmrn.recipe", "rich.console", "rich.padding", "rich.table", "typer.main",
)  # fmt: skip
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
STEERING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


def hostile(options: StoreOptions, progress: Progress) -> Findings:
    """Give each string to every command, as an argument and out of the store."""
    strings = hostile_strings(options.seed, options.rounds or ROUNDS)
    findings = Findings()
    ran = written = 0
    with launcher(options.package, preload=PRELOAD) as jobs:
        file = jobs.scratch / "hostile.jsonl"
        file.write_text("".join(json.dumps(_record(text, number)) + "\n" for number, text in enumerate(strings)))
        commands = [["memory", "populate", file.name, "--rejects", "rejects.jsonl"]]
        for start in range(0, len(strings), AT_ONCE):
            for number, text in enumerate(strings[start : start + AT_ONCE], start):
                commands += _commands(text, number, jobs.scratch)
            outcome = jobs.run("command lines", {"commands": commands, "folder": str(jobs.scratch)}, limit=600)
            if outcome.result is None:
                findings.fail(f"strings from {start}", [outcome.error])
            for command, seen in zip(commands, outcome.result or (), strict=False):
                ran, written = ran + 1, written + len(seen["output"])
                findings.fail(repr(command)[:200], _problems(command, seen))
            commands = []
            progress(
                f"{start + AT_ONCE} of {len(strings)} strings, {ran:,} commands, {len(findings.failures)} failures"
            )
    findings.count("strings", len(strings))
    findings.count("commands", ran)
    findings.count("characters written to the terminal", written)
    findings.count("steering characters, tracebacks, other exit codes", len(findings.failures), limit=0)
    return findings


def steering(output: str) -> list[str]:
    """The characters of an output that would steer a terminal, our own colours left out."""
    return STEERING.findall(COLOURS.sub("", output))


def _record(text: str, number: int) -> dict[str, Any]:
    return {"text": f"{number} {text}", "id": f"n{number} {text}", "namespace": f"n{text}", "source": f"s{text}",
            f"key {text}": text, "nested": [{text: text}]}  # fmt: skip


def _commands(text: str, number: int, folder: Path) -> list[list[str]]:
    """Every command with the string wherever one may stand; how results are shown goes by turns."""
    # No program can be given a NUL, and for "-" alone a command would read what is typed.
    text = "--" if text == "-" else text.replace("\0", "")
    shown = [[], ["--json"], ["-v"], ["--debug"], ["--no-color"], ["-q"]][number % 6]
    named = f"n{number} {text}"
    commands = [
        ["memory", "search", text],
        ["memory", "search", "amber", "-k", "3"],
        ["memory", "search", "amber", "--namespace", f"n{text}"],
        ["memory", "search", "amber", "--where", f"key={text}"],
        ["memory", "search", "amber", "--where", text],
        ["memory", "get", named],
        ["memory", "get", text],
        ["memory", "edit", named, "--text", f"{number} {text} again"],
        ["memory", "edit", named, "--meta", f"{text}={text}"],
        ["memory", "stats"],
        ["memory", "stats", "--store", text],
        ["memory", "populate", text],
        ["memory", "export", f"out{number}.jsonl", "--namespace", f"n{text}"],
        ["memory", "copy", text, text],
        ["memory", "delete", "--source", f"s{text}", "--yes"],
        ["memory", "delete", text],
        ["memory", text],
    ]
    if number % 5 == 0:
        commands += [
            [text], ["recipe", "show", text], ["recipe", "validate", text], ["train", text], ["reason", text],
            ["generate", text, "-m", text], ["trace", text, "-m", text], ["eval", "-m", text], ["bench", text],
            ["bench", "store", "--case", text],
        ]  # fmt: skip
    if number % 25 == 0:
        commands += [["memory", "verify"], ["memory", "compact"], ["memory", "rebuild"], ["memory", "populate", "-h"]]
    return [[*command, *shown] for command in commands]


def _problems(command: list[str], seen: dict[str, Any]) -> list[str]:
    problems = []
    found = steering(seen["output"])
    if found:
        problems.append(f"writes {found[:5]!r}")
    if seen["code"] not in CODES:
        problems.append(f"exit code {seen['code']}: {seen['output'][-300:]!r}")
    if BUG in seen["output"] and "--debug" not in command:
        problems.append(f"a traceback: {seen['output'][-300:]!r}")
    if "--json" in command and "-h" not in command and not seen["output"].isascii():
        problems.append("JSON that is not ASCII")
    return problems
