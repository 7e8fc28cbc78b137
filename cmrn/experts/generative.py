"""The generative expert's inner function."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GenerativeUnit"]


class GenerativeUnit(nn.Module):
    """SiLU(a) · z with a latent z ~ N(b, σ²): sampled in training, its mean b in evaluation.

    σ is learned for each feature. The second result is KL(N(b, σ²) ‖ N(0, 1)) in nats a feature, the term that keeps
    the latent near a unit normal (Kingma & Welling 2013, appendix B); it carries gradient.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.full((hidden,), -2.0))

    def forward(self, ab_ME: Tensor) -> tuple[Tensor, Tensor]:
        """(M,2F) to (M,F), and the divergence of each row, (M,)."""
        a, mean = ab_ME.chunk(2, -1)
        sigma = self.log_sigma.exp()
        z = mean + sigma.to(mean.dtype) * torch.randn_like(mean) if self.training else mean
        wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
        divergence = 0.5 * (wide.square() + sigma.square() - 1.0) - self.log_sigma
        return F.silu(a) * z, divergence.mean(-1)
