"""Deaths at every call that changes the folder (G2), half way through it, and calls that fail instead."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmrn.bench.faults.launcher import Launcher, Outcome, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.faults.pouring import expected, write_lines
from cmrn.bench.faults.shim import Arming
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["MOST", "SCRIPT", "WITHOUT", "after_script", "every_call", "script_arguments", "spread"]

SCRIPT = (
    "add", "add", "snapshot", "edit", "delete", "add", "touch", "delete source", "snapshot", "reopen", "add", "compact",
    "add", "edit", "snapshot",
)  # fmt: skip
MOST = 40
KINDS = ("killed at", "torn at", "refused")
CODES = (4, 6)
"""What a writer may end with when the system refuses it a call."""
WITHOUT = "not tried: it needs a C compiler, to stand between the process and its filesystem"


@dataclass(frozen=True)
class Work:
    """A job that is done over and over, and what is wrong with the store that it left in a folder."""

    name: str
    job: str
    arguments: Callable[[Path], dict[str, Any]]
    look: Callable[[Path, Outcome], list[str]]


def every_call(options: StoreOptions, progress: Progress) -> Findings:
    """Kill a writer at each of its calls in turn, before it and half way through it, and let each fail instead."""
    findings = Findings()
    with launcher(options.package, preload=("cmrn.memory.populate",)) as jobs:
        if not jobs.shimmed:
            findings.notes.append(WITHOUT)
            return findings
        for work in (_script(jobs, options), _pouring(jobs, options)):
            total = _calls(jobs, work)
            numbers = range(1, total + 1) if options.rounds is None else spread(total, options.rounds)
            for kind in KINDS:
                for done, number in enumerate(numbers, 1):
                    _die(jobs, work, number, kind, findings)
                    if done % 50 == 0:
                        told = f"{work.name} {kind} call {number} of {total}"
                        progress(f"{told}, {len(findings.failures)} failures")
                findings.count(f"{work.name} {kind} a call", len(numbers))
    findings.count("lost, torn or repaired by hand", len(findings.failures), limit=0)
    return findings


def script_arguments(folder: Path, options: StoreOptions) -> dict[str, Any]:
    """The script that goes through all that a store does."""
    store, steps = str(folder / "store"), list(SCRIPT)
    return {"folder": store, "seed": options.seed, "steps": steps, "max_records": MOST, "indexed": options.indexed}


def after_script(jobs: Launcher, store: Path, oracle: Oracle, indexed: bool) -> list[str]:
    """What is wrong with a store after a fault; one that was never acknowledged only has to be made anew."""
    if not oracle.acknowledged:
        again = jobs.run("follow script", {"folder": str(store), "seed": 1, "steps": ["add"], "indexed": indexed})
        return [f"it cannot be made: {again.error}"] if again.error else []
    seen = jobs.run("inspect", {"folder": str(store), "indexed": indexed})
    if seen.result is None:
        return [f"it does not open: {seen.error}"]
    return [*oracle.settle(seen.result["records"]), *seen.result["verify"], *seen.result["problems"]]


def spread(total: int, wanted: int) -> range:
    """About `wanted` of the numbers from 1 to `total`, evenly apart."""
    return range(1, total + 1, max(1, total // wanted))


def _script(jobs: Launcher, options: StoreOptions) -> Work:
    def look(folder: Path, outcome: Outcome) -> list[str]:
        oracle = Oracle(MOST)
        seen = oracle.follow(outcome.events)
        return seen + after_script(jobs, folder / "store", oracle, options.indexed)

    return Work("a script", "follow script", lambda folder: script_arguments(folder, options), look)


def _pouring(jobs: Launcher, options: StoreOptions) -> Work:
    """A populate and a snapshot; afterwards the same command is given again, and must end as one run ends."""
    file = jobs.scratch / "poured.jsonl"
    write_lines(file, options.seed)
    whole = expected(options.seed)

    def arguments(folder: Path) -> dict[str, Any]:
        return {"folder": str(folder / "store"), "file": str(file), "indexed": options.indexed}

    def look(folder: Path, outcome: Outcome) -> list[str]:
        problems = []
        told = max([event["committed"] for event in outcome.events if "committed" in event], default=0)
        inspected = {"folder": str(folder / "store"), "indexed": options.indexed}
        if told:
            seen = jobs.run("inspect", inspected)
            if seen.result is None:
                return [f"it does not open: {seen.error}"]
            held = list(seen.result["records"].values())
            if held != whole[: len(held)] or len(held) < len(_firsts(whole, told)):
                problems.append(f"{len(held)} records, where {told} lines were told to be committed")
            problems += seen.result["verify"] + seen.result["problems"]
        again = jobs.run("pour", arguments(folder))
        if again.error:
            return [*problems, f"the same command again: {again.error}"]
        seen = jobs.run("inspect", inspected)
        if seen.result is None or list(seen.result["records"].values()) != whole:
            problems.append("interrupted and begun again, it does not end as one run ends")
        return problems

    return Work("populate and snapshot", "pour", arguments, look)


def _firsts(whole: list[list[object]], told: int) -> list[list[object]]:
    """At least these records are there once so many were told: a record that came twice was told twice."""
    return whole[: told - told // 16]


def _calls(jobs: Launcher, work: Work) -> int:
    """How many calls the job makes."""
    folder = jobs.scratch / "counted"
    folder.mkdir()
    outcome = jobs.run(work.job, work.arguments(folder), Arming(str(folder)))
    assert not outcome.error, outcome.error
    shutil.rmtree(folder)
    return int(outcome.events[-1]["calls"])


def _die(jobs: Launcher, work: Work, number: int, kind: str, findings: Findings) -> None:
    folder = jobs.scratch / "dying"
    folder.mkdir()
    where = f"{work.name} {kind} call {number}"
    try:
        fails = number if kind == "refused" else 0
        arming = Arming(str(folder), die_at=0 if fails else number, torn=kind == "torn at", fail_at=fails)
        outcome = jobs.run(work.job, work.arguments(folder), arming)
        expected_end = outcome.code in (0, *CODES) if fails else outcome.signal == signal.SIGKILL
        if not expected_end:
            findings.fail(where, [outcome.error or "the writer did not reach it"])
        findings.fail(where, work.look(folder, outcome))
    finally:
        shutil.rmtree(folder)
