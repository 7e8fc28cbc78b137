"""The one table of tolerances: how far two computations of the same thing may differ, by type, here and in CI."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch

__all__ = ["TOLERANCES", "Tolerance", "assert_close"]


@dataclass(frozen=True)
class Tolerance:
    """Largest difference allowed: atol + rtol · |expected|."""

    rtol: float
    atol: float


TOLERANCES = MappingProxyType(
    {
        torch.float64: Tolerance(rtol=1e-10, atol=1e-10),
        torch.float32: Tolerance(rtol=1e-4, atol=1e-5),
        torch.bfloat16: Tolerance(rtol=2e-2, atol=1e-2),
    }
)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None) -> None:
    """Fail unless the two agree to the tolerance of `dtype`, by default the type of `actual`; NaN equals nothing."""
    tolerance = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=tolerance.rtol, atol=tolerance.atol)
