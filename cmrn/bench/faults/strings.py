"""Strings that steer terminals, break markup, escape folders or are no text at all, and lines that are no records."""

from __future__ import annotations

import json
import random

__all__ = ["hostile_strings", "lines"]

PIECES = (
    "\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;ZXZpbA==\x07", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[31m", "\x1bc",
    "\x1b[?1049h", "\x1bP1$r\x1b\\", "\x9b2J", "\x9d0;t\x9c", "\x90", "\x85", "\x00", "\x07", "\x08\x08\x08",
    "\r", "\n", "\t",
    "\x0b", "\x0c", "\x7f", "\u202e", "\u2066", "\u2069", "\u200f", "\u061c", "\u2028", "\u2029", "\ufeff",
    "\u200b", "\u200d",
    "\ud800", "\udfff", "\udc80", "\udc9b", "\U000e0041\U000e007f", "\ufff9", "[/nope]", "[link=http://x]",
    "[bold", ":smile:",
    "{0}", "%s%n", "{{x}}", "../../etc/passwd", "/dev/null", "'; DROP TABLE rec; --", '"', "\\", "`id`",
    "$(id)", "-", "--json",
    "é", "e\u0301", "漢字", "🜚", "👩‍👩‍👧", "a" * 500, "", " ", "=", "k=v", "record:1", "record:٣",
    "record:99999999999999999999",
    "*", "?", "\u0001", "<script>", "NaN", "null", "1e999", "İ", "ﬀ", "0",
)  # fmt: skip

REFUSED = (
    '{"text": "BAD"', '{"text": 5, "note": "BAD"}', '{"text": null}', '{"texts": "BAD"}', '["BAD"]', '"BAD"',
    "7", "null",
    '{"text": "BAD", "text": "BAD"}', '{"text": "BAD", "n": NaN}', '{"text": "BAD", "n": Infinity}',
    '{"text": "BAD", "n": 1e999}', '{"text": "BAD", "n": 9223372036854775808}', '{"text": "BAD \\ud800"}',
    '{"text": "BAD\\u0000"}', '{"text": ""}', '{"text": "BAD", "id": [1]}', '{"text": "BAD", "namespace": 3}',
    '\ufeff{"text": "BAD"}', '{"text": "BAD", "n": ' + "[" * 100 + "]" * 100 + "}", "[" * 100_000, '{"a":' * 5_000,
    '{"text": "BAD"} {}', "{'text': 'BAD'}", '{"text": "BAD",}', '{"text": "BAD\x01"}', '{"text": "BAD" // no\n}',
    '{"text": "' + "BAD" * 400_000 + '"}', '{"text": "BAD", "n": ' + "9" * 5_000 + "}",
)  # fmt: skip


def hostile_strings(seed: int, count: int) -> list[str]:
    """So many strings: each piece alone first, then drawn together."""
    draw = random.Random(seed)
    drawn = ["".join(draw.choices(PIECES, k=draw.randint(2, 5))) for _ in range(max(0, count - len(PIECES)))]
    return [*PIECES, *drawn][:count]


def lines(seed: int, count: int) -> list[tuple[str, bytes]]:
    """Lines of JSON, each with what is to become of it: "good", "bad", or "any" where that is not foreseen.

    Good ones hold a text, bad ones nowhere anything but the word BAD where a text could be.
    """
    draw = random.Random(seed)
    made: list[tuple[str, bytes]] = []
    for number in range(count):
        kind = draw.choice(("good", "bad", "any", "any"))
        text = f"{number} " + "".join(draw.choices(PIECES, k=3)).replace("\x00", "").encode("utf-8", "ignore").decode()
        good = json.dumps(
            {"text": text, "id": draw.choice((None, number, str(number)))}, ensure_ascii=draw.random() < 0.5
        )
        if kind == "good":
            made.append((kind, good.encode()))
        elif kind == "bad":
            made.append((kind, draw.choice(REFUSED).replace("\n", " ").encode("utf-8", "surrogatepass")))
        else:
            made.append((kind, _mutated(good.encode(), draw)))
    return made


def _mutated(line: bytes, draw: random.Random) -> bytes:
    content = bytearray(line)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content) + 1)
        change = draw.randrange(4)
        if change == 0:
            content[place:place] = draw.randbytes(draw.randint(1, 3))
        elif change == 1:
            del content[place : place + draw.randint(1, 5)]
        elif change == 2:
            content[place:place] = draw.choice(
                (b"{", b"}", b"[", b'"', b",", b":", b"\\u", b"\\", b"\x00", b"\xff", b"1e99")
            )
        else:
            content[place : place + 1] = draw.choice(PIECES).encode("utf-8", "surrogatepass")
    return bytes(content).replace(b"\n", b" ")
