"""From one JSON value, row or line to a record: strict, each refusal with its reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from cmrn.memory.entry import NewRecord

__all__ = ["LONGEST_TEXT", "Fields", "RefusedError", "parse_json", "to_record"]

LONGEST_TEXT = 1 << 20
LONGEST_NAME = 1024
DEEPEST = 64
EXPORTED = {"text", "record", "meta", "origin", "trust"}
TOO_DEEP = f"is nested more than {DEEPEST} deep"
LARGEST_INTEGER = 2**63


class RefusedError(ValueError):
    """A line that gives no record, and why; never seen outside the readers."""


@dataclass(frozen=True)
class Fields:
    """Which fields of an input make up a record.

    text, id: the fields' names.
    meta: fields to keep beside the text; None keeps all that are left.
    namespace, source: the record's, whatever the input says; None takes the input's own field of that name, else
        "default" and the name of the input.
    """

    text: str = "text"
    id: str = "id"
    meta: tuple[str, ...] | None = None
    namespace: str | None = None
    source: str | None = None


def parse_json(text: str) -> Any:
    """The JSON value in `text`, by the standard: finite numbers, 64-bit integers, no key twice, at most 64 deep.

    Raises:
        RefusedError: it is something else.
    """
    try:
        value = _DECODER.decode(text)
        if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
            raise RefusedError(TOO_DEEP)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise RefusedError(TOO_DEEP) from error
    except UnicodeEncodeError as error:
        raise RefusedError("holds a lone surrogate") from error
    except json.JSONDecodeError as error:
        raise RefusedError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RefusedError(f"has the key {twice[:40]!r} twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise RefusedError(f"holds {name}, which is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -LARGEST_INTEGER <= (number := int(digits)) < LARGEST_INTEGER:
        raise RefusedError("holds an integer beyond 64 bits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise RefusedError("holds a number too large for 64 bits")
    return number


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer, parse_float=_finite
)


def _depth(value: Any) -> int:
    """How deep arrays and objects are nested, without recursion."""
    depth, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        layer = [inner for item in layer for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def to_record(value: Any, fields: Fields, name: str) -> NewRecord:
    """The record in a JSON object or a row; `name` is the source where neither the fields nor the value give one.

    Raises:
        RefusedError: no object, no text, or a field of the wrong type or size.
    """
    if not isinstance(value, Mapping):
        kind = "an array" if isinstance(value, Sequence) and not isinstance(value, str) else "a bare value"
        raise RefusedError(f"is {kind}, not an object")
    if fields.text not in value:
        raise RefusedError(f"has no {fields.text!r}")
    text = value[fields.text]
    if not isinstance(text, str):
        raise RefusedError(f"{fields.text!r} is not a string")
    if not text.strip():
        raise RefusedError(f"{fields.text!r} is empty")
    if "\0" in text:
        raise RefusedError(f"{fields.text!r} holds a NUL")
    if len(text) > LONGEST_TEXT or (len(text) > LONGEST_TEXT // 4 and len(text.encode()) > LONGEST_TEXT):
        raise RefusedError(f"{fields.text!r} is longer than 1 MiB")
    namespace = _name(value, "namespace", fields.namespace) or "default"
    source = _name(value, "source", fields.source)
    record = NewRecord(text, None, _id(value.get(fields.id), fields.id), namespace, name if source is None else source)
    if fields.meta is None and value.keys() >= EXPORTED:
        return _as_exported(record, value)
    taken = {fields.text, fields.id, "namespace", "source"}
    kept = [key for key in value if key not in taken] if fields.meta is None else fields.meta
    return replace(record, meta=_small({key: value[key] for key in kept if key in value}))


def _as_exported(record: NewRecord, value: Mapping[str, Any]) -> NewRecord:
    """The record as `cmrn memory export` wrote it."""
    meta, origin, trust = value["meta"], value["origin"], value["trust"]
    if not isinstance(meta, dict) or not isinstance(origin, str) or type(trust) not in (int, float):
        raise RefusedError("is not as it was exported: 'meta', 'origin' or 'trust' is of another type")
    if not 0 <= trust <= 1:
        raise RefusedError("'trust' is not between 0 and 1")
    return replace(record, meta=_small(meta), origin=_short(origin, "origin"), trust=float(trust))


def _small(meta: dict[str, Any]) -> dict[str, Any]:
    if meta and len(json.dumps(meta, ensure_ascii=False).encode()) > LONGEST_TEXT:
        raise RefusedError("its other fields are longer than 1 MiB")
    return meta


def _id(value: Any, field: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RefusedError(f"{field!r} is neither a string nor an integer")
    return _short(str(value), field)


def _name(value: Mapping[str, Any], field: str, fixed: str | None) -> str | None:
    if fixed is not None or field not in value:
        return fixed
    if not isinstance(value[field], str):
        raise RefusedError(f"{field!r} is not a string")
    return _short(value[field], field)


def _short(name: str, field: str) -> str:
    if len(name) > LONGEST_NAME:
        raise RefusedError(f"{field!r} is longer than {LONGEST_NAME} characters")
    if "\0" in name:
        raise RefusedError(f"{field!r} holds a NUL")
    return name
