"""The text of this very installation: enough of it, of the right kind, always the same, read without running it."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache

import pytest

from cmrn.config import DataConfig, SourceConfig
from cmrn.data import Corpus, load_corpus
from cmrn.data.builtin import BUILTIN_NAMES, _docstrings, _modules, _standard_library, read_builtin
from cmrn.data.prose import clean_docstring, clean_licence, clean_markdown

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def corpus() -> Corpus:
    sources = tuple(SourceConfig(path=f"builtin://{name}") for name in BUILTIN_NAMES)
    return load_corpus(DataConfig(sources=sources), None, 1)


def texts(domain: str) -> str:
    return "\n".join(document.text for document in (*corpus().train, *corpus().validation) if document.domain == domain)


def grams(text: str) -> set[int]:
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + 13])) for i in range(len(words) - 12)}


def test_every_domain_has_enough_to_train_and_to_test_on() -> None:
    least_train = {"code": 4_000_000, "math": 1_000_000, "english": 1_000_000, "legal": 60_000}
    for row in corpus().report.domains:
        assert row.train_bytes >= least_train[row.domain or ""], row
        assert row.validation_bytes >= (12_000 if row.domain == "legal" else 40_000), row


def test_what_is_held_out_is_not_in_training() -> None:
    known: set[int] = set()
    for document in corpus().train:
        known |= grams(document.text)
    for document in corpus().validation:
        own = grams(document.text)
        assert len(own & known) <= 0.1 * len(own), document.source


def test_each_domain_is_of_its_kind() -> None:
    assert "def __init__(self" in texts("code")
    assert "warranty" in texts("legal").lower()
    assert "merchantability" in texts("legal").lower()
    assert texts("math").count("integral") > 200
    for domain in ("math", "english", "legal"):
        assert not re.search(r"(?m)^\s*(>>> |def \w+\(|import \w+$)", texts(domain))
    assert all(document.source.startswith("builtin://") for document in corpus().train)


def test_code_still_parses_with_its_docstrings_cut() -> None:
    found = list(read_builtin("code"))
    cut = whole = 0
    for text, _ in found[::7]:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            cut += isinstance(node, ast.FunctionDef) and "\n" not in (ast.get_docstring(node) or "")
            whole += isinstance(node, ast.FunctionDef)
    assert cut >= 0.99 * whole > 1000
    assert [source for _, source in found] == [source for _, source in read_builtin("code")]


def test_docstrings_are_those_of_the_syntax_tree() -> None:
    found = wanted = both = 0
    for text, _ in list(_modules(_standard_library(), ""))[::5]:
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED)]
        tree = {doc for node in nodes if "\n" in (doc := ast.get_docstring(node, clean=False) or "")}
        pattern = set(_docstrings(text))
        found, wanted, both = found + len(pattern), wanted + len(tree), both + len(tree & pattern)
    assert wanted > 300
    assert both >= 0.98 * max(found, wanted)


def test_reading_imports_nothing() -> None:
    before = {name for name in sys.modules if name.split(".")[0] in ("mpmath", "this", "antigravity", "scipy")}
    list(read_builtin("math"))
    after = {name for name in sys.modules if name.split(".")[0] in ("mpmath", "this", "antigravity", "scipy")}
    assert after == before


DOCSTRING = """Integrate a function over an interval of the real line.

    The integral of a sum of functions is the sum
    of the integrals of these functions.

    .. math:: \\int_a^b f + g = \\int_a^b f + \\int_a^b g

    Parameters
    ==========

    f : callable
        The function which is integrated over the whole interval here.

    Examples
    ========

    A first example of this, which is not long:

    >>> integrate(x, (x, 0, 1))
    1/2

    Notes
    =====

    The method converges for every function that is continuous on the interval.
    """


def test_a_docstring_gives_prose_and_formulas() -> None:
    sentences = [
        "Integrate a function over an interval of the real line.",
        "The integral of a sum of functions is the sum of the integrals of these functions.",
        "The method converges for every function that is continuous on the interval.",
    ]
    assert clean_docstring(DOCSTRING, math=False) == sentences
    formula = r"\int_a^b f + g = \int_a^b f + \int_a^b g"
    assert clean_docstring(DOCSTRING, math=True) == [*sentences[:2], formula, sentences[2]]


@pytest.mark.parametrize(
    "block",
    [
        "Args:\n    name: what the thing of which we speak is called in the end",
        ">>> print('one two three four five six seven eight nine')",
        "    indented.code(that=has, some=words, and_=more) or else it is the same",
        "=====  =====\nA one  B two and three and four and five and six\n=====  =====",
        ":param x: the one that is used by all of the other functions\n:param y: another",
        "too few words",
    ],
)
def test_what_is_not_prose_is_left_out(block: str) -> None:
    plain = "This is a sentence of plain prose with enough words to be kept."
    assert clean_docstring(f"{plain}\n\n{block}", math=False) == [plain]


def test_a_readme_gives_sentences() -> None:
    plain = "This library reads [files](https://example.org) and it writes them back again."
    text = (
        f"# Title\n\n{plain}\n\n```python\nimport this library and then use it as one does\n```\n\n| a | b |\n|--|--|\n"
    )
    assert clean_markdown(text) == ["This library reads files and it writes them back again."]


def test_a_licence_gives_clauses() -> None:
    clause = "Permission is hereby granted, free of charge, to any person\nobtaining a copy of this software."
    text = f"Copyright (c) 2020 by a person with a name of more than eight words here\n\n * {clause}\n\nMIT"
    assert clean_licence(text) == [clause.replace("\n", " ")]
