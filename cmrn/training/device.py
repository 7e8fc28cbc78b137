"""What a device can do, and how it is prepared for training: precision, determinism, memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from cmrn.errors import UsageError
from cmrn.layers import computes_bfloat16

__all__ = ["Precision", "autocast", "deterministic", "keep_freed_memory", "resolve_device", "resolve_precision"]

Precision = Literal["float32", "bfloat16"]


def resolve_device(name: str | None) -> torch.device:
    """The device of that name; without one, CUDA where there is any, else the CPU.

    Raises:
        UsageError: no device of that name, or none on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"no device {name!r} on this machine", where="device", hint="cmrn doctor") from error
    if device.type == "meta":
        raise UsageError("the device 'meta' computes nothing", where="device")
    return device


def resolve_precision(precision: Literal["auto", "float32", "bfloat16"], device: torch.device) -> Precision:
    """The type of the matrix products; `auto` takes bfloat16 where the device has instructions for it.

    Decided from what the device states of itself, never from a timing, so the same machine always decides alike.

    Raises:
        UsageError: bfloat16 is asked of a CUDA device that lacks it.
    """
    capable = computes_bfloat16(device)
    if precision == "bfloat16" and device.type == "cuda" and not capable:
        raise UsageError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16",
            where="training.precision",
            hint="training.precision=float32",
        )
    if precision == "auto":
        return "bfloat16" if capable else "float32"
    return precision


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Within it, matrix products run in `precision`; parameters and losses stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, sums are made in a fixed order, so that the same steps give the same bits; elsewhere no change."""
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory guards against reading it; it changes no result and costs a write of every buffer.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def keep_freed_memory(device: torch.device) -> bool:
    """Ask glibc to keep freed memory for the next step instead of returning it to the system; True if it agreed.

    By default every buffer above 32 MiB is mapped anew and its pages zeroed on first touch, each step again. The price
    is that the process keeps its peak. Only training on a CPU asks for it; where libc is another nothing happens.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold, mmap_limit = -1, -3, -4
    mallopt = ctypes.CDLL(None).mallopt
    agreed = [mallopt(mmap_limit, 0), mallopt(mmap_threshold, 32 << 20), mallopt(trim_threshold, 2**31 - 1)]
    return all(agreed)
