"""The project's own source files, parsed, for the tests that read rather than run them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = {"cmrn": CHECKOUT / "cmrn", "cmrn_cli": CHECKOUT / "cli", "cmrn_recipes": CHECKOUT / "recipes"}


@dataclass(frozen=True)
class Source:
    """One file: its path in the checkout, its dotted module name, and its syntax tree."""

    path: Path
    module: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]

    def place(self, node: ast.AST) -> str:
        """path:line of a node."""
        return f"{self.path.relative_to(CHECKOUT)}:{getattr(node, 'lineno', 1)}"


def read_sources(*packages: str) -> list[Source]:
    """Every Python file of the packages, parsed."""
    found = []
    for package in packages:
        for path in sorted(FOLDERS[package].rglob("*.py")):
            parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
            dotted = ".".join([package, *(part for part in parts if part != "__init__")])
            found.append(Source(path, dotted, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imported_modules(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every absolute dotted name that a file imports, inside functions too; `from a import b` gives a.b."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = source.package.split(".")[: len(source.package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f"{start}.{alias.name}"
