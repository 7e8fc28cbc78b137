"""metrics.jsonl: one line a step and one an evaluation, without repeats or gaps however often a run was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from cmrn.files import storage_errors, write_file

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends lines to a file that is cut back, when opened, to what happened up to `step`.

    A final evaluation is cut too: it is made again. Without a path nothing is kept. Every call raises ResourceError
    where the disk is full.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._file: BinaryIO | None = None
        self._evaluated: set[int] = set()
        if path is None:
            return
        kept = [line for line in _lines(path) if line["step"] <= step and not line.get("final")]
        write_file(path, b"".join(_encode(line) for line in kept))
        self._evaluated = {line["step"] for line in kept if line["event"] == "evaluation"}
        self._path = path
        self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)

    def append(self, event: str, step: int, **fields: Any) -> None:
        """Add a line; it is durable after the next `sync`."""
        if self._file is not None:
            with storage_errors(self._path):
                self._file.write(_encode({"event": event, "step": step, **fields}))
                self._file.flush()

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation of that step, other than a final one, was kept when the file was opened."""
        return step in self._evaluated

    def sync(self) -> None:
        """Make every line durable."""
        if self._file is not None:
            with storage_errors(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Make every line durable and close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            with storage_errors(self._path), file:
                os.fsync(file.fileno())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file; a last one that a kill cut short is left out."""
    lines = []
    for raw in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("event"), str):
            lines.append(line)
    return lines


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"
