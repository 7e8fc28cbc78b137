"""Premises and questions in, answers out, with proofs that can be checked step by step."""

from cmrn.reasoning.reason import Reasoned, examine, reason

__all__ = ["Reasoned", "examine", "reason"]
