"""Using a trained model on text: generation, traces of routing, and what experts do over a set of texts."""

from cmrn.inference.analysis import Analysis, DomainUse, ExpertUse, Passage, TokenShare, analyse
from cmrn.inference.compare import Comparison, ExpertShift, Saturation, check_comparable, compare_traces, saturation
from cmrn.inference.generate import Generation, generate_text
from cmrn.inference.trace import ExpertTotal, ExpertWeight, TokenTrace, Trace, trace_text
from cmrn.inference.trace_memory import EntryShare
from cmrn.unseen import UnseenScore

__all__ = [
    "Analysis",
    "Comparison",
    "DomainUse",
    "EntryShare",
    "ExpertShift",
    "ExpertTotal",
    "ExpertUse",
    "ExpertWeight",
    "Generation",
    "Passage",
    "Saturation",
    "TokenShare",
    "TokenTrace",
    "Trace",
    "UnseenScore",
    "analyse",
    "check_comparable",
    "compare_traces",
    "generate_text",
    "saturation",
    "trace_text",
]
