"""A disk that fills up (G5): what was acknowledged stays, the writer ends with 6, and what frees space still works."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cmrn.bench.faults.launcher import Launcher, Outcome, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.faults.shim import Arming
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["full"]

ROUNDS = 100
BEFORE = ("add", "add", "add")
STEPS = ("add", "edit", "add", "snapshot", "add", "delete", "compact", "add", "add", "edit", "add", "snapshot") * 2
FULL = 6
LIMITED = 4096
"""Bytes between two limits on the size of a file, where a disk cannot be made full."""


def full(options: StoreOptions, progress: Progress) -> Findings:
    """Give a store's folder room for a little more each time, and write until it is full."""
    rounds = options.rounds or ROUNDS
    findings = Findings()
    ended = 0
    with launcher(options.package) as jobs:
        if not jobs.shimmed:
            findings.notes.append("no C compiler: files are limited in size, where a disk would be full")
        needed = _needed(jobs, options) if jobs.shimmed else LIMITED * rounds
        for number in range(rounds):
            room = needed * number // rounds
            ended += _fill(jobs, options, room, f"room for {room:,} bytes", findings)
            if number % 20 == 19:
                progress(f"{number + 1} of {rounds} disks, {ended} of them filled, {len(findings.failures)} failures")
    findings.count("disks", rounds)
    findings.count("filled, ended with 6", ended)
    findings.count("lost, torn, or ended otherwise", len(findings.failures), limit=0)
    return findings


def _arguments(store: Path, options: StoreOptions, steps: tuple[str, ...], seed: int) -> dict[str, Any]:
    return {"folder": str(store), "seed": seed, "steps": list(steps), "indexed": options.indexed}


def _needed(jobs: Launcher, options: StoreOptions) -> int:
    """The least room, of those tried, that the steps can do with."""
    room = 1 << 16
    while True:
        store = jobs.scratch / "measured"
        jobs.run("follow script", _arguments(store, options, BEFORE, options.seed))
        outcome = jobs.run("follow script", _arguments(store, options, STEPS, options.seed + 1),
                           Arming(str(store), room=room))  # fmt: skip
        shutil.rmtree(store)
        if outcome.code == 0:
            return room
        room = room * 5 // 4


def _fill(jobs: Launcher, options: StoreOptions, room: int, where: str, findings: Findings) -> bool:
    """One disk; whether it was filled."""
    store = jobs.scratch / "filled"
    oracle = Oracle()
    try:
        before = jobs.run("follow script", _arguments(store, options, BEFORE, options.seed))
        findings.fail(where, oracle.follow(before.events))
        outcome = _with_room(jobs, _arguments(store, options, STEPS, options.seed + 1), store, room)
        findings.fail(where, oracle.follow(outcome.events))
        if outcome.code not in (0, FULL):
            findings.fail(where, [f"exit code {outcome.code}: {outcome.error}"])
        seen = jobs.run("inspect", {"folder": str(store), "indexed": options.indexed})
        if seen.result is None:
            return not findings.fail(where, [f"it does not open: {seen.error}"])
        problems = [*oracle.settle(seen.result["records"]), *seen.result["verify"], *seen.result["problems"]]
        findings.fail(where, problems)
        freed = _with_room(jobs, _arguments(store, options, ("search", "delete", "delete source"), 7), store, 0)
        findings.fail(where, oracle.follow(freed.events))
        if freed.code != 0:
            findings.fail(where, [f"on the full disk, search or delete: {freed.error}"])
        return outcome.code == FULL
    finally:
        shutil.rmtree(store)


def _with_room(jobs: Launcher, arguments: dict[str, Any], store: Path, room: int) -> Outcome:
    if jobs.shimmed:
        return jobs.run("follow script", arguments, Arming(str(store), room=room))
    largest = max(path.stat().st_size for path in store.glob("memory.db*"))
    return jobs.run("follow limited script", {**arguments, "largest_file": largest + room})
