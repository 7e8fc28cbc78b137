from __future__ import annotations

import json
import math
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn_cli.console import Settings, sanitize
from cmrn_cli.draw import bar, duration, sparkline
from cmrn_cli.output import write_json

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_dangerous(character: str) -> bool:
    """Whether it could steer a terminal or hide text: controls, surrogates, direction marks, tags."""
    if character in "\n\t":
        return False
    return (
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        or unicodedata.bidirectional(character) in BIDIRECTIONAL
        or character in "\u200e\u200f\u061c"
        or 0xE0000 <= ord(character) <= 0xE007F
    )


def test_every_dangerous_character_is_escaped_and_no_letter_is() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        escaped = sanitize(character)
        if is_dangerous(character):
            assert escaped.startswith("\\")
            assert escaped.isascii()
            assert escaped.isprintable()
        elif unicodedata.category(character)[0] in "LMNPSZ":
            assert escaped == character


@given(st.text(), st.integers(0, 50))
def test_pieces_are_as_safe_as_the_whole(text: str, cut: int) -> None:
    assert sanitize(text[:cut]) + sanitize(text[cut:]) == sanitize(text)
    assert not any(is_dangerous(character) for character in sanitize(text))


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(sanitize(text, one_line=True).splitlines()) <= 1
    assert "\t" not in sanitize(text, one_line=True)


def test_escapes_are_legible() -> None:
    assert sanitize("\x1b[31m \r \x9b \u202e \U000e0041") == "\\x1b[31m \\r \\x9b \\u202e \\U000e0041"


@given(st.floats(allow_nan=True), st.integers(1, 40), st.booleans())
def test_a_bar_is_as_wide_as_asked(share: float, width: int, unicode: bool) -> None:
    assert len(bar(share, width, unicode=unicode)) == width


def test_bars_grow_with_the_share() -> None:
    assert bar(0, 4) == "    "
    assert bar(0.5, 4) == "██  "
    assert bar(1, 4) == "████"
    assert bar(0.53125, 4) == "██▏ "
    assert bar(0.5, 4, unicode=False) == "##  "


@given(st.lists(st.floats()), st.integers(1, 30))
def test_a_sparkline_is_never_wider_than_asked(values: list[float], width: int) -> None:
    drawn = sparkline([value if abs(value) < 1e100 else math.nan for value in values], width)
    assert len(drawn) <= width


def test_sparklines_fall_when_values_do() -> None:
    assert sparkline([3, 2, 1], 8) == "█▅▁" or sparkline([3, 2, 1], 8) == "█▄▁"
    assert sparkline([float(value) for value in range(64, 0, -1)], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([1, math.nan, 1], 8, unicode=False) == "__"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (95, "1:35"), (3725, "1:02:05"), (None, "–"), (math.inf, "–"), (math.nan, "–")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_json_is_ascii_and_finite(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"text": "é\x1b\u202e\U0001f600", "loss": math.nan, "pair": (1, math.inf)})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    document = json.loads(printed)
    assert document == {"schema_version": 1, "text": "é\x1b\u202e\U0001f600", "loss": None, "pair": [1, None]}


def test_flags_after_two_dashes_are_text() -> None:
    assert Settings.scan(["trace", "--json", "x"]).json
    assert not Settings.scan(["trace", "--", "--json"]).json
