"""Kernels made ready before they are launched, many at a time: a first step waits for the slowest, not for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime._async_compile import AsyncCompileMode, active_mode
from triton.runtime.jit import JITFunction

__all__ = ["only_compiled"]

MOST_WORKERS = 16


@contextmanager
def only_compiled() -> Iterator[None]:
    """Within it a Triton kernel that is called is compiled in the background, and not launched.

    So nothing that it would have written is there: for passes whose results nobody reads, or uses as an index. On
    leaving, all kernels that were called are ready to be launched on this device. Not for two threads at once.
    """
    launch, device = JITFunction.run, torch.cuda.current_device()
    with ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1)) as pool:
        mode = AsyncCompileMode(pool)

        def compile_only(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            # A backward pass runs in threads of autograd's own, where a mode entered here is not seen.
            before = active_mode.set(mode)
            try:
                return launch(self, *arguments, grid=grid, warmup=True, **options)
            finally:
                active_mode.reset(before)

        def load(kernel: Any) -> None:
            torch.cuda.set_device(device)
            assert kernel.run is not None

        JITFunction.run = compile_only
        try:
            yield
        finally:
            JITFunction.run = launch
        kernels = [future.result() for future in mode.future_kernels.values()]
        list(pool.map(load, kernels))
