"""The analyses of a set of texts in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from cmrn_cli.console import has_unicode, sanitize
from cmrn_cli.draw import bar
from cmrn_cli.trace_text import visible
from cmrn_cli.trace_view import expert_styles, plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from cmrn.inference import Analysis, ExpertUse, Saturation

__all__ = ["view_analysis", "view_expert"]

TOKENS_OF_EACH = 8


def view_analysis(
    analysis: Analysis, saturations: Sequence[Saturation], *, verbose: bool, colour: bool, encoding: str
) -> Iterator[RenderableType]:
    """Domain specialisation, what no expert owns, co-activation, token specialisation and saturation."""
    unicode = has_unicode(encoding)
    names = [each.name for each in analysis.experts]
    styles = expert_styles(names, colour=colour)
    yield "share of each domain's tokens that an expert reads, mean over blocks"
    yield _domains(analysis, names, styles, unicode, block=None)
    for block in range(len(analysis.co_activation_LEE) if verbose else 0):
        yield f"block {block}"
        yield _domains(analysis, names, styles, unicode, block=block)
    yield ""
    yield "what no expert owns"
    yield _unseen(analysis)
    yield ""
    yield "of the tokens that an expert reads, the share that another reads too, mean over blocks"
    yield _pairs(analysis, names, styles)
    yield ""
    yield "the vocabulary entries that an expert reads most of; by chance it would read its share of all tokens"
    yield _entries(analysis, styles)
    if saturations:
        yield ""
        yield "saturation: experts chosen for a token that another checkpoint chooses too"
        yield _saturations(saturations, unicode)


def view_expert(use: ExpertUse, analysis: Analysis, *, colour: bool, encoding: str) -> Iterator[RenderableType]:
    """What one expert handles most: domains, vocabulary entries, passages."""
    from rich.text import Text

    unicode = has_unicode(encoding)
    style = expert_styles([each.name for each in analysis.experts], colour=colour)[use.name]
    place = [each.name for each in analysis.experts].index(use.name)
    table = plain_table("domain", "weight", "", right=(1,))
    for domain in sorted(analysis.domains, key=lambda each: -each.weights[place]):
        share = domain.weights[place]
        table.add_row(Text(sanitize(domain.name, one_line=True)), f"{share:.3f}",
                      Text(bar(share, 24, unicode=unicode), style))  # fmt: skip
    yield table
    yield ""
    table = plain_table("token", "read by it", "", "occurrences", right=(1, 3))
    for token in use.tokens:
        text = visible(token.text, one_line=True).replace(" ", "·" if unicode else "_")
        table.add_row(Text(text, style), f"{token.share:.0%}", Text(bar(token.share, 24, unicode=unicode), style),
                      f"{token.count:,}")  # fmt: skip
    yield table
    yield ""
    table = plain_table("weight", "domain", "passage")
    for passage in use.passages:
        table.add_row(f"{passage.weight:.3f}", Text(sanitize(passage.domain, one_line=True)),
                      Text(visible(passage.text, one_line=True), style))  # fmt: skip
    yield table


def _domains(
    analysis: Analysis, names: Sequence[str], styles: Mapping[str, str], unicode: bool, block: int | None
) -> Table:
    from rich.text import Text

    table = plain_table("domain", "tokens", *(sanitize(name, one_line=True) for name in names), right=(1,))
    for domain in analysis.domains:
        shares = domain.chosen_E if block is None else domain.chosen_LE[block]
        cells = [Text(f"{share:4.0%} {bar(share, 6, unicode=unicode)}", styles[name])
                 for name, share in zip(names, shares, strict=True)]  # fmt: skip
        table.add_row(Text(sanitize(domain.name, one_line=True)), f"{domain.tokens:,}", *cells)
    return table


def _unseen(analysis: Analysis) -> Table:
    from rich.text import Text

    table = plain_table("domain", "unowned", "documents above usual", right=(1, 2))
    for domain in analysis.domains:
        score = "–" if domain.unowned is None else f"{domain.unowned:.3f}"
        share = "–" if domain.unseen is None else f"{domain.unseen:.0%}"
        table.add_row(Text(sanitize(domain.name, one_line=True)), score, share)
    return table


def _pairs(analysis: Analysis, names: Sequence[str], styles: Mapping[str, str]) -> Table:
    from rich.text import Text

    blocks = analysis.co_activation_LEE
    table = plain_table("reads", *(sanitize(name, one_line=True) for name in names))
    for row, name in enumerate(names):
        means = [sum(block[row][column] for block in blocks) / len(blocks) for column in range(len(names))]
        cells = ["" if column == row else f"{mean:.0%}" for column, mean in enumerate(means)]
        table.add_row(Text(sanitize(name, one_line=True), styles[name]), *cells)
    return table


def _entries(analysis: Analysis, styles: Mapping[str, str]) -> Table:
    from rich.text import Text

    table = plain_table("expert", "of its tokens", "by chance", "most of", right=(1, 2))
    for use in analysis.experts:
        entries = "  ".join(visible(token.text, one_line=True).strip() or "␣" for token in use.tokens[:TOKENS_OF_EACH])
        table.add_row(Text(sanitize(use.name, one_line=True), styles[use.name]), f"{use.specialisation:.0%}",
                      f"{use.used:.0%}", Text(entries))  # fmt: skip
    return table


def _saturations(saturations: Sequence[Saturation], unicode: bool) -> Table:
    from rich.text import Text

    table = plain_table("checkpoint", "same", "", "by block", "by chance", right=(1,))
    for each in saturations:
        blocks = " ".join(f"{share:.0%}" for share in each.blocks)
        table.add_row(Text(sanitize(each.other, one_line=True)), f"{each.mean:.1%}",
                      Text(bar(each.mean, 24, unicode=unicode)), blocks, f"{each.chance:.0%}")  # fmt: skip
    return table
