"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.architecture.sources import read_sources

WITH_EXAMPLES = [s.module for s in read_sources("cmrn") if ">>> " in s.path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_print_what_they_say(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert tried > 0
    assert failed == 0


def test_there_are_examples() -> None:
    assert WITH_EXAMPLES
