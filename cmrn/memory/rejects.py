"""The file of refused lines: which input, line and byte, and why; never the line itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cmrn.files import storage_errors, write_file
from cmrn.memory.reading import Rejected

__all__ = ["RejectsFile"]

MOST = 1_000_000


class RejectsFile:
    """Refused lines as JSON Lines (`file`, `line`, `offset`, `reason`), durable once `sync` returns.

    The file is made anew by the first line that is refused. Lines that an interrupted run wrote of the inputs in
    `resumed` stay if they lie before the byte at which that input goes on.
    """

    def __init__(self, path: Path | None, resumed: Mapping[str, int]) -> None:
        self.path = path
        self.written = 0
        self._file: IO[str] | None = None
        self._kept = self._keep(resumed)

    def add(self, name: str, rejected: Rejected) -> None:
        """Note a line; beyond a million, lines are only counted."""
        if self.path is None or self.written >= MOST:
            return
        entry = {"file": name, "line": rejected.line, "offset": rejected.offset, "reason": rejected.reason}
        with storage_errors(self.path):
            if self._file is None:
                write_file(self.path, "".join(self._kept).encode())
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            self._file.write(json.dumps(entry) + "\n")
        self.written += 1

    def sync(self) -> None:
        """Make durable what was noted, before the store says that those lines are done."""
        if self._file is not None and self.path is not None:
            with storage_errors(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, resumed: Mapping[str, int]) -> list[str]:
        """Lines of an earlier run that this one will not meet again."""
        if self.path is None or not resumed or not self.path.is_file():
            return []
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return [line for line in file if _lies_before(line, resumed)][:MOST]


def _lies_before(line: str, resumed: Mapping[str, int]) -> bool:
    try:
        entry: Any = json.loads(line)
        return bool(entry["offset"] < resumed.get(entry["file"], 0))
    except (ValueError, TypeError, KeyError):
        return False
