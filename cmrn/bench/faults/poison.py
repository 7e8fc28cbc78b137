"""Records planted in a large memory (G11): a source has its share of the hits and no more; deleted, no byte stays."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.launcher import launcher
from cmrn.bench.faults.made import DIM, SOURCES, fingerprint, make_entry, to_record, vector
from cmrn.bench.faults.workload import open_index
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.memory.entry import NewRecord
from cmrn.memory.store import MemoryStore

Floats = NDArray[np.float32]

__all__ = ["plant", "poison", "uproot"]

ROUNDS = 10_000
PLANTED = 10
HITS, SHARE = 10, 2
"""Hits of a search, and how many of them one source may have."""
SOURCE = "planted-elsewhere"


def poison(options: StoreOptions, progress: Progress) -> Findings:
    """Plant 10 records among `rounds`, search with shares, delete their source, compact, and look for their bytes."""
    records = options.rounds or ROUNDS
    findings = Findings()
    with launcher(options.package) as jobs:
        store = jobs.scratch / "store"
        arguments = {"folder": str(store), "seed": options.seed, "indexed": options.indexed}
        planted = jobs.run("plant", {**arguments, "records": records})
        findings.fail("planting", [planted.error] if planted.error else [])
        progress(f"{PLANTED} planted among {records:,}")
        uprooted = jobs.run("uproot", arguments)
        found_after = [uprooted.error] if uprooted.result is None else uprooted.result["problems"]
        findings.fail("deleting the source", found_after)
        progress("deleted and compacted")
        left = [f"{what} in {path.name}" for what, path in _bytes_left(store, options.seed)]
        findings.fail("after compact", left)
        counted = planted.result or {"found": 0, "alone": 0, "over": 0}
    findings.count("planted records that a search found before", counted["found"])
    findings.count(f"of the {HITS} hits for what they aim at, planted", counted["alone"])
    findings.count(f"searches where a source has more than its share of {SHARE}", counted["over"], limit=0)
    findings.count("retrievable after the deletion", len(found_after), limit=0)
    findings.count("texts or vectors left on disk after compact", len(left), limit=0)
    return findings


def plant(events: Events, folder: str, seed: int, records: int, indexed: bool) -> dict[str, Any]:
    """A store of so many records with the planted ones in between, an index, and a few changes after its snapshot."""
    draw = random.Random(seed)
    entries = [make_entry(draw, number) for number in range(records)]
    made = [to_record(entry) for entry in entries]
    for one in _planted(seed):
        made.insert(draw.randrange(len(made)), one)
    with MemoryStore.create(Path(folder), fingerprint(DIM)) as store:
        for start in range(0, len(made), 1000):
            store.add(made[start : start + 1000])
        # Edited ones leave their first text in free pages, in the log, and in snapshots.
        texts = [f"{one.text} again" for one in _planted(seed)[:2]]
        again = [NewRecord(text, vector(text), id=text, source=SOURCE) for text in texts]
        edited = store.add(again)
        for record in edited.records:
            store.edit(record, text=f"planted anew {seed} {record}", vector=vector(f"planted anew {seed} {record}"))
        if not indexed:
            return {"found": len(_planted(seed)), "alone": 0, "over": 0}
        index = open_index(store)
        index.snapshot()
        hits = index.search(np.stack([_near(one.text, seed) for one in _planted(seed)]), 1)
        return {"found": sum(hit[0].record.source == SOURCE for hit in hits), **_shares(index, seed)}


def uproot(events: Events, folder: str, seed: int, indexed: bool) -> dict[str, Any]:
    """Delete the source, look for what it held in every way there is, and compact."""
    problems: list[str] = []
    aims = np.stack([_aim(seed), *(_near(one.text, seed) for one in _planted(seed))])
    with MemoryStore.open(Path(folder), write=True, warn=problems.append) as store:
        index = open_index(store) if indexed else None
        gone = store.delete_source(SOURCE)
        if gone < PLANTED:
            problems.append(f"{gone} deleted of {PLANTED}")
        if index is not None:
            problems += _still_found(index, aims)
        problems += [
            f"planted {place} is there under its id" for place in range(PLANTED) if store.find(f"planted {place}")
        ]
        problems += [f"record {one.record} is still read" for block, _, _ in store.scan() for one in
                     store.get([int(record) for record in block]) if one.source == SOURCE]  # fmt: skip
        store.compact()
        if index is not None:
            problems += _still_found(index, aims)
    if indexed:
        with MemoryStore.open(Path(folder)) as store:
            problems += _still_found(open_index(store), aims)
    return {"problems": problems}


def _shares(index: Any, seed: int) -> dict[str, int]:
    """How many hits for the planted records' aim are theirs, and how often a share of 2 is exceeded or not filled."""
    aims = np.stack([_aim(seed), *(vector(f"question {seed} {number}") for number in range(50))])
    alone = sum(hit.record.source == SOURCE for hit in index.search(aims[:1], HITS)[0])
    over = 0
    for hits in index.search(aims, HITS, per_source=SHARE):
        counts = Counter(hit.record.source for hit in hits)
        over += max(counts.values()) > SHARE or len(hits) < min(HITS, SHARE * (len(SOURCES) + 1))
    return {"alone": alone, "over": over}


def _aim(seed: int) -> Floats:
    """The question that the planted records are to answer."""
    return vector(f"aim {seed}")


def _planted(seed: int) -> list[NewRecord]:
    """Texts that nothing else in the store resembles, all of them near one question."""
    texts = [f"poisonous claim {seed}-{place}: the moon is made of {place} cheeses" for place in range(PLANTED)]
    return [NewRecord(text, _near(text, seed), id=f"planted {place}", source=SOURCE,
                      meta={"mark": f"secret-{seed}-{place}"}) for place, text in enumerate(texts)]  # fmt: skip


def _near(text: str, seed: int) -> Floats:
    """A unit vector of this text alone, near what the planted records aim at."""
    mixed = _aim(seed) + np.float32(0.5) * vector(text)
    near: Floats = mixed / np.linalg.norm(mixed)
    return near


def _still_found(index: Any, aims_QD: Floats) -> list[str]:
    hits = index.search(aims_QD, HITS)
    return [f"a search finds {hit.record.text[:60]}" for row in hits for hit in row if hit.record.source == SOURCE]


def _bytes_left(store: Path, seed: int) -> list[tuple[str, Path]]:
    """What of the planted records can still be read in any file of the folder."""
    traces = {"the source": SOURCE.encode(), "an edited text": f"planted anew {seed}".encode()}
    for place, one in enumerate(_planted(seed)):
        traces[f"text {place}"] = one.text[:24].encode()
        traces[f"mark {place}"] = f"secret-{seed}-{place}".encode()
        traces[f"vector {place}"] = _near(one.text, seed)[:4].tobytes()
    contents = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return [(what, path) for path, data in contents.items() for what, trace in traces.items() if trace in data]
