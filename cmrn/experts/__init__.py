"""Named experts: one weight shape, four inner functions, each a map of one token."""

from cmrn.experts.module import ExpertModule
from cmrn.experts.pool import ExpertPool

__all__ = ["ExpertModule", "ExpertPool"]
