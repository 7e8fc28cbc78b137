"""Random histories (G8): operations, reopenings, kills and damaged indexes, each state compared with a plain dict."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from cmrn.bench.faults.corrupt import DAMAGES
from cmrn.bench.faults.launcher import Launcher, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.faults.shim import Arming
from cmrn.bench.faults.workload import OPERATIONS
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["machine"]

ROUNDS = 2000
STEPS = 50
PHASES = 3
MOST = 30
CELLS_AT = 40
"""Records beyond which some histories have an index of cells."""
ENDS = ("closed", "killed", "index damaged", "index removed")


def machine(options: StoreOptions, progress: Progress) -> Findings:
    """Live through `rounds` histories of 50 steps; a failure names the seed that repeats it."""
    rounds = options.rounds or ROUNDS
    findings = Findings()
    operations = 0
    with launcher(options.package) as jobs:
        for number in range(rounds):
            seed = options.seed * 1_000_000 + number
            operations += _live(jobs, seed, options.indexed, findings)
            if number % 50 == 49:
                progress(f"{number + 1} of {rounds} histories, {operations:,} steps, {len(findings.failures)} failures")
    findings.count("histories", rounds)
    findings.count("operations acknowledged", operations)
    findings.count("differences from a dict", len(findings.failures), limit=0)
    return findings


def _live(jobs: Launcher, seed: int, indexed: bool, findings: Findings) -> int:
    """One history in phases, each begun by opening what the last one left; how many operations it acknowledged."""
    draw = random.Random(seed)
    limit, cells = draw.choices(((None, None), (MOST, None), (None, CELLS_AT)), (4, 4, 1))[0]
    store = jobs.scratch / "store"
    oracle = Oracle(limit)
    texts: set[str] = set()
    try:
        for phase in range(PHASES):
            steps = draw.choices(list(OPERATIONS), list(OPERATIONS.values()), k=STEPS // PHASES)
            steps = ["fill", *steps] if cells and not phase else steps
            arguments = {
                "folder": str(store), "seed": seed * PHASES + phase, "steps": steps, "max_records": limit,
                "indexed": indexed, "cells_at": cells,
            }  # fmt: skip
            end = draw.choice(ENDS)
            dies = end == "killed" and jobs.shimmed
            outcome = jobs.run(
                "follow script", arguments, Arming(str(store), die_at=draw.randint(1, 250)) if dies else None
            )
            where = f"seed {seed}, phase {phase}, {end}"
            failed = findings.fail(where, oracle.follow(outcome.events))
            if outcome.error and not (dies and outcome.signal):
                return oracle.acknowledged + int(findings.fail(where, [outcome.error]))
            _spoil(store, end, draw)
            texts |= {str(entry[3]) for entry in oracle.state.values()}
            gone = (
                sorted(texts - {str(entry[3]) for entry in oracle.state.values()})[:20]
                if oracle.pending is None
                else []
            )
            seen = jobs.run("inspect", {"folder": str(store), "indexed": indexed, "gone": gone, "cells_at": cells})
            if seen.result is None:
                if oracle.acknowledged:
                    findings.fail(where, [f"it does not open: {seen.error}"])
                return oracle.acknowledged
            problems = [*oracle.settle(seen.result["records"]), *seen.result["verify"], *seen.result["problems"]]
            if findings.fail(where, problems) or failed:
                return oracle.acknowledged
        return oracle.acknowledged
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _spoil(store: Path, end: str, draw: random.Random) -> None:
    """Damage a file of the index, or take the whole of it away."""
    folder = store / "index"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if end == "index removed":
        shutil.rmtree(folder, ignore_errors=True)
    elif end == "index damaged" and files:
        path = draw.choice(files)
        content = bytearray(path.read_bytes())
        DAMAGES[draw.choice(list(DAMAGES))](content, draw)
        path.write_bytes(content)
