"""Runs spread over processes and devices, results collected as they come."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.report import Progress
from cmrn.bench.runs import Result, Results, RunSpec

__all__ = ["Machines", "launch"]


@dataclass(frozen=True)
class Machines:
    """Where runs go. gpus: how many of the visible GPUs, 0 for the CPU. per_gpu: processes on each at once.

    threads: of each process. only: the index of the one GPU to use.
    """

    gpus: int = 0
    per_gpu: int = 1
    threads: int = 1
    only: str | None = None

    @property
    def slots(self) -> tuple[str | None, ...]:
        """For each process at a time, the GPU it sees, or None."""
        if not self.gpus:
            return (None,) * self.per_gpu
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        last = max(self.gpus, int(self.only or 0) + 1)
        names = visible.split(",") if visible else [str(index) for index in range(last)]
        chosen = names[: self.gpus] if self.only is None else names[int(self.only) : int(self.only) + 1]
        return tuple(chosen) * self.per_gpu


def launch(
    specs: Sequence[RunSpec], results: Results, machines: Machines, tokens: Path | None, progress: Progress
) -> list[RunSpec]:
    """Do the runs that have no result yet; return those that failed. What each gives is kept as soon as it ends.

    A process takes runs of one structure until none is left, so that it compiles once.
    """
    waiting = results.missing(specs)
    if not waiting:
        return []
    groups = _share_out(waiting, len(machines.slots))
    tasks: queue.SimpleQueue[list[RunSpec]] = queue.SimpleQueue()
    for group in groups:
        tasks.put(group)
    done = _Count(len(waiting), progress)
    lock = threading.Lock()
    processes: list[subprocess.Popen[str]] = []

    def keep(result: Result) -> None:
        with lock:
            results.add(result)
            done.add(result)

    def serve(slot: str | None) -> None:
        while True:
            try:
                group = tasks.get_nowait()
            except queue.Empty:
                return
            process = _start(slot, machines.threads, tokens)
            processes.append(process)
            _follow(process, group, keep, progress)

    threads = [threading.Thread(target=serve, args=(slot,), daemon=True) for slot in machines.slots]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
    return results.missing(specs)


def _share_out(specs: Sequence[RunSpec], slots: int) -> list[list[RunSpec]]:
    """Runs of one structure together, the large groups cut so that no process is left without work."""
    largest = max(1, -(-len(specs) // slots))
    by_structure: dict[str, list[RunSpec]] = {}
    for spec in specs:
        by_structure.setdefault(spec.structure, []).append(spec)
    groups = [
        group[start : start + largest] for group in by_structure.values() for start in range(0, len(group), largest)
    ]
    return sorted(groups, key=len, reverse=True)


class _Count:
    """How many runs are done, and how long the rest will take."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.progress, self.done, self.started = total, progress, 0, time.monotonic()

    def add(self, result: Result) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        self.progress(
            f"{self.done} of {self.total}: {result.variant}, seed {result.seed}, rate {result.rate:g}: "
            f"{result.figures['mean']:.4f}, {result.tokens_per_s:,.0f} tokens/s; about {left / 60:.0f} min left"
        )


def _start(slot: str | None, threads: int, tokens: Path | None) -> subprocess.Popen[str]:
    """A worker that sees one GPU, or none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    command = [sys.executable, "-m", "cmrn.bench.worker", "--device", "cpu" if slot is None else "cuda",
               "--threads", str(threads), *(["--tokens", str(tokens)] if tokens else [])]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _follow(
    process: subprocess.Popen[str], group: Sequence[RunSpec], keep: Callable[[Result], None], progress: Progress
) -> None:
    """Give a worker its runs and keep its results until it ends; what it writes on stderr is passed on."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    listener = threading.Thread(target=_pass_on, args=(process.stderr, progress), daemon=True)
    listener.start()
    with process:
        process.stdin.write("".join(spec.to_json() + "\n" for spec in group))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                keep(Result.from_json(line))
        listener.join()


def _pass_on(lines: Iterable[str], progress: Progress) -> None:
    for line in lines:
        progress(line.rstrip())
