"""The project file says what is there."""

from __future__ import annotations

import os
import tomllib
from typing import Any

import pytest

from tests.architecture.sources import CHECKOUT, FOLDERS


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_wheel(project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    present = []
    for name, folder in FOLDERS.items():
        for init in folder.rglob("__init__.py"):
            present.append(".".join([name, *init.parent.relative_to(folder).parts]))
    assert sorted(listed) == sorted(present)


def test_every_folder_with_code_is_a_package() -> None:
    for folder in FOLDERS.values():
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path.relative_to(CHECKOUT)


def test_extras_never_bring_both_builds_of_faiss(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert [name for name, needs in extras.items() if any("faiss-gpu" in need for need in needs)] == ["gpu"]
    assert not any("faiss" in need for need in project["project"]["dependencies"])
    assert not any("gpu" in need for need in extras["dev"])


def test_ci_script_can_be_run() -> None:
    assert os.access(CHECKOUT / ".ci" / "run", os.X_OK)
