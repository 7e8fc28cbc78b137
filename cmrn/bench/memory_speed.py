"""Reading speed and device memory along one very long text."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cmrn.bench.memory_figures import Figure
from cmrn.bench.memory_models import Subject
from cmrn.bench.memory_text import Hay
from cmrn.model import CMRN
from cmrn.training.device import autocast

__all__ = ["speed_figures"]

PIECE = {"cuda": 8192, "cpu": 1024}
TIMED = {"cuda": 262_144, "cpu": 8192}
"""Tokens before each place whose time counts."""


@torch.inference_mode()
def speed_figures(subject: Subject, hay: Hay, places: Sequence[int], device: torch.device) -> Iterator[Figure]:
    """Tokens/s of the tokens before each place of one text, and the most memory in use while they were read.

    On a GPU that is what torch has allocated on it, on a CPU the process's largest size so far.
    """
    model = subject.model
    assert isinstance(model, CMRN)
    model.eval()
    states: Any = None
    options = {"update_memory": subject.memory, "use_memory": subject.memory}
    if subject.memory:
        model.reset_memory()
    piece, read = PIECE[device.type], 0
    warm = min(4 * piece, min(places) // 2)
    for place in sorted(places):
        begin = max(read, warm, place - TIMED[device.type])
        started, from_token = time.monotonic(), read
        while read < place:
            if from_token < begin <= read:
                _wait(device)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                started, from_token = time.monotonic(), read
            ids_1T = torch.from_numpy(hay.take(read, min(piece, place - read))[None]).to(device)
            with autocast(device, subject.precision):
                states = model(ids_1T, states=states, **options).states
            read += ids_1T.shape[1]
        _wait(device)
        rate = (read - from_token) / (time.monotonic() - started)
        held = _bytes(device) / 2**30
        name, unit = f"reading {place:,} tokens", "tokens/s"
        yield Figure("speed", name, subject.name, subject.key, rate, unit, detail={"timed": read - from_token})
        name = f"memory in use at {place:,} tokens"
        yield Figure("speed", name, subject.name, subject.key, held, "GiB", "smaller", {"entries": _entries(model)})


def _entries(model: CMRN) -> int:
    return 0 if model.episodic is None else len(model.episodic)


def _bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
