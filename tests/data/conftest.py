"""A small tokenizer and documents shared by the tests of the data."""

from __future__ import annotations

import pytest

from cmrn.tokenizer import CMRNTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> CMRNTokenizer:
    return CMRNTokenizer.train(["to be or not to be, that is the question. " * 9, "0123456789 def f(x): 🙂" * 9], 300)
