"""What a job tells while it runs: JSON documents, a line each, whole or not there whenever it dies."""

from __future__ import annotations

import json
import os
from typing import Any

from cmrn.bench.faults.shim import note

__all__ = ["Events"]


class Events:
    """Appends documents to a file with one write each, outside any buffer of the process.

    noted: also between the calls in the shim's journal, where the process has one.
    """

    def __init__(self, path: str, *, noted: bool = False) -> None:
        self._noted = noted
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, document: dict[str, Any]) -> None:
        """Tell one document."""
        line = json.dumps(document)
        if self._noted:
            note(line)
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]
