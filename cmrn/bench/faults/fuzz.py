"""Files of anything (G4): what is a record is stored as it stands, what is none is refused with a reason, always."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, cast

from cmrn.bench.faults.commands import BUG
from cmrn.bench.faults.events import Events
from cmrn.bench.faults.launcher import Launcher, launcher
from cmrn.bench.faults.made import DIM, fingerprint
from cmrn.bench.faults.pouring import StandIn
from cmrn.bench.faults.strings import lines
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.memory.store import MemoryStore

__all__ = ["fuzz", "take_in"]

ROUNDS = 10_000
A_FILE = 50
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".txt", ".txt.gz")
REJECTED = 3
PRELOAD = ("cmrn_cli.main", "cmrn.memory.populate")


def fuzz(options: StoreOptions, progress: Progress) -> Findings:
    """Pour `rounds` lines into stores: by the library as JSON Lines, and by the command line under every ending."""
    rounds = options.rounds or ROUNDS
    findings = Findings()
    stored = refused = commands = 0
    with launcher(options.package, preload=PRELOAD) as jobs:
        for number, start in enumerate(range(0, rounds, A_FILE)):
            made = lines(options.seed * 1_000_003 + number, min(A_FILE, rounds - start))
            path = jobs.scratch / "lines.jsonl"
            path.write_bytes(b"".join(line + b"\n" for _, line in made))
            store = jobs.scratch / f"store-{number % 20}"
            outcome = jobs.run("take in", {"folder": str(store), "file": str(path)})
            where = f"file {number}"
            if outcome.result is None:
                findings.fail(where, [outcome.error])
            else:
                findings.fail(where, _compare(made, outcome.result))
                stored, refused = stored + outcome.result["stored"], refused + outcome.result["rejected"]
            commands += _by_command(jobs, path.read_bytes(), ENDINGS[number % len(ENDINGS)], where, findings)
            if number % 20 == 19:
                progress(f"{start + A_FILE:,} of {rounds:,} lines, {len(findings.failures)} failures")
    findings.count("lines", rounds)
    findings.count("stored", stored)
    findings.count("refused with a reason", refused)
    findings.count("files given to the command line", commands)
    findings.count("tracebacks, other exit codes, wrong texts", len(findings.failures), limit=0)
    return findings


def take_in(events: Events, folder: str, file: str) -> dict[str, Any]:
    """Pour a file into a store; what was stored and what was refused."""
    from cmrn.memory.embedding import Embedder
    from cmrn.memory.populate import PopulateOptions, populate

    rejects = Path(f"{folder}.rejects.jsonl")
    with MemoryStore.ensure(Path(folder), fingerprint(DIM)) as store:
        before = store.seq
        result = populate(
            store, [Path(file)], cast(Embedder, StandIn()), PopulateOptions(batch_size=16, rejects=rejects)
        )
        changed = [change.record for change in store.changes(before) or ()]
        texts = [record.text for record in store.get(changed)]
    reasons = rejects.read_text().splitlines() if rejects.exists() else []
    rejects.unlink(missing_ok=True)
    return {
        "stored": result.added + result.updated, "unchanged": result.unchanged, "rejected": result.rejected,
        "texts": [json.dumps(text) for text in texts], "reasons": [json.loads(line) for line in reasons],
    }  # fmt: skip


def _compare(made: list[tuple[str, bytes]], result: dict[str, Any]) -> list[str]:
    """What was stored against what the lines hold; by the standard library where a line was spoilt."""
    texts = {json.loads(text) for text in result["texts"]}
    held = set()
    problems = []
    for kind, line in made:
        if kind == "good":
            held.add(json.loads(line)["text"])
        elif kind == "any":
            held.add(_text_of(line))
    problems += [f"stored, and in no line: {text[:80]!r}" for text in texts - held][:3]
    problems += ["a line that is no record was stored"] if any("BAD" in text for text in texts) else []
    taken = result["stored"] + result["unchanged"]
    bad, good = (sum(each == kind for each, _ in made) for kind in ("bad", "good"))
    if result["rejected"] < bad or taken < good:
        problems.append(f"{taken} taken where {good} are good, {result['rejected']} refused where {bad} are bad")
    if len(result["reasons"]) != result["rejected"] or not all(each.get("reason") for each in result["reasons"]):
        problems.append(f"{len(result['reasons'])} reasons for {result['rejected']} refused lines")
    return problems


def _text_of(line: bytes) -> object:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value.get("text") if isinstance(value, dict) else None


def _by_command(jobs: Launcher, content: bytes, ending: str, where: str, findings: Findings) -> int:
    path = jobs.scratch / f"lines{ending}"
    path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    store = jobs.scratch / "by-command"
    command = ["memory", "populate", str(path), "--store", str(store), "--rejects", str(jobs.scratch / "rejects")]
    outcome = jobs.run("command lines", {"commands": [command], "folder": str(jobs.scratch)})
    if outcome.result is None:
        findings.fail(where, [f"as {ending}: {outcome.error}"])
    else:
        ran = outcome.result[0]
        if ran["code"] not in (0, REJECTED) or BUG in ran["output"]:
            findings.fail(where, [f"as {ending}: exit code {ran['code']}: {ran['output'][-300:]!r}"])
    return 1
