"""Safeguards taken out of a copy of the package, one at a time: a case that does not notice proves nothing."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cmrn.bench.faults.boundaries import every_call
from cmrn.bench.faults.concurrent import concurrent
from cmrn.bench.faults.corrupt import corrupt
from cmrn.bench.faults.full import full
from cmrn.bench.faults.poison import poison
from cmrn.bench.faults.power import power
from cmrn.bench.report import Progress
from cmrn.bench.store_case import Findings, StoreOptions
from cmrn.errors import GuaranteeError

__all__ = ["MUTATIONS", "Mutation", "mutations", "noticed"]


PACKAGE: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """One safeguard: the file it is in, its words and what they become, and the case that must fail without it."""

    name: str
    file: str
    words: str
    become: str
    case: Callable[[StoreOptions, Progress], Findings]
    rounds: int


MUTATIONS: Final = (
    Mutation(
        name="the sync at each commit",
        file="memory/schema.py",
        words="'FULL' if durability == 'full' else 'NORMAL'",
        become="'OFF'",
        case=power,
        rounds=5,
    ),
    Mutation(
        name="the checksum",
        file="memory/rows.py",
        words="return bool(crc == _checksum(",
        become="return True or bool((",
        case=corrupt,
        rounds=30,
    ),
    Mutation(
        name="the writer's lock",
        file="files.py",
        words="fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        become="pass",
        case=concurrent,
        rounds=2,
    ),
    Mutation(
        name="the sync of folders",
        file="files.py",
        words="os.O_RDONLY)\n    try:\n        os.fsync(descriptor)",
        become="os.O_RDONLY)\n    try:\n        pass",
        case=power,
        rounds=40,
    ),
    Mutation(
        name="the sync before a snapshot",
        file="memory/mirror.py",
        words="self.store.handle.sync()",
        become="pass",
        case=power,
        rounds=60,
    ),
    Mutation(
        name="the hash of a snapshot",
        file="memory/snapshot.py",
        words=' or _digest(parts) != about["blake2b"]',
        become="",
        case=corrupt,
        rounds=150,
    ),
    Mutation(
        name="the look for a log left behind",
        file="memory/folder.py",
        words=".exists():\n        # Closing",
        become=".name == '':\n        # Closing",
        case=every_call,
        rounds=40,
    ),
    Mutation(
        name="the reserve",
        file="memory/folder.py",
        words="(folder / RESERVE).unlink()",
        become="return False",
        case=full,
        rounds=10,
    ),
    Mutation(
        name="the rewriting of the file",
        file="memory/store.py",
        words="return compact(self.handle)",
        become="return 0",
        case=poison,
        rounds=500,
    ),
)


def mutations(options: StoreOptions, progress: Progress) -> Findings:
    """Take each safeguard out and run the case that it is there for, which must fail."""
    findings = Findings()
    for mutation in MUTATIONS:
        if noticed(mutation, options):
            progress(f"without {mutation.name}: noticed")
        else:
            findings.fail(f"without {mutation.name}", [f"{mutation.case.__name__} does not notice"])
    findings.count("safeguards taken out", len(MUTATIONS))
    findings.count("not noticed", len(findings.failures), limit=0)
    return findings


def noticed(mutation: Mutation, options: StoreOptions) -> list[str]:
    """The failures of the mutation's case without its safeguard; none where it did not notice.

    Raises:
        GuaranteeError: the words are not, or not once, in the file, so the mutation says nothing any more.
    """
    with tempfile.TemporaryDirectory(prefix="cmrn-mutated-") as folder:
        package = Path(folder) / "cmrn"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        path = package / mutation.file
        text = path.read_text(encoding="utf-8")
        if text.count(mutation.words) != 1:
            message = f"has not once the words of the mutation {mutation.name!r}"
            raise GuaranteeError(message, where=f"cmrn/{mutation.file}")
        path.write_text(text.replace(mutation.words, mutation.become), encoding="utf-8")
        changed = dataclasses.replace(options, rounds=mutation.rounds, package=Path(folder))
        return mutation.case(changed, lambda text: None).failures
