"""Sentences and words with the characters they stand at; nothing of the input is lost between them."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Sentence", "Token", "segment", "tokenize"]

_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No)|\b[A-Z](?:\.[A-Z])*)$")
_END = re.compile(r"[.!?]+[\"'”’)]*(?=\s|$)|;(?=\s|$)|\n")
_OPTION = re.compile(r"\s*\(?([A-Z])[).:]\s+")
_NUMBER = re.compile(r"\s*(?:\d+[.)]?|[-*•])\s+(?=\S)")
_WORD = re.compile(
    r"\d+(?:[.,]\d+)*(?:st|nd|rd|th)?|[^\W\d_]+(?:[-./&][^\W_]+|\d+|_[^\W_]+)*|'s\b|’s\b|['’](?=\s)|[^\s\w]|\w+"
)
_CONTRACTION = re.compile(r"\b(ca|wo|sha)(n['’]t)\b|\b(\w+)(n['’]t)\b", re.IGNORECASE)
_FULL = {"ca": "can", "wo": "will", "sha": "shall"}


@dataclass(frozen=True)
class Token:
    """One word or mark. lower: what the grammar reads; start, end: characters of the input."""

    text: str
    lower: str
    start: int
    end: int


@dataclass(frozen=True)
class Sentence:
    """One sentence without its end mark. ends: that mark; option: its letter where it is one of several answers."""

    text: str
    start: int
    end: int
    ends: str
    option: str | None = None


def segment(text: str) -> tuple[Sentence, ...]:
    """The sentences of a text in order; each `text[start:end]` is the sentence's own text."""
    found = []
    start = 0
    lines = frozenset(re.findall(r"(?m)^\s*(\d+)\s", text))
    for mark in _END.finditer(text):
        before = text[start : mark.start()]
        if mark[0] == "." and _ABBREVIATION.search(before) and not _at_end(text, mark.end(), before):
            continue
        if mark[0] == "\n" and _is_wrapped(before, text[mark.end() :]):
            continue
        found.append(_sentence(text, start, mark.start(), mark[0].strip(), lines))
        start = mark.end()
    found.append(_sentence(text, start, len(text), "", lines))
    return tuple(sentence for sentence in found if sentence is not None)


def _is_wrapped(before: str, after: str) -> bool:
    """Whether a line's end is only where prose was broken: the next line goes on in the middle of a sentence."""
    following = re.match(r" *([^\W\d_])", after)
    if following is None or not before.strip():
        return False
    return before.rstrip().endswith(",") or (before.lstrip()[0].isupper() and following[1].islower())


def _at_end(text: str, after: int, before: str) -> bool:
    """Whether the point behind an abbreviation ends it: nothing follows on the line, or one letter did."""
    rest = text[after:].lstrip(" ")
    return not rest or rest.startswith("\n") or bool(re.search(r"\b(is|are|the|a)\s+[A-Z]$", before))


def _sentence(text: str, start: int, end: int, ends: str, lines: frozenset[str]) -> Sentence | None:
    option = None
    line = start == 0 or "\n" in text[max(0, start - 1) : start + 1] or text[start - 1 : start] == "\n"
    piece = text[start:end]
    lettered = _OPTION.match(piece)
    numbered = _NUMBER.match(piece) if line else None
    if lettered and len(piece) > lettered.end() and (line or ")" in lettered[0]):
        option, start = lettered[1], start + lettered.end()
    elif numbered and not re.match(r"\s*\d+\s+(?:is|are|was|has|does|can)\b", piece) and _numbers(numbered[0], lines):
        start += numbered.end()
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return Sentence(text[start:end], start, end, ends, option) if end > start else None


def _numbers(mark: str, lines: frozenset[str]) -> bool:
    """Whether a mark numbers its line: one with a point, or a number next to which another line has one."""
    number = mark.strip()
    if not number.isdecimal() or len(number) > 9:
        return not number.isdecimal()
    return not lines.isdisjoint((str(int(number) - 1), str(int(number) + 1)))


def tokenize(sentence: Sentence) -> tuple[Token, ...]:
    """The words of a sentence; `isn't` gives `is` and `not`, `cannot` gives `can` and `not`."""
    found = []
    cut = {}
    for match in _CONTRACTION.finditer(sentence.text):
        first, second = (1, 2) if match[1] else (3, 4)
        cut[match.start()] = (
            match,
            _FULL.get(match[first].lower(), match[first].lower()),
            match.end(first),
            match[second],
        )
    for match in _WORD.finditer(sentence.text):
        at = sentence.start + match.start()
        inside = next((place for place, (whole, *_) in cut.items() if place <= match.start() < whole.end()), None)
        if inside is not None:
            if inside == match.start():
                whole, stem, split, rest = cut[inside]
                found.append(Token(sentence.text[inside:split], stem, at, sentence.start + split))
                found.append(Token(rest, "not", sentence.start + split, sentence.start + whole.end()))
            continue
        word = match[0]
        lower = word.lower().replace("’", "'")
        if lower == "cannot":
            found += [Token(word[:3], "can", at, at + 3), Token(word[3:], "not", at + 3, at + len(word))]
        elif lower not in ('"', "“", "”"):
            found.append(Token(word, lower, at, at + len(word)))
    return tuple(found)
