"""Kills with -9 at random moments (G1): nothing acknowledged is lost, nothing is torn, nobody repairs anything."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from cmrn.bench.faults.launcher import Launcher, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["kill"]

ROUNDS = 500
PER_STORE = 50
MOST = 120
"""Records of the stores that evict."""
LONGEST = 0.4
"""Seconds after which a writer is killed at the latest."""


def kill(options: StoreOptions, progress: Progress) -> Findings:
    """Kill a writer at random moments of add, edit, delete, evict, snapshot and compact, and look at what it left."""
    rounds = options.rounds or ROUNDS
    draw = random.Random(options.seed)
    findings = Findings()
    kills = acknowledged = 0
    with launcher(options.package) as jobs:
        while kills < rounds:
            limit = MOST if (kills // PER_STORE) % 2 else None
            oracle = Oracle(limit)
            store = jobs.scratch / f"store-{kills}"
            for _ in range(min(PER_STORE, rounds - kills)):
                kills += 1
                if not _round(jobs, store, oracle, draw, findings, kills, options.indexed):
                    break
            acknowledged += oracle.acknowledged
            progress(f"{kills} of {rounds} kills, {acknowledged:,} operations, {len(findings.failures)} failures")
    findings.count("kills", kills)
    findings.count("operations acknowledged", acknowledged)
    findings.count("lost, torn or repaired by hand", len(findings.failures), limit=0)
    return findings


def _round(
    jobs: Launcher, store: Path, oracle: Oracle, draw: random.Random, findings: Findings, number: int, indexed: bool
) -> bool:
    """One kill; whether the store is still worth going on with."""
    arguments = {"folder": str(store), "seed": number, "operations": 1_000_000, "max_records": oracle.limit,
                 "indexed": indexed}  # fmt: skip
    # Most moments are of work; opening, where recovery runs, is met as well.
    outcome = jobs.run_killed("operate", arguments, draw.uniform(0.0, LONGEST))
    where = f"kill {number}"
    failed = findings.fail(where, oracle.follow(outcome.events))
    if outcome.signal != signal.SIGKILL:
        return not findings.fail(where, [f"the writer ended before it was killed: {outcome.error}"])
    if not (store / "memory.db").exists() and not oracle.acknowledged:
        return True
    seen = jobs.run("inspect", {"folder": str(store), "indexed": indexed})
    if seen.result is None:
        return not findings.fail(where, [f"it does not open: {seen.error}"])
    problems = [*oracle.settle(seen.result["records"]), *seen.result["verify"], *seen.result["problems"]]
    return not (findings.fail(where, problems) or failed)
