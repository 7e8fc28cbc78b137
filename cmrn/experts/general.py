"""The general expert's inner function."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GeneralProcessor"]


class GeneralProcessor(nn.Module):
    """SwiGLU: SiLU(a) · b of the two halves (Shazeer 2020, "GLU Variants Improve Transformer", eq. 6)."""

    def forward(self, ab_ME: Tensor) -> tuple[Tensor, None]:
        """(M,2F) to (M,F)."""
        a, b = ab_ME.chunk(2, -1)
        return F.silu(a) * b, None
