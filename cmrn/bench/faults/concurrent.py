"""Several writers and readers at once (G6): only code 5 is ever refused, nothing is lost, and readers do not wait."""

from __future__ import annotations

import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.launcher import Outcome, launcher
from cmrn.bench.faults.made import make_entry, to_record, vector
from cmrn.bench.faults.workload import contents, open_index
from cmrn.bench.report import Progress, Row
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.errors import LockedError
from cmrn.memory.store import MemoryStore

__all__ = ["concurrent", "keep_reading", "keep_writing"]

SECONDS = 300
WRITERS, READERS = 4, 8
BATCH = 20
SLOWEST = 100.0
"""Milliseconds, at most, of 99 in 100 reads."""
REFUSAL = 1.0
"""Seconds, at most, until a second writer is told that there is a first."""


def concurrent(options: StoreOptions, progress: Progress) -> Findings:
    """Let 4 writers and 8 readers at one store; `rounds` is in seconds."""
    seconds = float(options.rounds or SECONDS)
    findings = Findings()
    with launcher(options.package) as jobs:
        store = jobs.scratch / "store"
        made = jobs.run("follow script", {"folder": str(store), "seed": 1, "steps": ["add"] * 3, "indexed": False})
        findings.fail("making the store", [made.error] if made.error else [])
        writing = [
            jobs.start("keep writing", {"folder": str(store), "seed": 10 + number, "seconds": seconds})
            for number in range(WRITERS)
        ]
        reading = [
            jobs.start("keep reading", {"folder": str(store), "seconds": seconds, "indexed": options.indexed})
            for _ in range(READERS)
        ]
        progress(f"{WRITERS} writers and {READERS} readers for {seconds:g} s")
        writers = [jobs.wait(job, seconds + 60) for job in writing]
        readers = [jobs.wait(job, seconds + 60) for job in reading]
        seen = jobs.run("inspect", {"folder": str(store), "indexed": options.indexed}, limit=300)
    for kind, outcomes in (("writer", writers), ("reader", readers)):
        for number, outcome in enumerate(outcomes, 1):
            findings.fail(f"{kind} {number}", [outcome.error] if outcome.result is None else outcome.result["problems"])
    _compare(made, writers, seen, findings)
    _figures(writers, readers, findings, seconds)
    return findings


def keep_writing(events: Events, folder: str, seed: int, seconds: float) -> dict[str, Any]:
    """Open, add a few batches and close, over and over; every batch is told once it is acknowledged."""
    draw, place = random.Random(seed), Path(folder)
    number, refused = seed * 1_000_000, 0
    problems: list[str] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.monotonic()
        try:
            store = MemoryStore.open(place, write=True, wait=draw.choice((0.0, 0.0, 0.5)))
        except LockedError as error:
            refused += 1
            if "process " not in str(error):
                problems.append(f"a refusal that does not say whose the lock is: {error}")
            if time.monotonic() - started > REFUSAL + 0.5:
                problems.append(f"refused after {time.monotonic() - started:.2f} s")
            time.sleep(draw.uniform(0.0, 0.05))
            continue
        with store:
            alone = _claim(place)
            if not alone:
                problems.append("two writers at once")
            for _ in range(draw.randint(1, 5)):
                number += BATCH
                entries = [make_entry(draw, number + each) for each in range(BATCH)]
                for entry in entries:
                    entry[4] = {"batch": number}
                records = store.add([to_record(entry) for entry in entries]).records
                events.write({"records": records, "entries": entries})
            if alone:
                _marker(place).unlink()
        time.sleep(draw.uniform(0.0, 0.02))
    return {"refused": refused, "problems": problems[:5]}


def keep_reading(events: Events, folder: str, seconds: float, indexed: bool) -> dict[str, Any]:
    """Read and search without end, and look at all that is read; the times of each in milliseconds."""
    draw = random.Random(os.getpid())
    problems: list[str] = []
    times: list[float] = []
    searches: list[float] = []
    deadline = time.monotonic() + seconds
    with MemoryStore.open(Path(folder), warn=problems.append) as store:
        index = open_index(store, problems.append) if indexed else None
        while time.monotonic() < deadline:
            start = draw.randint(0, max(1, store.stats().records - 1))
            began = time.perf_counter()
            records = store.get(range(start, start + 3 * BATCH))
            times.append(1e3 * (time.perf_counter() - began))
            problems += [f"record {one.record} is torn" for one in records if not _whole(one)]
            if index is not None and records:
                text = draw.choice(records).text
                began = time.perf_counter()
                index.refresh()
                hits = index.search(vector(text)[None], 1)[0]
                searches.append(1e3 * (time.perf_counter() - began))
                if [hit.record.text for hit in hits] != [text]:
                    problems.append(f"a search for {text[:40]} finds {[hit.record.text[:40] for hit in hits]}")
            time.sleep(0.005)
        problems += _half_batches(store)
    return {"times": times, "searches": searches, "problems": problems[:5]}


def _whole(record: Any) -> bool:
    return record.text.partition(" ")[0].isdigit() and isinstance(record.meta, dict)


def _half_batches(store: MemoryStore) -> list[str]:
    """Batches of which a reader sees a part."""
    sizes: dict[object, int] = {}
    for entry in contents(store).values():
        meta = entry[4]
        if isinstance(meta, dict) and "batch" in meta:
            sizes[meta["batch"]] = sizes.get(meta["batch"], 0) + 1
    return [f"{size} of the {BATCH} records of batch {batch}" for batch, size in sizes.items() if size != BATCH]


def _marker(folder: Path) -> Path:
    return folder.with_name("writing")


def _claim(folder: Path) -> bool:
    """Whether no other writer is between opening and closing."""
    try:
        os.close(os.open(_marker(folder), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _compare(made: Outcome, writers: list[Outcome], seen: Outcome, findings: Findings) -> None:
    """The store holds every batch of every writer, and nothing else."""
    if seen.result is None:
        findings.fail("afterwards", [seen.error])
        return
    findings.fail("afterwards", [*seen.result["verify"], *seen.result["problems"]])
    held = {int(record): entry for record, entry in seen.result["records"].items()}
    first = sum(len(event["begin"]["entries"]) for event in made.events if event.get("begin", {}).get("op") == "add")
    told: dict[int, Any] = {}
    for outcome in writers:
        for event in outcome.events:
            if "records" in event:
                told.update(zip(event["records"], event["entries"], strict=True))
    lost = [record for record, entry in told.items() if held.get(record) != entry]
    if lost:
        findings.fail("afterwards", [f"{len(lost)} acknowledged records are lost or changed: {lost[:5]}"])
    if len(held) > len(told) + first:
        findings.fail("afterwards", [f"{len(held) - len(told) - first} records that nobody added"])
    findings.count("records added", len(told))


def _figures(writers: list[Outcome], readers: list[Outcome], findings: Findings, seconds: float) -> None:
    errors = len(findings.failures)
    refused = sum(outcome.result["refused"] for outcome in writers if outcome.result)
    findings.count("writers refused with 5", refused)
    for name, field in (("read of 60 records", "times"), ("search", "searches")):
        times = [each for outcome in readers if outcome.result for each in outcome.result[field]]
        if not times:
            continue
        slow = float(np.percentile(times, 99))
        findings.rows.append(Row(f"{name}, median", statistics.median(times), "ms", detail={"reads": len(times)}))
        # Over in a moment, a test says little of how long one in a hundred takes.
        findings.count(f"{name}, 99 of 100 within", slow, "ms", SLOWEST if seconds >= 60 else None)
    findings.count("errors but 5, records lost or torn", errors, limit=0)
