"""How foreign text looks in a trace: every character that cannot be seen, or that moves others, as its escape."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cmrn_cli.console import sanitize

if TYPE_CHECKING:
    from cmrn.inference import Trace

__all__ = ["COLOURS", "own_texts", "visible"]

COLOURS = 12
"""Experts told apart by colour; further ones begin again."""


def visible(text: str, *, one_line: bool = False) -> str:
    """The text sanitised, and all other format characters escaped too: joiners, soft hyphens, zero-width spaces.

    A person's reading needs some of those; a trace shows what the model read.
    """
    safe = sanitize(text, one_line=one_line)
    if safe.isascii():
        return safe
    return "".join(_escape(letter) if unicodedata.category(letter) == "Cf" else letter for letter in safe)


def own_texts(trace: Trace, text: str) -> Iterator[str]:
    """Each token's part of the text, every character once: of tokens that share one, the first has it."""
    position = 0
    for token in trace.tokens:
        yield text[max(position, token.start) : token.end]
        position = max(position, token.end)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
