"""A trace in the terminal: text coloured by leading expert, totals, events, and a row for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from cmrn_cli.console import has_unicode, sanitize
from cmrn_cli.draw import bar
from cmrn_cli.trace_text import own_texts, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from cmrn.inference import Comparison, ExpertWeight, TokenTrace, Trace, UnseenScore

__all__ = ["expert_styles", "plain_table", "unseen_line", "view", "view_comparison"]

ROWS_SHOWN = 200
EVENTS_SHOWN = 40
CHANGES_SHOWN = 40
STACK_WIDTH = 12
HEAD = 32
COLOURS = (
    "bright_blue", "bright_green", "bright_magenta", "bright_yellow", "bright_cyan", "bright_red",
    "blue", "green", "magenta", "yellow", "cyan", "red",
)  # fmt: skip


def view(trace: Trace, text: str, *, verbose: bool, colour: bool, encoding: str) -> Iterator[RenderableType]:
    """The parts of the picture from top to bottom; without colour every run of tokens is named instead."""
    unicode = has_unicode(encoding)
    styles = expert_styles([expert.name for expert in trace.experts], colour=colour)
    yield _text(trace, text, styles, named=not colour, unicode=unicode)
    yield ""
    yield _totals(trace, styles, unicode)
    if trace.unseen is not None:
        yield ""
        yield unseen_line(trace.unseen)
    if len(trace.events) > 1:
        yield ""
        yield _events(trace, text, styles, verbose=verbose)
    yield ""
    yield _tokens(trace, styles, unicode=unicode, verbose=verbose)
    hidden = 0 if verbose else len(trace.tokens) - ROWS_SHOWN
    if hidden > 0:
        yield f"{hidden} more tokens; -v shows all"


def view_comparison(comparison: Comparison, *, verbose: bool, colour: bool) -> Iterator[RenderableType]:
    """What another model does otherwise with the same text."""
    styles = expert_styles([each.name for each in comparison.experts], colour=colour)
    yield ""
    yield f"beside {sanitize(comparison.saturation.other, one_line=True)}"
    table = plain_table("expert", "weight", "there", "change")
    for each in comparison.experts:
        known = each.weight is not None and each.other is not None
        change = f"{(each.weight or 0.0) - (each.other or 0.0):+.3f}" if known else "–"
        _add(table, styles.get(each.name, ""), sanitize(each.name, one_line=True), _share(each.weight),
             _share(each.other), change)  # fmt: skip
    yield table
    found = comparison.saturation
    blocks = ", ".join(f"{share:.0%}" for share in found.blocks)
    yield f"same leading expert for {comparison.same_leader:.1%} of tokens; chosen alike, by block: {blocks} " + (
        f"(by chance {found.chance:.0%})"
    )
    shown = comparison.changed if verbose else comparison.changed[:CHANGES_SHOWN]
    if shown:
        table = plain_table("", "token", "leads here", "led there")
        for change_ in shown:
            _add(table, styles.get(change_.leader, ""), str(change_.token), visible(change_.text, one_line=True),
                 sanitize(change_.leader, one_line=True), sanitize(change_.other, one_line=True))  # fmt: skip
        yield table
    if len(shown) < len(comparison.changed):
        yield f"{len(comparison.changed) - len(shown)} more; -v shows all"


def expert_styles(names: Sequence[str], *, colour: bool) -> dict[str, str]:
    """A style for each expert, the same whatever order they come in."""
    ordered = sorted(names)
    return dict(zip(ordered, cycle(COLOURS), strict=False)) if colour else dict.fromkeys(ordered, "")


def unseen_line(unseen: UnseenScore) -> str:
    """One sentence on how much of a text no expert owns."""
    said = f"unowned {unseen.score:.3f}"
    if unseen.threshold is None:
        return f"{said}; what is usual was not measured when this model was saved"
    if unseen.is_unseen:
        return f"no expert owns this: {said}, above {unseen.threshold:.3f}, below which 95 % of held-out text lies"
    return f"{said}, as usual: 95 % of held-out text lies below {unseen.threshold:.3f}"


def plain_table(*titles: str, right: Sequence[int] = ()) -> Table:
    """An empty table without lines; `right`: columns aligned there."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number in right else "left", overflow="fold")
    return table


