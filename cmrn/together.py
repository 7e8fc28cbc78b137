"""Calls that do not need each other, run at once: on a CUDA device what waits for memory fills what computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Together"]

Result = TypeVar("Result")


class Together:
    """Runs one call here and others beside it, each on a stream of its own, and goes on when all are done.

    Those beside have priority, and are launched first. Captured in a CUDA graph they become its branches; on other
    devices calls run one after the other. Streams are kept, as memory that a call allocates belongs to its stream: so
    what leaves a call beside must have been allocated before, and what it reads must live until all are done.
    """

    def __init__(self) -> None:
        self._sides: list[torch.cuda.Stream] = []

    def __call__(self, device: torch.device, call: Callable[[], Result], *beside: Callable[[], object]) -> Result:
        """What `call` returns."""
        if device.type != "cuda":
            for each in beside:
                each()
            return call()
        here = torch.cuda.current_stream(device)
        while len(self._sides) < len(beside):
            self._sides.append(torch.cuda.Stream(device, priority=-1))
        for side, each in zip(self._sides, beside, strict=False):
            side.wait_stream(here)
            with torch.cuda.stream(side):
                each()
        result = call()
        for side in self._sides[: len(beside)]:
            here.wait_stream(side)
        return result
