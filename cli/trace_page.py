"""The page that `cmrn trace --html` writes: one file that loads nothing, and runs only its own script.

The page's policy allows one style sheet and one script, each by its hash; foreign text is escaped by the template and
never reaches the script, which reads numbers and the names of experts.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmrn_cli.console import sanitize
from cmrn_cli.trace_text import COLOURS, own_texts, visible

if TYPE_CHECKING:
    from markupsafe import Markup

    from cmrn.inference import Analysis, Comparison, Saturation, Trace

__all__ = ["page_text", "write_page"]

WIDTH, STRIP, RIBBON = 1000, 60, 40
BINS = 250


@dataclass(frozen=True)
class _Token:
    """A token as the page shows it: its text, escaped, its line ends marked; and the classes of its span.

    The class `n` says that it holds no character of its own.
    """

    text: Markup
    style: str


@dataclass(frozen=True)
class _Event:
    """An event: its number from 1, the surprise that opened it, its tokens."""

    number: int
    surprise: float
    tokens: tuple[_Token, ...]


def write_page(
    path: Path,
    place: str,
    text: str | None,
    trace: Trace | None,
    comparison: Comparison | None,
    analysis: Analysis | None,
    saturations: Sequence[Saturation],
) -> None:
    """Write a trace, or the analyses of a set of texts, or both, as a page; whole or not at all.

    Raises:
        ResourceError: the disk is full.
        CheckpointError: the file cannot be written.
    """
    from cmrn.files import write_file

    page = page_text(place, text, trace, comparison, analysis, saturations)
    # A link, such as /dev/stdout, is followed, not replaced.
    write_file(path.resolve(), page.encode("utf-8"))


def page_text(
    place: str,
    text: str | None,
    trace: Trace | None,
    comparison: Comparison | None,
    analysis: Analysis | None,
    saturations: Sequence[Saturation],
) -> str:
    """The page itself."""
    import jinja2

    style, script = _resource("trace.css"), _resource("trace.js")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)  # fmt: skip
    environment.filters["visible"] = lambda value: visible(str(value), one_line=True)
    names = _names(trace, analysis)
    shown: dict[str, Any] = {"trace": None}
    if trace is not None and text is not None:
        shown = _trace_parts(trace, text, names)
    return environment.from_string(_resource("trace.html")).render(
        place=sanitize(place, one_line=True),
        colours={name: index % COLOURS for index, name in enumerate(names)},
        comparison=comparison,
        analysis=analysis,
        saturations=saturations,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        style=_trusted(style),
        script=_trusted(script),
        **shown,
    )


def _trusted(text: str) -> Markup:
    """What is the program's own, put into the page as it is."""
    from markupsafe import Markup

    return Markup(text)


def _resource(name: str) -> str:
    return (importlib.resources.files("cmrn_cli") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _names(trace: Trace | None, analysis: Analysis | None) -> list[str]:
    """Experts in one order for all of the page, whatever their weights."""
    experts = trace.experts if trace else analysis.experts if analysis else ()
    return sorted(each.name for each in experts)


def _trace_parts(trace: Trace, text: str, names: Sequence[str]) -> dict[str, Any]:
    """What the template needs of one text's trace."""
    place = {name: index for index, name in enumerate(names)}
    data = json.dumps({"names": list(names), "tokens": list(_numbers(trace, place))}, separators=(",", ":"))
    leaders = [place[token.experts[0].name] for token in trace.tokens]
    surprises = [token.surprise for token in trace.tokens]
    count = len(trace.tokens)
    return {
        "trace": trace,
        "events": list(_events(trace, text, leaders)),
        "data": _trusted(data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")),
        "width": WIDTH,
        "strip": STRIP,
        "ribbon": RIBBON,
        "surprise_path": _surprise_path(surprises),
        "highest": max(surprises),
        "cuts": "".join(f"M{event.start / count * WIDTH:.1f} {STRIP + 2}v12" for event in trace.events),
        "ribbons": _ribbons(trace, place),
    }


def _numbers(trace: Trace, place: dict[str, int]) -> Iterator[list[int]]:
    """Each token's figures: surprise in hundredths, unowned in thousandths (−1 where unknown), then its blocks.

    A block is the number of experts that read the token, and each one's place and weight in thousandths.
    """
    for token in trace.tokens:
        row = [round(100 * token.surprise), -1 if token.unowned is None else round(1000 * token.unowned)]
        for block in token.blocks:
            chosen = [each for each in block if each.weight > 0]
            row.append(len(chosen))
            for each in chosen:
                row += (place[each.name], round(1000 * each.weight))
        yield row


def _events(trace: Trace, text: str, leaders: Sequence[int]) -> Iterator[_Event]:
    from markupsafe import Markup, escape

    line_end = Markup("<i></i>\n")
    own = [visible(part) for part in own_texts(trace, text)]
    for number, event in enumerate(trace.events, 1):
        tokens = tuple(
            _Token(escape(own[t]).replace("\n", line_end), f"c{leaders[t] % COLOURS}{'' if own[t] else ' n'}")
            for t in range(event.start, event.end)
        )
        yield _Event(number, event.surprise, tokens)


def _bins(count: int) -> list[tuple[int, int]]:
    """Stretches of tokens, at most 250, together all."""
    bins = min(BINS, count)
    return [(i * count // bins, (i + 1) * count // bins) for i in range(bins)]


def _surprise_path(surprises: Sequence[float]) -> str:
    """An area, each stretch as high as its largest surprise."""
    highest = max(surprises) or 1.0
    bins = _bins(len(surprises))
    wide = WIDTH / len(bins)
    steps = (f"L{i * wide:.1f} {y:.1f}L{(i + 1) * wide:.1f} {y:.1f}"
             for i, (start, end) in enumerate(bins)
             for y in [STRIP * (1 - max(surprises[start:end]) / highest)])  # fmt: skip
    return f"M0 {STRIP}{''.join(steps)}L{WIDTH} {STRIP}Z"


def _ribbons(trace: Trace, place: dict[str, int]) -> list[tuple[int, str]]:
    """(place of an expert, path of its share along the text), one above the other."""
    bins = _bins(len(trace.tokens))
    wide = WIDTH / len(bins)
    paths: list[list[str]] = [[] for _ in place]
    for number, (start, end) in enumerate(bins):
        shares = [0.0] * len(place)
        for token in trace.tokens[start:end]:
            for each in token.experts:
                shares[place[each.name]] += each.weight / (end - start)
        top = 0.0
        for index, share in enumerate(shares):
            if share > 0.002:
                x, y, high = number * wide, top * RIBBON, share * RIBBON
                paths[index].append(f"M{x:.1f} {y:.1f}h{wide + 0.1:.1f}v{high:.1f}h-{wide + 0.1:.1f}z")
            top += share
    return [(index, "".join(path)) for index, path in enumerate(paths) if path]
