"""Gated recurrence at several timescales, in place of attention over everything."""

from cmrn.temporal.abstraction import TemporalAbstraction
from cmrn.temporal.events import EventChainTracker
from cmrn.temporal.layer import TemporalLayer

__all__ = ["EventChainTracker", "TemporalAbstraction", "TemporalLayer"]
