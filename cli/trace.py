"""`cmrn trace`: which expert handled which token, of one text or over a set of texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.model import ModelOption, load_model, read_text
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from cmrn.data.evaluation import EvaluationSet
    from cmrn.inference import Analysis, Comparison, Saturation, Trace
    from cmrn.model import CMRN
    from cmrn.unseen import Unseen

__all__ = ["EXAMPLES", "trace"]

EXAMPLES = (
    'cmrn trace "integral"',
    "cmrn trace --data notes.jsonl --expert legal",
    'echo "warranty of merchantability" | cmrn trace - --html trace.html',
)
MOST_TOKENS = 16_384
LENGTH, LANES = 256, 8
WHOLE_TEXT = 16_384


@dataclass(frozen=True)
class _Found:
    """What was traced. text and trace: of one text; analysis and saturations: of a set; comparison: of one text."""

    place: str
    text: str | None = None
    trace: Trace | None = None
    comparison: Comparison | None = None
    analysis: Analysis | None = None
    saturations: tuple[Saturation, ...] = ()

    def to_json(self, expert: str | None) -> Mapping[str, Any]:
        """The command's document."""
        document: dict[str, Any] = {"experts": [], "tokens": [], "events": [], "unseen": None}
        if self.trace is not None:
            document = self.trace.to_json()
        if self.comparison is not None:
            document["compare"] = self.comparison.to_json()
        if self.analysis is not None:
            analyses = self.analysis.to_json()
            document["analyses"] = {**analyses, "saturation": [each.to_json() for each in self.saturations]}
            if self.trace is None:
                ranked = sorted(self.analysis.experts, key=lambda each: -each.weight)
                document["experts"] = [
                    {"name": each.name, "domains": list(each.domains), "weight": each.weight} for each in ranked
                ]
            if expert is not None:
                document["expert"] = {"name": expert, **analyses["token_specialisation"][expert]}
        return document


def trace(
    settings: Settings,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT|-]", help="The text to read; - reads stdin.")] = None,
    model: ModelOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Texts to read instead: .jsonl or .txt; analysed as a whole."),
    ] = None,
    expert: Annotated[
        str | None, typer.Option("--expert", metavar="NAME", help="With --data: what this expert handles most.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="CKPT2", help="A second model to read the same beside it.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="F", help="Write a page to look at instead.")] = None,
) -> None:
    """Show each token's experts by routing weight, its surprise, and where events begin.

    With --data, what the experts do over a set of texts: the share of each domain and of each vocabulary entry that an
    expert reads, which experts read together, and how alike other checkpoints choose.
    """
    _check(text, data, expert, html)
    network, place = load_model(model)
    if expert is not None:
        from cmrn.experts.growth import expert_named

        expert_named(network.config, expert)
    other = None if compare is None else load_model(compare)
    if other is not None:
        from cmrn.inference import check_comparable

        check_comparable(network, *other)
    if data:
        found = _read_data(settings, network, place, data, other)
    else:
        found = _read_text(network, place, read_text(text or ""), other)
    if html is not None:
        from cmrn_cli.trace_page import write_page

        write_page(html, place, found.text, found.trace, found.comparison, found.analysis, found.saturations)
    if html is None or settings.json:
        _show(settings, found, expert)
    else:
        write_line(str(html))


def _check(text: str | None, data: list[str] | None, expert: str | None, html: Path | None) -> None:
    from cmrn.errors import UsageError

    if (text is None) == (not data):
        told = "both a text and --data are given" if data else "there is nothing to read"
        raise UsageError(told, hint='cmrn trace "some text", cmrn trace - for stdin, or cmrn trace --data FILE')
    if expert is not None and not data:
        raise UsageError("what an expert handles most is seen over texts", where="--expert", hint="add --data FILE")
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        told = "is a folder" if html.is_dir() else "its folder does not exist"
        raise UsageError(told, where=f"--html {html}")


def _read_text(network: CMRN, place: str, text: str, other: tuple[CMRN, str] | None) -> _Found:
    """One text, and how another model reads it."""
    from cmrn.inference import compare_traces, trace_text

    result = trace_text(network, text, _usual(place))
    comparison = None if other is None else compare_traces(result, trace_text(other[0], text), other[1])
    return _Found(place, text, result, comparison)


