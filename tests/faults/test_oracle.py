from __future__ import annotations

from typing import Any

from cmrn.bench.faults.made import Entry
from cmrn.bench.faults.oracle import Oracle

ONE: Entry = ["a", "default", "notes", "one", {}]
TWO: Entry = [None, "default", "ledger", "two", {}]
THREE: Entry = ["c", "other", "notes", "three", {}]


def acknowledged(*entries: Entry, limit: int | None = None) -> Oracle:
    oracle = Oracle(limit)
    oracle.follow([begin(*entries), {"done": {"records": list(range(1, len(entries) + 1)), "evicted": []}}])
    return oracle


def begin(*entries: Entry) -> dict[str, Any]:
    return {"begin": {"op": "add", "entries": list(entries)}}


def test_what_was_acknowledged_must_be_there_as_it_was() -> None:
    assert acknowledged(ONE, TWO).settle({"1": ONE, "2": TWO}) == []
    assert acknowledged(ONE, TWO).settle({"1": ONE}) != []
    assert acknowledged(ONE, TWO).settle({"1": ONE, "2": THREE}) != []
    assert acknowledged(ONE).settle({"1": ONE, "2": TWO}) != []


def test_what_was_under_way_is_there_wholly_or_not_at_all() -> None:
    def pending() -> Oracle:
        oracle = acknowledged(ONE)
        oracle.follow([begin(TWO, THREE)])
        return oracle

    assert pending().settle({"1": ONE}) == []
    assert pending().settle({"1": ONE, "2": TWO, "3": THREE}) == []
    assert pending().settle({"1": ONE, "2": TWO}) != []
    assert pending().settle({"2": TWO, "3": THREE}) != []


def test_edits_and_deletions_under_way() -> None:
    changed: Entry = ["a", "default", "notes", "uno", {}]
    for operation, after in (
        ({"op": "edit", "record": 1, "entry": changed}, {"1": changed, "2": TWO}),
        ({"op": "delete", "records": [1]}, {"2": TWO}),
        ({"op": "delete source", "source": "notes"}, {"2": TWO}),
    ):
        for held, right in (({"1": ONE, "2": TWO}, True), (after, True), ({"1": ONE}, False)):
            oracle = acknowledged(ONE, TWO)
            oracle.follow([{"begin": operation}])
            assert (oracle.settle(held) == []) == right, (operation, held)


def test_an_add_under_way_evicts_as_many_as_it_must() -> None:
    def pending() -> Oracle:
        oracle = acknowledged(ONE, TWO, limit=2)
        oracle.follow([begin(THREE)])
        return oracle

    assert pending().settle({"2": TWO, "3": THREE}) == []
    assert pending().settle({"3": THREE}) != []
    assert pending().settle({"1": ONE, "2": TWO, "3": THREE}) != []


def test_numbers_are_never_given_twice() -> None:
    for number, right in (("2", False), ("3", True)):
        oracle = acknowledged(ONE, TWO)
        oracle.follow([{"begin": {"op": "delete", "records": [2]}}, {"done": {}}, begin(THREE)])
        assert (oracle.settle({"1": ONE, number: THREE}) == []) == right
