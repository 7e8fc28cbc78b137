"""The pattern expert's inner function."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PatternMatcher"]


class PatternMatcher(nn.Module):
    """ReLU(a)² · sigmoid(b): a detector that stays silent below its threshold and a gate on what it reports.

    Its input is the stream's causal n-gram features rather than the token alone (see `ExpertPool`). Squared ReLU after
    So et al. 2021, "Primer", section 4.1. Differs: the gate.
    """

    def forward(self, ab_ME: Tensor) -> tuple[Tensor, None]:
        """(M,2F) to (M,F)."""
        a, b = ab_ME.chunk(2, -1)
        return F.relu(a).square() * b.sigmoid(), None