def _read_data(
    settings: Settings, network: CMRN, place: str, names: list[str], other: tuple[CMRN, str] | None
) -> _Found:
    """A set of texts; where it is one short text, that too token by token."""
    from cmrn.data.evaluation import EvaluationSet
    from cmrn.inference import analyse, saturation
    from cmrn.inference.generate import tokenizer_of
    from cmrn_cli.evaluate import text_to_read

    documents, _ = text_to_read(names, place)
    texts = EvaluationSet.build(documents, tokenizer_of(network), network.config.domains, LENGTH, LANES)
    long = [f"{name} ({count:,})" for name, count in texts.tokens.items() if count > MOST_TOKENS]
    if long:
        notice(settings, f"reading the first {MOST_TOKENS:,} tokens of {', '.join(long)}")
    analysis = analyse(network, texts, _usual(place), MOST_TOKENS)
    if other is not None:
        saturations = [saturation(network, other[0], texts, other[1], MOST_TOKENS)]
    else:
        saturations = _earlier(settings, network, place, texts)
    short = len(documents) == 1 and sum(texts.tokens.values()) <= WHOLE_TEXT
    one = _read_text(network, place, documents[0].text, other) if short else _Found(place)
    return _Found(place, one.text, one.trace, one.comparison, analysis, tuple(saturations))


def _earlier(settings: Settings, network: CMRN, place: str, texts: EvaluationSet) -> list[Saturation]:
    """Saturation over the earlier checkpoints of the run in which the model lies, the newest first."""
    from cmrn.errors import CheckpointError
    from cmrn.inference import saturation
    from cmrn.training.checkpoint import checkpoints_of

    here = Path(place).resolve()
    saved = checkpoints_of(here.parent.parent)
    step = next((step for step, folder in saved if folder.resolve() == here), 0)
    found = []
    for _, folder in (each for each in saved if each[0] < step):
        try:
            found.append(saturation(network, load_model(str(folder))[0], texts, folder.name, MOST_TOKENS))
        except CheckpointError as error:
            notice(settings, f"passed over a checkpoint: {error}")
    return found


def _usual(place: str) -> Unseen | None:
    from cmrn.unseen import read_unseen

    return read_unseen(place)


def _show(settings: Settings, found: _Found, expert: str | None) -> None:
    if settings.json:
        write_json(found.to_json(expert))
        return
    if settings.quiet:
        _show_bare(found, expert)
        return
    from cmrn_cli.trace_data_view import view_analysis, view_expert
    from cmrn_cli.trace_view import view, view_comparison

    screen = console(settings)
    colour = screen.color_system is not None
    parts: list[Any] = []
    if expert is not None and found.analysis is not None:
        use = next(each for each in found.analysis.experts if each.name == expert)
        parts += view_expert(use, found.analysis, colour=colour, encoding=screen.encoding)
    else:
        if found.trace is not None and found.text is not None:
            parts += view(found.trace, found.text, verbose=settings.verbose, colour=colour, encoding=screen.encoding)
        if found.comparison is not None:
            parts += view_comparison(found.comparison, verbose=settings.verbose, colour=colour)
        if found.analysis is not None:
            parts += [""] if found.trace is not None else []
            parts += view_analysis(found.analysis, found.saturations, verbose=settings.verbose, colour=colour,
                                   encoding=screen.encoding)  # fmt: skip
    for part in parts:
        screen.print(part)
    notice(settings, f"weights are routing weights, not explanations; model {found.place}")


def _show_bare(found: _Found, expert: str | None) -> None:
    """One line an expert, or a vocabulary entry of one expert."""
    if expert is not None and found.analysis is not None:
        from cmrn_cli.trace_text import visible

        for token in next(each for each in found.analysis.experts if each.name == expert).tokens:
            write_line(f"{visible(token.text, one_line=True)}\t{token.count}\t{token.share:.4f}")
        return
    if found.trace is not None:
        totals = [(each.name, each.weight) for each in found.trace.experts]
    else:
        totals = [(each.name, each.weight) for each in found.analysis.experts] if found.analysis else []
    for name, weight in sorted(totals, key=lambda one: -one[1]):
        write_line(f"{sanitize(name, one_line=True)}\t{weight:.4f}")
