"""What reaches the terminal: settings every command shares, escaping of foreign text, and the two consoles."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Settings",
    "console",
    "has_unicode",
    "is_live",
    "notice",
    "prepare_streams",
    "sanitize",
    "write",
    "write_line",
]

# C0 and C1 controls but tab and newline, direction marks and overrides, line separators, surrogates, tags.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Settings:
    """The options every command accepts."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    debug: bool = False
    seed: int | None = None

    @classmethod
    def scan(cls, arguments: Sequence[str]) -> Settings:
        """The flags among unparsed arguments: how to report a failure to parse them."""
        flags = set(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        return cls(json="--json" in flags, no_color="--no-color" in flags, debug="--debug" in flags)


def sanitize(text: str, *, one_line: bool = False) -> str:
    """The text with every character that could steer a terminal written as its escape, each on its own.

    So a text sanitised piece by piece equals the text sanitised whole. Newlines and tabs stay unless `one_line`.
    """
    escaped = _UNSAFE.sub(_escape, text)
    return escaped.replace("\n", "\\n").replace("\t", "\\t") if one_line else escaped


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return {"\r": "\\r"}.get(found[0], f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def prepare_streams() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is escaped instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def has_unicode(encoding: str) -> bool:
    """Whether a stream of this encoding can show bars and sparklines."""
    return encoding.lower().replace("-", "").startswith("utf")


def is_live(settings: Settings) -> bool:
    """Whether stderr is a terminal that may be redrawn: not piped, not in CI, colour not refused."""
    refused = settings.no_color or settings.quiet or settings.json
    environment = os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not refused and not environment


def console(settings: Settings, *, stderr: bool = False) -> Console:
    """A console that takes text for text: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    colour = not settings.no_color and not os.environ.get("NO_COLOR") and stream.isatty()
    options: dict[str, Any] = {} if stream.isatty() or "COLUMNS" in os.environ else {"width": 100}
    return Console(
        file=stream,
        color_system="auto" if colour else None,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
        **options,
    )


def write(text: str) -> None:
    """Put a piece of a result on stdout at once, foreign characters escaped."""
    sys.stdout.write(sanitize(text))
    sys.stdout.flush()


def write_line(text: str = "") -> None:
    """Put one line of a result on stdout."""
    write(text + "\n")


def notice(settings: Settings, text: str) -> None:
    """Tell the person something that is no result: on stderr, unless they asked for quiet."""
    if not settings.quiet:
        sys.stderr.write(sanitize(text) + "\n")
        sys.stderr.flush()
