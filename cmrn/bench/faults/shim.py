"""The shared object that stands between a process and its filesystem (`shim.c`): compiled here, armed in a child."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Arming", "arm", "calls", "compile_shim", "note"]


@dataclass(frozen=True)
class Arming:
    """What is to happen to the calls that change `folder`.

    journal: a file that every call is recorded in. die_at: the call that kills the process; with `torn` a write lets
    half of its bytes through first. fail_at: the one call that fails with EIO. room: the bytes the folder may grow by
    before it is full.
    """

    folder: str
    journal: str | None = None
    die_at: int = 0
    torn: bool = False
    fail_at: int = 0
    room: int = -1


def compile_shim(folder: Path) -> Path | None:
    """The shim as a shared object in `folder`; None where there is no C compiler, or it cannot make one."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    target = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    return target if done.returncode == 0 else None


def arm(arming: Arming) -> None:
    """Begin to count the calls of this process, in which the shim must have been preloaded."""
    journal = -1
    if arming.journal is not None:
        journal = os.open(arming.journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    _shim().fault_arm(
        os.fsencode(arming.folder), journal, ctypes.c_long(arming.die_at), int(arming.torn),
        ctypes.c_long(arming.fail_at), ctypes.c_long(arming.room),
    )  # fmt: skip


def calls() -> int:
    """How many calls have changed the armed folder so far."""
    counter = _shim().fault_calls
    counter.restype = ctypes.c_long
    return int(counter())


def note(text: str) -> None:
    """Write a line between the calls in the journal, such as that something has been acknowledged."""
    _shim().fault_note(text.encode())


def _shim() -> ctypes.CDLL:
    return ctypes.CDLL(None)
