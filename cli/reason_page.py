"""The page that `cmrn reason --html` writes: one file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from cmrn_cli.console import sanitize

if TYPE_CHECKING:
    from cmrn.reasoning.reason import Reasoned

__all__ = ["write_page"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top}
.lost{background:#fde8d0}code{color:#555}
"""


def write_page(path: Path, found: Sequence[Reasoned]) -> None:
    """Write the answers with premises and proofs to a file: all of it, or the file stays as it was.

    Raises:
        ResourceError: the disk is full.
        CheckpointError: the file cannot be written.
    """
    from cmrn.files import write_file

    body = [_lost(found[0]), *(part for each in found for part in _answer(each))]
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>cmrn reason</title>'
        f"<style>{_STYLE}</style></head><body><h1>What follows</h1>{''.join(body)}</body></html>\n"
    )
    write_file(path.resolve(), page.encode("utf-8"))


def _answer(each: Reasoned) -> Iterable[str]:
    document = each.to_json()
    verdict = document["answer"] or document["value"] or "; ".join(document["conclusions"]) or "nothing follows"
    asked = document["question"] or "What follows"
    yield f"<h2>{_text(asked)}</h2><p><strong>{_text(verdict)}</strong> ({_text(document['status'])})</p>"
    yield _list("", document["conclusions"])
    rows = [(one["id"], one["text"], one["read_as"]) for one in document["premises"]]
    yield _table(("Premise", "Text", "Read as"), rows)
    steps = [(s["id"], s["conclusion"], s["operation"], ", ".join(s["premises"]), f"{s['degree']:.2f}")
             for s in document["steps"]]  # fmt: skip
    if steps:
        yield _table(("Step", "Conclusion", "By", "From", "Degree"), steps)
    yield _list("Assumed", document["assumptions"])
    yield _list("Cannot all hold", [", ".join(one["statements"]) for one in document["contradictions"]])
    yield _list("Repairs", [one["text"] for one in document["revisions"]])


def _lost(first: Reasoned) -> str:
    rows = [(f"{one.start}-{one.end}", one.text, one.at, one.hint) for one in first.reading.not_understood]
    if not rows:
        return ""
    return '<div class="lost">' + _table(("Not understood: chars", "Text", "At", "Nearest form"), rows) + "</div>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _list(head: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    title = f"<h3>{_text(head)}</h3>" if head else ""
    return title + "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _text(value: str) -> str:
    """Foreign text made harmless for a page."""
    return escape(sanitize(value), quote=True)
