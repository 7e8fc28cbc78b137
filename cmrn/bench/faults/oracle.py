"""What a store must hold: every acknowledged operation, and the one under way wholly or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmrn.bench.faults.made import Entry, key

__all__ = ["Oracle"]

State = dict[int, Entry]


@dataclass
class Oracle:
    """The acknowledged state, by record; the operation begun and not acknowledged; the records that were ever given."""

    limit: int | None = None
    state: State = field(default_factory=dict)
    pending: dict[str, Any] | None = None
    newest: int = 0
    acknowledged: int = 0

    def follow(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take in a job's events; return the violations that it saw itself."""
        seen = []
        for event in events:
            if "begin" in event:
                self.pending = event["begin"]
            elif "done" in event:
                assert self.pending is not None
                self.state = _applied(self.state, self.pending, event["done"])
                self.newest = max([self.newest, *self.state])
                self.acknowledged += 1
                self.pending = None
            elif "violation" in event:
                seen.append(str(event["violation"]))
        return seen

    def settle(self, found: Mapping[str, Entry]) -> list[str]:
        """Compare with what the store holds after a fault, and take that as the state from now on."""
        held = {int(record): entry for record, entry in found.items()}
        problems = self._differences(self.state, held, 0)
        if problems and self.pending is not None:
            after = _applied(self.state, self.pending, None)
            surplus = 0
            if self.pending["op"] == "add" and self.limit is not None:
                surplus = max(0, len(after) - self.limit)
            done = self._differences(after, held, surplus)
            problems = (
                problems + [f"or, with the {self.pending['op']} under way: {each}" for each in done] if done else []
            )
        self.state, self.pending = held, None
        self.newest = max([self.newest, *held])
        return problems

    def _differences(self, expected: State, held: State, evicted: int) -> list[str]:
        """What is wrong with `held`, of which `evicted` records may be missing."""
        known = {record: entry for record, entry in expected.items() if record >= 0}
        made = [entry for record, entry in expected.items() if record < 0]
        lost = [record for record in known if record not in held]
        torn = [record for record in known if record in held and held[record] != known[record]]
        extra = [record for record in held if record not in known]
        problems = []
        if len(lost) != evicted:
            problems.append(f"{len(lost)} records are missing, {evicted} may be: {lost[:5]}")
        problems += [f"record {record} is {held[record]}, not {known[record]}" for record in torn[:5]]
        if _sorted(held[record] for record in extra) != _sorted(made):
            problems.append(f"{len(extra)} records are new, {len(made)} may be: {extra[:5]}")
        reused = [record for record in extra if record <= self.newest]
        if reused:
            problems.append(f"records were given twice: {reused[:5]}")
        return problems


def _sorted(entries: Iterable[Entry]) -> list[str]:
    return sorted(json.dumps(entry, sort_keys=True) for entry in entries)


def _applied(state: State, operation: Mapping[str, Any], done: Mapping[str, Any] | None) -> State:
    """The state after an operation; without `done`, new records have numbers below zero and nothing was evicted."""
    after = dict(state)
    if operation["op"] == "add":
        by_key = {key(entry): record for record, entry in after.items()}
        for place, entry in enumerate(operation["entries"]):
            record = by_key.get(key(entry), -1 - place) if done is None else done["records"][place]
            by_key[key(entry)] = record
            after[record] = entry
        for record in done["evicted"] if done is not None else ():
            after.pop(record, None)
    elif operation["op"] == "edit":
        after[operation["record"]] = operation["entry"]
    elif operation["op"] == "delete":
        for record in operation["records"]:
            after.pop(record, None)
    elif operation["op"] == "delete source":
        gone = operation["source"]
        after = {record: entry for record, entry in after.items() if entry[2] != gone}
    return after
