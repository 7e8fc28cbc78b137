"""Paragraphs of plain prose out of docstrings, descriptions and licences, one line each."""

from __future__ import annotations

import inspect
import re

__all__ = ["clean_docstring", "clean_licence", "clean_markdown"]

SECTIONS_LEFT_OUT = frozenset(
    {"args", "arguments", "attributes", "authors", "example", "examples", "example usage", "keyword arguments",
     "inputs", "keyword args", "methods", "other parameters", "outputs", "parameters", "raises", "reference",
     "references", "return", "returns", "see also", "shape", "signature", "usage", "yields"}
)  # fmt: skip
UNDERLINE = re.compile(r"\s*([=\-~^*#\"'`+])\1{2,}\s*$")
SECTION_LABEL = re.compile(r"\s*\**([A-Za-z ]{3,20})\**\s*:{1,2}\s*\**\s*$")
LIST_ITEM = re.compile(r"\s*([-*+•]|\(?[0-9a-zA-Z]{1,3}[.)])\s")
FIELD = re.compile(r"\s*(:\w[^:]*:|@\w+|\w+ *(\([^)]*\))? *: |\w+ -- )")
TABLE = re.compile(r"\s*(\||\+[-=]|[=\-]{2,} +[=\-]{2,})")
CODE_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
CODE_SIGNS = re.compile(r"[{}\[\]()<>=_|\\/#@;%$&^~*+]|--|::")
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
COPYRIGHT = re.compile(r"(?i)\W*(copyright|©|\(c\)|all rights reserved)")
FEWEST_WORDS = 8
MOST_CODE_SIGNS = 0.04


def _blocks(text: str) -> list[list[str]]:
    """Runs of lines between blank lines, tabs expanded, without trailing spaces."""
    blocks: list[list[str]] = [[]]
    for line in text.expandtabs(4).splitlines():
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _joined(lines: list[str]) -> str:
    """The lines as one paragraph; list items begin lines of their own."""
    pieces: list[str] = []
    for line in lines:
        if pieces and LIST_ITEM.match(line):
            pieces.append("\n")
        elif pieces:
            pieces.append(" ")
        pieces.append(" ".join(line.split()))
    return "".join(pieces)


def _is_prose(paragraph: str, most_code_signs: float = MOST_CODE_SIGNS) -> bool:
    """Whether a paragraph reads as sentences: enough words, few signs of code."""
    words = WORD.findall(paragraph)
    letters = sum(map(len, words))
    return (
        len(words) >= FEWEST_WORDS
        and letters >= 0.6 * len(paragraph)
        and len(CODE_SIGNS.findall(paragraph)) <= most_code_signs * len(paragraph)
    )


def clean_docstring(docstring: str, math: bool) -> list[str]:
    """The paragraphs of a docstring that are prose, and with `math` its displayed formulas too."""
    paragraphs: list[str] = []
    skipped_from: int | None = None
    directive = ""
    for block in _blocks(inspect.cleandoc(docstring)):
        if len(block) > 1 and UNDERLINE.match(block[1]):
            skipped_from = _indentation(block[0]) if block[0].strip().lower().rstrip(":") in SECTIONS_LEFT_OUT else None
            block, directive = block[2:], ""
            headed = skipped_from is not None
        else:
            label = SECTION_LABEL.match(block[0])
            headed = bool(label and label.group(1).strip().lower() in SECTIONS_LEFT_OUT)
            if headed:
                skipped_from = _indentation(block[0])
            elif skipped_from is not None and label and _indentation(block[0]) <= skipped_from:
                skipped_from = None
        if not block or headed or skipped_from is not None:
            continue
        if block[0].lstrip().startswith(".. "):
            directive = block[0].lstrip()[3:].split("::")[0].strip()
        elif _indentation(block[0]) == 0:
            directive = ""
        paragraph = _paragraph(block, directive, math)
        if paragraph:
            paragraphs.append(paragraph)
    return paragraphs


def _paragraph(block: list[str], directive: str, math: bool) -> str | None:
    """What one block contributes: a formula, a paragraph, or nothing."""
    if directive == "math":
        return _formula(block) if math else None
    if directive or (_indentation(block[0]) >= 2 and not LIST_ITEM.match(block[0])):
        return None
    end = next((i for i, line in enumerate(block) if line.lstrip().startswith((">>>", "...", "$ "))), len(block))
    lines = block[:end]
    if not lines or any(TABLE.match(line) for line in lines) or sum(1 for line in lines if FIELD.match(line)) > 1:
        return None
    paragraph = _joined(lines)
    return paragraph if _is_prose(paragraph, 0.12 if math else MOST_CODE_SIGNS) else None


def _formula(block: list[str]) -> str | None:
    """The content of a `.. math::` block, without the directive and its options."""
    lines = [re.sub(r"^\s*\.\. math::", "", line).strip() for line in block]
    return "\n".join(line for line in lines if line and not line.startswith(":")) or None


def clean_markdown(text: str) -> list[str]:
    """The prose paragraphs of a README, without code, headings, tables, badges and pictures."""
    kept = []
    for block in _blocks(CODE_FENCE.sub("", text)):
        marked = block[0].lstrip().startswith(("#", "<", "[", "!", "|", ">", ".. ", ":"))
        if not marked and _indentation(block[0]) < 4 and not any(TABLE.match(line) for line in block):
            kept.append(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", _joined(block)))
    return [paragraph for paragraph in kept if _is_prose(paragraph)]


def clean_licence(text: str) -> list[str]:
    """The paragraphs of a licence file that are sentences; lists of holders and files are left out."""
    paragraphs = (_joined([line.strip("/*#;| ") for line in block]).strip() for block in _blocks(text))
    return [part for part in paragraphs if not COPYRIGHT.match(part) and _is_prose(part)]
