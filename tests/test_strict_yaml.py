from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.strict_yaml import MAX_CHARACTERS, MAX_DEPTH, parse, write_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.0e-3", 2e-3),
        ("-.5", -0.5),
        ("10", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("true", True),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("<<", "<<"),
        ("=", "="),
        ('"1"', "1"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object) -> None:
    tree = parse(text, "f.yaml")
    assert tree.problems == ()
    assert tree.value == value
    assert type(tree.value) is type(value)


def test_places_are_those_of_keys_and_items() -> None:
    tree = parse("a:\n  b: 1\nc:\n  - x\n  - {d: 2}\n", "f.yaml")
    assert str(tree.place(("a", "b"))) == "f.yaml:2:3"
    assert str(tree.place(("c", 1))) == "f.yaml:5:5"
    assert str(tree.place(("c", 1, "d"))) == "f.yaml:5:6"
    assert str(tree.place(("a", "missing"))) == "f.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: &x 1\nb: *x\n", "f:1:4", "anchors"),
        ("b: *x\n", "f:1:4", "aliases"),
        ("a: 1\na: 2\n", "f:2:1", "first at line 1"),
        ("a: !!python/object/apply:os.system [id]\n", "f:1:4", "python"),
        ("a: !!binary aGk=\n", "f:1:4", "binary"),
        ("a: !!int x\n", "f:1:4", "int"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "another document"),
        ("a: [1\n", "f:2:1", "expected"),
        ("a: b: c\n", "f:1:5", "not allowed here"),
        ("? [a]\n: 1\n", "f:1:3", "single word"),
        ("a: 1\nb: \x1b[31m\n", "f:2:4", "U+001B"),
        ("[" * (MAX_DEPTH + 1), f"f:1:{MAX_DEPTH + 1}", "deeper"),
        ("a: " + "9" * 5000, "f:1:4", "int"),
        ("#" * (MAX_CHARACTERS + 1), "f:1:1", "larger"),
    ],
)
def test_refusals_say_where(text: str, where: str, words: str) -> None:
    (problem, *_) = parse(text, "f").problems
    assert problem.where == where
    assert words in problem.message


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    parse(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{victim}']]", "f")
    assert not victim.exists()


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    tree = parse(text, "f")
    assert tree.value is None or tree.problems == () or all(problem.where for problem in tree.problems)


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
)
def test_a_written_scalar_reads_back_exactly(value: object) -> None:
    for text in (f"key: {write_scalar(value)}", f"key: [{write_scalar(value)}]"):
        read = parse(text, "f").value["key"]
        read = read[0] if isinstance(read, list) else read
        assert read == value
        assert type(read) is type(value)
    if isinstance(value, float):
        assert math.copysign(1, read) == math.copysign(1, value)
