"""Filling a store as it is watched: one live line on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cmrn_cli.console import Settings, console, has_unicode, is_live
from cmrn_cli.draw import bar, duration

if TYPE_CHECKING:
    from cmrn.memory.populate import PopulateProgress

__all__ = ["watch_populate"]

LINE_EVERY_SECONDS = 10.0


@contextmanager
def watch_populate(settings: Settings) -> Iterator[Callable[[PopulateProgress], None]]:
    """What to tell each moment of the run, for as long as the block runs."""
    if not is_live(settings):
        yield _Lines(silent=settings.json or settings.quiet).tell
        return
    from rich.live import Live
    from rich.text import Text

    screen = console(settings, stderr=True)
    unicode = has_unicode(screen.encoding)
    with Live(console=screen, refresh_per_second=4, redirect_stdout=False, transient=True) as live:
        yield lambda moment: live.update(Text(_line(moment, unicode=unicode)))


class _Lines:
    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.spoke_at = time.monotonic()

    def tell(self, moment: PopulateProgress) -> None:
        """Print a line if the last is ten seconds old."""
        now = time.monotonic()
        if self.silent or now - self.spoke_at < LINE_EVERY_SECONDS:
            return
        self.spoke_at = now
        try:
            sys.stderr.write(_line(moment, unicode=None) + "\n")
            sys.stderr.flush()
        except BrokenPipeError:
            self.silent = True


def _line(moment: PopulateProgress, *, unicode: bool | None) -> str:
    """The moment in one line; with a bar where `unicode` says of what characters."""
    parts = [f"{moment.committed:,} stored", f"{moment.records_per_s:,.0f} records/s"]
    if moment.share is not None:
        drawn = "" if unicode is None else bar(moment.share, 24, unicode=unicode) + " "
        parts = [f"{drawn}{moment.share:.0%}", *parts, f"ETA {duration(moment.eta_seconds)}"]
    if moment.rejected:
        parts.append(f"{moment.rejected:,} rejected")
    return "  ".join(parts)
