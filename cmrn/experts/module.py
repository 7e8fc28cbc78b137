"""One expert in one block: project up, apply its type's inner function, project down."""

from __future__ import annotations

from torch import Tensor, nn

from cmrn.config import ExpertType
from cmrn.experts.general import GeneralProcessor
from cmrn.experts.generative import GenerativeUnit
from cmrn.experts.pattern import PatternMatcher
from cmrn.experts.symbolic import SymbolicLogicUnit
from cmrn.layers import Linear

__all__ = ["ExpertModule"]


class ExpertModule(nn.Module):
    """W_down · inner(W_up x), a pointwise map: (M,D) to (M,D) through 2F preactivations and F features.

    All types share the two weights' shapes; only the inner function differs.
    """

    def __init__(self, d_model: int, hidden: int, expert_type: ExpertType = "general") -> None:
        super().__init__()
        self.expert_type = expert_type
        self.up = Linear(d_model, 2 * hidden)
        self.inner = _inner(expert_type, hidden)
        self.down = Linear(hidden, d_model, scale=0.5)

    def forward(self, x_MD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(y_MD, latent divergence_M of a generative expert or None); gradient reaches x and every weight."""
        h_MF, divergence_M = self.inner(self.up(x_MD))
        return self.down(h_MF), divergence_M


def _inner(expert_type: ExpertType, hidden: int) -> nn.Module:
    if expert_type == "general":
        return GeneralProcessor()
    if expert_type == "pattern":
        return PatternMatcher()
    if expert_type == "symbolic":
        return SymbolicLogicUnit(hidden)
    return GenerativeUnit(hidden)
