"""Damage to every file of a store (G3): no process dies of it, and nothing wrong is ever said without a warning."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from cmrn.bench.faults.launcher import Launcher, Outcome, launcher
from cmrn.bench.faults.oracle import Oracle
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions

__all__ = ["corrupt"]

ROUNDS = 2000
CODES = (4, 6)
STEPS = ("fill", "add", "snapshot", "reopen", "edit", "delete", "add", "add", "edit", "delete", "add")
Damage = Callable[[bytearray, random.Random], None]


def corrupt(options: StoreOptions, progress: Progress) -> Findings:
    """Damage one file of a store in one way, read and write it, and compare with what had been acknowledged."""
    rounds = options.rounds or ROUNDS
    draw = random.Random(options.seed)
    findings = Findings()
    noticed = rebuilt = 0
    with launcher(options.package) as jobs:
        origin = jobs.scratch / "origin"
        states = _make(jobs, origin, options)
        files = [path for path in sorted(origin.rglob("*")) if path.is_file() and path.name not in ("LOCK", "RESERVE")]
        # The files that hold the records come up as often as all the others together.
        weights = [8 if path.name.startswith("memory.db") and not path.name.endswith("-shm") else 2 for path in files]
        for number in range(1, rounds + 1):
            path = draw.choices(files, weights)[0]
            name = draw.choice(list(DAMAGES))
            target = jobs.scratch / "damaged"
            shutil.copytree(origin, target)
            victim = target / path.relative_to(origin)
            content = bytearray(victim.read_bytes())
            DAMAGES[name](content, draw)
            victim.write_bytes(content)
            where = f"damage {number} ({name} in {path.relative_to(origin)})"
            read = jobs.run("inspect", {"folder": str(target), "write": False, "indexed": options.indexed})
            noticed += _judge(read, states, path.name, where, findings)
            rebuilt += bool(read.result and read.result["warnings"] and not read.result["verify"])
            if number % 4 == 0:
                arguments = {"folder": str(target), "seed": number, "steps": ["add", "edit", "compact"]}
                wrote = jobs.run("follow script", {**arguments, "indexed": options.indexed})
                if wrote.code not in (0, *CODES):
                    findings.fail(where, [f"writing to it: {wrote.error}"])
            shutil.rmtree(target)
            if number % 100 == 0:
                progress(f"{number} of {rounds} damages, {noticed} noticed, {len(findings.failures)} failures")
    findings.count("damages", rounds)
    findings.count("refused or reported", noticed)
    findings.count("mended from the truth", rebuilt)
    findings.count("signals or silent wrong results", len(findings.failures), limit=0)
    return findings


def _make(jobs: Launcher, folder: Path, options: StoreOptions) -> list[dict[int, Any]]:
    """A store with a snapshot, a log of what came after it, and a WAL; and the states it went through, newest last."""
    living = jobs.scratch / "living"
    arguments = {"folder": str(living), "seed": options.seed, "steps": [*STEPS, "wait"], "indexed": options.indexed}
    job = jobs.start("follow script", arguments)
    while not _said(job.events, "waiting"):
        time.sleep(0.01)
    shutil.copytree(living, folder)
    outcome = jobs.wait(job, 0.0)
    oracle = Oracle()
    states = []
    for event in outcome.events:
        oracle.follow([event])
        if "done" in event:
            states.append(oracle.state)
    return states


def _said(events: Path, word: str) -> bool:
    lines = events.read_bytes().split(b"\n")[:-1] if events.exists() else []
    return any(word in json.loads(line) for line in lines)


def _judge(read: Outcome, states: list[dict[int, Any]], file: str, where: str, findings: Findings) -> bool:
    """Count a wrong result that nothing warned of; whether the damage was noticed."""
    if read.result is None:
        if read.code not in CODES:
            findings.fail(where, [read.error])
        return True
    held = {int(record): entry for record, entry in read.result["records"].items()}
    noticed = bool(read.result["verify"] or read.result["warnings"])
    wrong = [record for record in held if not any(state.get(record) == held[record] for state in states)]
    findings.fail(where, [f"record {record} says what was never written: {held[record]}" for record in wrong[:3]])
    # A damaged log ends where the damage begins, so an older state is right; it is whole, or else a warning is due.
    right = states if file.endswith(("-wal", "-shm")) else states[-1:]
    if held not in right and not noticed:
        findings.fail(where, [f"{len(held)} records of {len(states[-1])}, and no warning"])
    if not noticed or not read.result["verify"]:
        findings.fail(where, read.result["problems"])
    return noticed


def _written(content: bytearray, draw: random.Random) -> int:
    """A place, rather where something is written than in the empty space of a page."""
    for _ in range(8):
        place = draw.randrange(len(content))
        if content[place]:
            break
    return place


def _flip(content: bytearray, draw: random.Random) -> None:
    if content:
        content[_written(content, draw)] ^= 1 << draw.randrange(8)


def _flip_many(content: bytearray, draw: random.Random) -> None:
    for _ in range(20):
        _flip(content, draw)


def _truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content) + 1) :]


def _zero(content: bytearray, draw: random.Random) -> None:
    _overwrite(content, draw, bytes(4096))


def _garbage(content: bytearray, draw: random.Random) -> None:
    _overwrite(content, draw, draw.randbytes(draw.choice((16, 512, 4096))))


def _swap(content: bytearray, draw: random.Random) -> None:
    """Two stretches exchanged, each as it was: what only a hash over both can see."""
    size = min(4096, len(content) // 2)
    if size:
        first, second = sorted((draw.randrange(len(content) - size + 1), draw.randrange(len(content) - size + 1)))
        if second - first >= size:
            one, other = content[first : first + size], content[second : second + size]
            content[first : first + size], content[second : second + size] = other, one


def _extend(content: bytearray, draw: random.Random) -> None:
    content.extend(draw.randbytes(draw.choice((1, 4096))))


def _overwrite(content: bytearray, draw: random.Random, data: bytes) -> None:
    start = _written(content, draw) if content else 0
    content[start : start + len(data)] = data[: len(content) - start]


DAMAGES: Final[Mapping[str, Damage]] = {
    "a bit flipped": _flip,
    "bits flipped": _flip_many,
    "truncated": _truncate,
    "zeros": _zero,
    "garbage": _garbage,
    "parts exchanged": _swap,
    "garbage at the end": _extend,
}
