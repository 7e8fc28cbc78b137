"""Using a trained model on text: generation and traces of routing."""

from cmrn.inference.generate import Generation, generate_text
from cmrn.inference.trace import ExpertTotal, ExpertWeight, TokenTrace, Trace, trace_text

__all__ = ["ExpertTotal", "ExpertWeight", "Generation", "TokenTrace", "Trace", "generate_text", "trace_text"]
