"""Stopping between steps: the first SIGINT or SIGTERM is noted, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "stop_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether a stop was asked for: the signal's number, or None."""

    signal_number: int | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """A request that the first SIGINT or SIGTERM fills in; the handlers of before are restored on leaving.

    Outside the main thread, which alone may handle signals, nothing is changed and the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = [(each, signal.signal(each, note)) for each in SIGNALS]
    try:
        yield request
    finally:
        for each, handler in before:
            # None stands for a handler that was not set from Python and cannot be put back.
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
