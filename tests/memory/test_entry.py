from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.memory.entry import NewRecord, key_of

NAMES = st.text(st.characters(codec="utf-8"), max_size=5)


def test_records_cannot_be_changed() -> None:
    record = NewRecord("text")
    with pytest.raises(FrozenInstanceError):
        record.text = "other"  # type: ignore[misc]


def test_without_an_id_the_namespace_and_the_normal_form_of_the_text_are_the_key() -> None:
    assert key_of(NewRecord("caf\u00e9")) == key_of(NewRecord("cafe\u0301", source="elsewhere", meta={"a": 1}))
    assert key_of(NewRecord("cafe")) != key_of(NewRecord("caf\u00e9"))
    assert key_of(NewRecord("cafe")) != key_of(NewRecord("cafe", namespace="other"))


def test_with_an_id_namespace_source_and_id_are_the_key() -> None:
    first = NewRecord("one", id="1", source="s")
    assert key_of(first) == key_of(NewRecord("two", id="1", source="s"))
    assert key_of(first) != key_of(NewRecord("one", id="1"))
    assert key_of(first) != key_of(NewRecord("one", id="1", source="s", namespace="other"))
    assert key_of(NewRecord("1")) != key_of(NewRecord("1", id="1"))


@given(first=st.tuples(NAMES, NAMES, NAMES), second=st.tuples(NAMES, NAMES, NAMES))
def test_no_two_places_share_a_key(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    keys = [key_of(NewRecord("t", namespace=n, source=s, id=i)) for n, s, i in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)


def test_a_lone_surrogate_has_no_key() -> None:
    with pytest.raises(UnicodeEncodeError):
        key_of(NewRecord("\ud800"))


def test_records_and_the_store_load_no_torch() -> None:
    code = "import sys, cmrn.memory.store, cmrn.memory.exchange; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
