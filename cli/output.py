"""JSON results: one ASCII-safe document on stdout, or one a line, each finite and with its schema version."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["SCHEMA_VERSION", "write_json", "write_json_line"]

SCHEMA_VERSION = 1


def write_json(document: Mapping[str, Any]) -> None:
    """The command's one result."""
    _write(document, indent=2)


def write_json_line(document: Mapping[str, Any]) -> None:
    """One event of a long command."""
    _write(document, indent=None)


def _write(document: Mapping[str, Any], indent: int | None) -> None:
    whole = {"schema_version": SCHEMA_VERSION, **_finite(document)}
    sys.stdout.write(json.dumps(whole, ensure_ascii=True, allow_nan=False, indent=indent) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """The same with null for a number JSON cannot hold, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
