"""Power cuts between any two calls: what was acknowledged was synced, and what was not tears nothing."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmrn.bench.faults.boundaries import WITHOUT, after_script, script_arguments, spread
from cmrn.bench.faults.journal import Call, Disk, read_journal, write_image
from cmrn.bench.faults.launcher import Launcher, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.faults.shim import Arming
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["power"]

RELAXED = (
    "add", "add", "snapshot", "reopen", "add", "add", "snapshot", "edit", "delete", "add", "snapshot", "reopen", "add",
    "edit", "snapshot", "compact", "add", "snapshot",
)  # fmt: skip
MORE = 12
"""Additions after a cut with relaxed durability, enough to come past the changes that are gone."""
MIXTURES = 2
"""Cuts after each call that leave some of what was not synced, beside the one that leaves nothing of it."""


def power(options: StoreOptions, progress: Progress) -> Findings:
    """Cut the power after every call: with nothing kept but what was synced, and with any mixture of the rest.

    With relaxed durability the last operations may be gone, but nothing is torn, and the index follows the store.
    """
    findings = Findings()
    with launcher(options.package) as jobs:
        if not jobs.shimmed:
            findings.notes.append(WITHOUT)
            return findings
        for durability in ("full", "relaxed"):
            cuts = _cut_all(jobs, options, durability, findings, progress)
            findings.count(f"power cuts, durability {durability}", cuts)
    findings.count("lost or torn by a power cut", len(findings.failures), limit=0)
    return findings


def _cut_all(jobs: Launcher, options: StoreOptions, durability: str, findings: Findings, progress: Progress) -> int:
    """The cuts of one script; how many."""
    journal, folder, target = jobs.scratch / "journal", jobs.scratch / durability, jobs.scratch / "cut"
    folder.mkdir()
    arguments = {**script_arguments(folder, options), "durability": durability}
    if durability == "relaxed":
        arguments |= {"steps": list(RELAXED), "max_records": None}
    wrote = jobs.run("follow script", arguments, Arming(str(folder), str(journal)))
    calls = list(read_journal(journal))
    findings.fail("the journal", [wrote.error] if wrote.error else _blind(calls, folder))
    chosen = range(len(calls)) if options.rounds is None else spread(len(calls) - 1, options.rounds)
    draw = random.Random(options.seed)
    disk, oracle, before = Disk(str(folder)), Oracle(arguments["max_records"]), []
    cuts = 0
    for number, call in enumerate(calls):
        if call.kind == "n":
            before.append(copy.deepcopy(oracle))
            oracle.follow([json.loads(call.data)])
        disk.play(call)
        if number not in chosen:
            continue
        allowed = [oracle] if durability == "full" else [oracle, *reversed(before)]
        for image in (disk.cut(), *(disk.cut(draw) for _ in range(MIXTURES))):
            cuts += 1
            write_image(image, str(folder), target)
            problems = _look(jobs, target / "store", allowed, options)
            findings.fail(f"{durability}, cut {cuts}, after call {number} of {len(calls)}", problems)
            shutil.rmtree(target)
        if cuts % 90 < MIXTURES:
            progress(f"{durability}: {cuts} cuts, call {number} of {len(calls)}, {len(findings.failures)} failures")
    return cuts


def _look(jobs: Launcher, store: Path, allowed: Sequence[Oracle], options: StoreOptions) -> list[str]:
    """What is wrong with a store after a cut, which may be in any of the states allowed."""
    if len(allowed) == 1 or not allowed[0].acknowledged:
        return after_script(jobs, store, copy.deepcopy(allowed[0]), options.indexed)
    # A snapshot of what is gone must not be taken for one of what comes in its place.
    more = {"folder": str(store), "seed": 99, "steps": ["add"] * MORE, "indexed": False}
    seen = jobs.run("inspect", {"folder": str(store), "indexed": False, "write": False})
    if seen.result is None:
        return [f"it does not open: {seen.error}"]
    if all(copy.deepcopy(each).settle(seen.result["records"]) for each in allowed):
        return [f"{len(seen.result['records'])} records, as at no moment before"]
    wrote = jobs.run("follow script", more)
    again = jobs.run("inspect", {"folder": str(store), "indexed": options.indexed})
    if wrote.error or again.result is None:
        return [f"it takes nothing in: {wrote.error or again.error}"]
    return [*again.result["verify"], *again.result["problems"]]


def _blind(calls: Iterable[Call], folder: Path) -> list[str]:
    """Files that are not what their journal says: a call went past the shim, and cuts would prove nothing."""
    disk = Disk(str(folder))
    for call in calls:
        disk.play(call)
    now = {path: data for path, data in disk.now().items() if data is not None}
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    real = {str(path): path.read_bytes() for path in files}
    return [f"{path} changed unseen" for path in sorted(now.keys() | real.keys()) if now.get(path) != real.get(path)]
