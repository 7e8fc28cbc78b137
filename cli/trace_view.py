"""A trace in the terminal: text coloured by leading expert, totals, and a row for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from cmrn_cli.console import has_unicode, sanitize
from cmrn_cli.draw import bar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from cmrn.inference import ExpertWeight, TokenTrace, Trace

__all__ = ["view"]

ROWS_SHOWN = 200
COLOURS = (
    "bright_blue", "bright_green", "bright_magenta", "bright_yellow", "bright_cyan", "bright_red",
    "blue", "green", "magenta", "yellow", "cyan", "red",
)  # fmt: skip


def view(trace: Trace, text: str, *, verbose: bool, colour: bool, encoding: str) -> Iterator[RenderableType]:
    """The parts of the picture from top to bottom; without colour every run of tokens is named instead."""
    unicode = has_unicode(encoding)
    names = sorted(expert.name for expert in trace.experts)
    styles = dict(zip(names, cycle(COLOURS), strict=False)) if colour else dict.fromkeys(names, "")
    yield _text(trace, text, styles, named=not colour)
    yield ""
    yield _totals(trace, styles, unicode)
    yield ""
    yield _tokens(trace, styles, unicode=unicode, verbose=verbose)
    hidden = 0 if verbose else len(trace.tokens) - ROWS_SHOWN
    if hidden > 0:
        yield f"{hidden} more tokens; -v shows all"


def _text(trace: Trace, text: str, styles: Mapping[str, str], *, named: bool) -> Text:
    """The text itself, each token in its leading expert's colour, or each run of tokens after the expert's name."""
    from rich.text import Text

    line = Text()
    position, before = 0, ""
    for token in trace.tokens:
        leader = token.experts[0].name
        if named and leader != before:
            line.append(f"{' ' if before else ''}[{sanitize(leader, one_line=True)}] ")
        line.append(sanitize(text[max(position, token.start) : token.end]), styles[leader])
        position, before = max(position, token.end), leader
    return line


def _totals(trace: Trace, styles: Mapping[str, str], unicode: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("expert", "weight", "", "owns"):
        table.add_column(heading, justify="right" if heading == "weight" else "left")
    for expert in trace.experts:
        table.add_row(
            Text(sanitize(expert.name, one_line=True), styles[expert.name]),
            Text(f"{expert.weight:.3f}"),
            Text(bar(expert.weight, 24, unicode=unicode), styles[expert.name]),
            Text(sanitize(", ".join(expert.domains), one_line=True), "dim"),
        )
    return table


def _tokens(trace: Trace, styles: Mapping[str, str], *, unicode: bool, verbose: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "token", "weights by expert", "surprise", ""):
        table.add_column(heading, overflow="fold")
    begins = {event.start: number for number, event in enumerate(trace.events, 1)}
    shown = trace.tokens if verbose else trace.tokens[:ROWS_SHOWN]
    highest = max((token.surprise for token in shown), default=0.0) or 1.0
    for position, token in enumerate(shown):
        event = f"event {begins[position]} begins" if position in begins else ""
        table.add_row(
            Text(str(position), "dim"),
            Text(_visible(token, unicode), styles[token.experts[0].name]),
            _weights(token.experts, styles),
            Text(f"{token.surprise:.2f} {bar(token.surprise / highest, 8, unicode=unicode)}"),
            Text(event, "bold"),
        )
        for number, block in enumerate(token.blocks if verbose else ()):
            table.add_row("", Text(f"  block {number}", "dim"), _weights(block, styles), "", "")
    return table


def _weights(weights: Sequence[ExpertWeight], styles: Mapping[str, str]) -> Text:
    """The experts that took part, by name and weight, largest first."""
    from rich.text import Text

    line = Text()
    for number, weight in enumerate(weights):
        if number and weight.weight < 0.005:
            break
        line.append("  " if number else "")
        line.append(f"{sanitize(weight.name, one_line=True)} {weight.weight:.2f}", styles[weight.name])
    return line


def _visible(token: TokenTrace, unicode: bool) -> str:
    """The token's characters on one line, its spaces visible."""
    return sanitize(token.text, one_line=True).replace(" ", "·" if unicode else "_")
