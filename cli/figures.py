"""Tables of figures by domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cmrn_cli.console import sanitize

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["domain_table"]


def domain_table(
    bits_per_byte: Mapping[str, float],
    routing_purity: Mapping[str, float],
    unseen: Mapping[str, tuple[float, float | None]] | None = None,
) -> Table:
    """Bits per byte and routing purity of every domain; the mean last. A domain no expert owns has no purity.

    unseen: how much of a domain no expert owns, and the share of its documents for which that is more than usual.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("domain")
    table.add_column("bits per byte", justify="right")
    table.add_column("routing purity", justify="right")
    for title in ("unowned", "documents above usual") if unseen else ():
        table.add_column(title, justify="right")
    domains = [*(name for name in bits_per_byte if name != "mean"), "mean"]
    for domain in domains:
        purity = routing_purity.get(domain)
        score, share = (unseen or {}).get(domain, (None, None))
        cells = [domain, _number(bits_per_byte.get(domain)), _percent(purity)]
        cells += [_number(score), _percent(share)] if unseen else []
        table.add_row(
            *(Text(sanitize(cell, one_line=True)) for cell in cells), style="bold" if domain == "mean" else ""
        )
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
