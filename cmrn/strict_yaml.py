"""YAML without surprises: plain data only, read by the rules of YAML 1.2, every value with its place in the file.

Refused: anchors and aliases, tags other than the plain ones, duplicate keys, more than one document, deep nesting and
large files. `1e-4` is a number, `no` and `2026-01-01` are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from cmrn.errors import Problem

__all__ = ["KeyPath", "Place", "Tree", "dotted", "parse", "write_scalar"]

KeyPath = tuple[str | int, ...]

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 32

_PREFIX = "tag:yaml.org,2002:"
_RESOLVERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (_PREFIX + "null", re.compile(r"^(?:~|null|Null|NULL|)$")),
    (_PREFIX + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")),
    (_PREFIX + "int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (_PREFIX + "float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")),
    (_PREFIX + "float", re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")),
)
_PLAIN = re.compile(r"^[A-Za-z][A-Za-z0-9_./-]*$")


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file with line and column from 1, or (line 0) an argument."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Tree:
    """Plain data, and the place of every key and list item in it; `problems` are what could not be read."""

    value: Any
    places: Mapping[KeyPath, Place]
    problems: tuple[Problem, ...] = ()

    def place(self, path: KeyPath) -> Place:
        """The place of `path`, or of the nearest part of it that was written down."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]


def dotted(path: KeyPath) -> str:
    """`("experts", 0, "type")` as `experts.0.type`."""
    return ".".join(str(part) for part in path) or "(top)"


class _Loader(yaml.SafeLoader):
    """Composes nodes by the rules of YAML 1.2's core schema, without anchors, aliases or deep nesting."""

    yaml_implicit_resolvers = {None: list(_RESOLVERS)}  # noqa: RUF012 - typed by the base class
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=event.start_mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse(text: str, source: str) -> Tree:
    """Read one YAML document; what cannot be read stands in `problems`, and an unreadable file has the value None."""
    top = Place(source, 1, 1)
    if len(text) > MAX_CHARACTERS:
        return Tree(None, {(): top}, (Problem(str(top), "(file)", f"larger than {MAX_CHARACTERS:,} characters"),))
    try:
        node = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else top
        message = " ".join(part for part in (error.context, error.problem) if part)
        return Tree(None, {(): top}, (Problem(str(place), "(syntax)", message),))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(source, before.count("\n") + 1, len(before) - before.rfind("\n"))
        message = f"the character U+{ord(text[error.position]):04X} is not allowed"
        return Tree(None, {(): top}, (Problem(str(place), "(syntax)", message),))
    reader = _NodeReader(source)
    value = None if node is None else reader.read(node, ())
    return Tree(value, {(): top, **reader.places}, tuple(reader.problems))


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


class _NodeReader:
    """Turns nodes into plain data, noting places and problems on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            for i, item in enumerate(node.value):
                self.places[(*path, i)] = self._place(item)
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        convert = _SCALARS.get(node.tag.removeprefix(_PREFIX)) if isinstance(node, yaml.ScalarNode) else None
        if convert is None:
            self._report(node, path, f"the tag {node.tag} is not allowed")
            return None
        try:
            return convert(node.value)
        except (ValueError, KeyError):
            self._report(node, path, f"cannot be read as {node.tag.removeprefix(_PREFIX)}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(key_node, path, "a key must be a single word")
                continue
            key = str(key_node.value)
            if key in found:
                message = f"given twice, first at line {self.places[(*path, key)].line}"
                self._report(key_node, (*path, key), message)
                continue
            self.places[(*path, key)] = self._place(key_node)
            found[key] = self.read(value_node, (*path, key))
        return found

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def _report(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(str(self._place(node)), dotted(path), message))


def _integer(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _integer,
    "float": _number,
    "str": str,
}


def write_scalar(value: str | int | float | bool | None) -> str:
    """One line of YAML that `parse` reads back as exactly `value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if _PLAIN.match(value) and not any(pattern.match(value) for _, pattern in _RESOLVERS):
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=False)
    return quoted.rstrip("\n")
