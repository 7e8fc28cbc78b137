"""How long a call takes: medians of repeats, on a GPU by events with the cache flushed, on a CPU by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Timing", "capture", "time_call", "time_interleaved"]

FLUSHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Timing:
    """Seconds of one call. spread: half the distance between the quartiles; samples: how many repeats."""

    median: float
    spread: float
    samples: int


def summarise(seconds: list[float]) -> Timing:
    """The median and the spread of measured seconds."""
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return Timing(statistics.median(ordered), (ordered[-1 - quarter] - ordered[quarter]) / 2, len(ordered))


def time_call(call: Callable[[], object], device: str, *, repeats: int = 20, warmup: int = 3) -> Timing:
    """How long `call` takes on `device` once warm."""
    return time_interleaved({"": call}, device, repeats=repeats, warmup=warmup)[""]


def time_interleaved(
    calls: dict[str, Callable[[], object]], device: str, *, repeats: int = 20, warmup: int = 3
) -> dict[str, Timing]:
    """How long each call takes, taking turns, so that a machine that slows down slows them all alike."""
    clock = _cuda_seconds if device.startswith("cuda") else _cpu_seconds
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(clock(call))
    return {name: summarise(values) for name, values in seconds.items()}


def capture(call: Callable[[], object], warmup: int = 3) -> Callable[[], None]:
    """`call` as a CUDA graph: replaying it costs no launches from Python.

    A graph knows addresses, not tensors, so what is returned keeps `call`, and whatever that refers to.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(_kept: Callable[[], object] = call) -> None:
        graph.replay()

    return replay


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cuda_seconds(call: Callable[[], object]) -> float:
    """By events; the cache is overwritten first, as a training step would have done."""
    import torch

    torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda").zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
