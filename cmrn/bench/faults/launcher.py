"""Jobs in processes of their own, started from one that has already imported what they need, and killed at will."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmrn.bench.faults.shim import Arming, compile_shim
from cmrn.errors import CMRNError

__all__ = ["Job", "Launcher", "Outcome", "launcher"]


PRELOAD = ("cmrn.memory.index", "faiss")
"""Modules that nearly every job needs."""


@dataclass(frozen=True)
class Job:
    """A running job: its process, and the file that its events are appended to, a JSON document a line."""

    pid: int
    events: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended. code: its exit code, None where a signal ended it. signal: that signal, 0 where none did.

    events: what it wrote, in order; a line that was cut off is left out. result: what it returned; None without one.
    error: what went wrong, empty where nothing did.
    """

    code: int | None
    signal: int
    events: tuple[dict[str, Any], ...]

    @property
    def result(self) -> Any:
        """What the job returned."""
        return next((event["result"] for event in self.events if "result" in event), None)

    @property
    def error(self) -> str:
        """What the job failed with, in words; empty where it did not."""
        said = next((str(event["error"]) for event in self.events if "error" in event), "")
        if self.signal:
            return f"ended by {signal.Signals(self.signal).name}"
        return said or (f"exit code {self.code}" if self.code else "")


class Launcher:
    """Starts jobs of `cmrn.bench.faults.jobs` by forking a process that has imported them.

    scratch: holds the events. shimmed: whether jobs can be armed, which needs a C compiler.
    """

    def __init__(self, scratch: Path, *, package: Path | None = None, preload: Sequence[str] = ()) -> None:
        self.scratch = scratch
        shim = compile_shim(scratch)
        self.shimmed = shim is not None
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        if package is not None:
            environment["PYTHONPATH"] = str(package)
        self._started = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cmrn.bench.faults.server", *PRELOAD, *preload],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch,
        )  # fmt: skip

    def start(self, job: str, arguments: Mapping[str, Any], arming: Arming | None = None) -> Job:
        """Begin a job."""
        self._started += 1
        events = self.scratch / f"events-{self._started}"
        request = {"job": job, "arguments": dict(arguments), "events": str(events)}
        if arming is not None:
            request["arming"] = asdict(arming)
        return Job(self._ask(request)["pid"], events)

    def wait(self, job: Job, limit: float = 60.0) -> Outcome:
        """Wait for a job to end; after `limit` seconds it is killed, which its outcome shows as SIGALRM."""
        status = self._ask({"wait": job.pid, "limit": limit})["status"]
        lines = job.events.read_bytes().split(b"\n")[:-1] if job.events.exists() else []
        job.events.unlink(missing_ok=True)
        events = tuple(json.loads(line) for line in lines)
        if status is None:
            return Outcome(None, signal.SIGALRM, events)
        if os.WIFSIGNALED(status):
            return Outcome(None, os.WTERMSIG(status), events)
        return Outcome(os.WEXITSTATUS(status), 0, events)

    def run(self, job: str, arguments: Mapping[str, Any], arming: Arming | None = None, limit: float = 60.0) -> Outcome:
        """A job from beginning to end."""
        return self.wait(self.start(job, arguments, arming), limit)

    def run_killed(self, job: str, arguments: Mapping[str, Any], after: float) -> Outcome:
        """A job that is killed with -9 after so many seconds, unless it has ended before."""
        running = self.start(job, arguments)
        time.sleep(after)
        # Not yet waited for, its number cannot have become another process's.
        os.kill(running.pid, signal.SIGKILL)
        return self.wait(running)

    def close(self) -> None:
        """End the process that jobs are started from."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise CMRNError("the process that starts the jobs has ended", where="cmrn.bench.faults.server")
        found: dict[str, Any] = json.loads(answer)
        return found


@contextlib.contextmanager
def launcher(package: Path | None = None, preload: Sequence[str] = ()) -> Iterator[Launcher]:
    """A launcher with a scratch folder of its own, both gone afterwards.

    package: the folder to import cmrn from instead. preload: modules to import before the first job.
    """
    with tempfile.TemporaryDirectory(prefix="cmrn-faults-") as scratch:
        made = Launcher(Path(scratch), package=package, preload=preload)
        try:
            yield made
        finally:
            made.close()
