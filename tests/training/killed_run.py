"""Trains in RUN, killed with -9 at each of the given moments and resumed each time, then to the end.

python -m tests.training.killed_run RUN carry|fresh MOMENT...   a moment is call:N (the N-th durable call) or seconds:S
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.small_run import train

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def die_at_call(number: int) -> None:
    left = [number]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed(run: Path, moment: str, *, carry: bool) -> bool:
    """Whether a process that trains in `run` was killed at `moment`, before it came to its end."""
    kind, _, number = moment.partition(":")
    child = os.fork()
    if child == 0:
        if kind == "call":
            die_at_call(int(number))
        train(run, resume=True, carry_states=carry)
        os._exit(0)
    if kind == "seconds":
        time.sleep(float(number))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"{moment}: the training failed")
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, carries = Path(sys.argv[1]), sys.argv[2] == "carry"
    print(sum([killed(folder, moment, carry=carries) for moment in sys.argv[3:]]))
    train(folder, resume=True, carry_states=carries)
