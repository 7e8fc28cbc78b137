"""Small pictures made of characters: bars, sparklines, durations. Plain ASCII where the stream has no better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["bar", "duration", "sparkline"]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=+*%#"


def bar(share: float, width: int, *, unicode: bool = True) -> str:
    """A bar filled to `share` (0 to 1) of `width` characters, padded with spaces."""
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    if not unicode:
        return ("#" * round(share * width)).ljust(width)
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(width)


def sparkline(values: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """The values from first to last in at most `width` characters, each the mean of its stretch."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [i * len(finite) // count for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    levels = _LEVELS if unicode else _ASCII_LEVELS
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((mean - low) * scale)] for mean in means)


def duration(seconds: float | None) -> str:
    """`95` as `1:35`, `3725` as `1:02:05`; an unknown one as a dash."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
