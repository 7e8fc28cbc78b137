"""The fenced blocks of the project's pages: sessions (`console`), scripts (`sh`, `bash`), Python, and what they print.

A `console` block is a session: lines after `$ ` are typed, the lines below each are what it printed. A `sh` or `bash`
block is only read. In printed text `…` or `...` stands for anything, over lines too where it has a line of its own.
A comment `<!-- not run: why -->` above a block exempts it from being run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
OPERATORS = re.compile(r"[|&;<>()]+")
NUMBER = re.compile(r"\d[\d.,_]*(?:e[-+]?\d+)?")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Block:
    """One fenced block: its page and line, language, text, and why it is not run, if it is not."""

    place: str
    language: str
    text: str
    why_not: str | None


@dataclass(frozen=True)
class Command:
    """One line to type, and what is shown below it."""

    place: str
    line: str
    printed: str
    runs: bool

    @property
    def segments(self) -> list[list[str]]:
        """The words of each simple command of the line, redirections left out."""
        words = shlex.shlex(self.line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        words.commenters = "#"
        found: list[list[str]] = [[]]
        redirected = False
        for word in words:
            if OPERATORS.fullmatch(word):
                redirected = word[0] in "<>"
                found.extend([] if redirected else [[]])
            elif redirected:
                redirected = False
            else:
                found[-1].append(word)
        return [segment for segment in found if segment]


def pages() -> list[Path]:
    """README, CONTRIBUTING, CHANGELOG and everything under docs/."""
    return [*sorted(CHECKOUT.glob("*.md")), *sorted((CHECKOUT / "docs").rglob("*.md"))]


def blocks(page: str, name: str) -> list[Block]:
    """The fenced blocks of a page's text, in order."""
    return [
        Block(
            f"{name}:{page[: match.start('language')].count(chr(10)) + 1}",
            match["language"],
            match["text"],
            match["why"],
        )
        for match in FENCE.finditer(page)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The lines to type of a session or script, continuation lines joined."""
    session = block.language == "console"
    if not session and block.language not in ("sh", "bash", "shell"):
        return
    typed: str | None = None
    printed: list[str] = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        begins = line.startswith("$ ") if session else bool(line.strip()) and not line.lstrip().startswith("#")
        if begins:
            if typed is not None:
                yield Command(block.place, typed, "\n".join(printed), session and not block.why_not)
            typed, printed = line.removeprefix("$ "), []
        else:
            printed.append(line)
    if typed is not None:
        yield Command(block.place, typed, "\n".join(printed).strip("\n"), session and not block.why_not)


def shown_matches(shown: str, actual: str, *, numbers: bool) -> bool:
    """Whether the text shown is what came out, up to spacing and ellipses; and up to numbers, if not `numbers`."""
    plain = COLOUR.sub("", actual)
    if not numbers:
        plain = NUMBER.sub("0", plain)
        shown = NUMBER.sub("0", shown)
    pattern = re.escape(" ".join(shown.split())).replace(r"\ ", " ")
    pattern = re.sub(r"…|(?:\\\.){3}", ".*", pattern)
    return re.fullmatch(pattern.replace(" .* ", " (?:.* )?"), " ".join(plain.split())) is not None