def _add(table: Table, style: str, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell, style) for cell in cells))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _text(trace: Trace, text: str, styles: Mapping[str, str], *, named: bool, unicode: bool) -> Text:
    """The text itself, each token in its leading expert's colour, or each run of tokens after the expert's name.

    A bar stands where an event begins.
    """
    from rich.text import Text

    line = Text()
    before = ""
    begins = {event.start for event in trace.events[1:]}
    for number, (token, own) in enumerate(zip(trace.tokens, own_texts(trace, text), strict=True)):
        leader = token.experts[0].name
        if number in begins:
            line.append("‖" if unicode else "|", "bold")
        if named and leader != before:
            line.append(f"{' ' if before else ''}[{sanitize(leader, one_line=True)}] ")
        line.append(visible(own), styles[leader])
        before = leader
    return line


def _totals(trace: Trace, styles: Mapping[str, str], unicode: bool) -> Table:
    from rich.text import Text

    table = plain_table("expert", "weight", "", "owns", right=(1,))
    for expert in trace.experts:
        table.add_row(
            Text(sanitize(expert.name, one_line=True), styles[expert.name]),
            Text(f"{expert.weight:.3f}"),
            Text(bar(expert.weight, 24, unicode=unicode), styles[expert.name]),
            Text(sanitize(", ".join(expert.domains), one_line=True), "dim"),
        )
    return table


def _events(trace: Trace, text: str, styles: Mapping[str, str], *, verbose: bool) -> Table:
    """Where each event lies, the surprise that opened it, who leads most of it, and how it begins."""
    table = plain_table("event", "after", "tokens", "surprise", "led by", "begins", right=(0, 1, 3))
    shown = trace.events if verbose else trace.events[:EVENTS_SHOWN]
    for number, event in enumerate(shown, 1):
        tokens = trace.tokens[event.start : event.end]
        leaders = [token.experts[0].name for token in tokens]
        leader = max(dict.fromkeys(leaders), key=leaders.count)
        begins = visible(text[tokens[0].start : tokens[-1].end][:HEAD], one_line=True)
        after = "" if event.previous is None else str(event.previous + 1)
        _add(table, styles[leader], str(number), after, f"{event.start}–{event.end - 1}", f"{event.surprise:.2f}",
             sanitize(leader, one_line=True), begins)  # fmt: skip
    if len(shown) < len(trace.events):
        _add(table, "", "", "", f"{len(trace.events) - len(shown)} more; -v shows all")
    return table


def _tokens(trace: Trace, styles: Mapping[str, str], *, unicode: bool, verbose: bool) -> Table:
    from rich.text import Text

    table = plain_table("", "token", "", "weights by expert", "surprise", "")
    begins = {event.start: number for number, event in enumerate(trace.events, 1)}
    shown = trace.tokens if verbose else trace.tokens[:ROWS_SHOWN]
    highest = max((token.surprise for token in shown), default=0.0) or 1.0
    for position, token in enumerate(shown):
        event = f"event {begins[position]} begins" if position in begins else ""
        table.add_row(
            Text(str(position), "dim"),
            Text(_visible(token, unicode), styles[token.experts[0].name]),
            _stack(token.experts, styles, unicode),
            _weights(token.experts, styles),
            Text(f"{token.surprise:.2f} {bar(token.surprise / highest, 8, unicode=unicode)}"),
            Text(event, "bold"),
        )
        for number, block in enumerate(token.blocks if verbose else ()):
            cells = _stack(block, styles, unicode), _weights(block, styles)
            table.add_row("", Text(f"  block {number}", "dim"), *cells, "", "")
    return table


def _stack(weights: Sequence[ExpertWeight], styles: Mapping[str, str], unicode: bool) -> Text:
    """One bar of all experts' shares, told apart by colour, or by shade where there is none."""
    from rich.text import Text

    line, reached, drawn = Text(), 0.0, 0
    shades = "█▓▒░" if unicode else "#=-."
    for number, weight in enumerate(weights):
        reached += weight.weight
        end = min(STACK_WIDTH, round(reached * STACK_WIDTH))
        style = styles[weight.name]
        line.append((shades[0] if style else shades[min(number, 3)]) * (end - drawn), style)
        drawn = end
    return line


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
    return visible(token.text, one_line=True).replace(" ", "·" if unicode else "_")
