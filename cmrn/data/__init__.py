"""Text in: sources, near-duplicate removal, the held-out split, and packing into rows of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmrn.data.corpus import check_domains, load_corpus, sample_texts
    from cmrn.data.documents import Corpus, CorpusReport, Document, DomainReport
    from cmrn.data.evaluation import EvaluationBatch, EvaluationSet
    from cmrn.data.lanes import LaneDataset
    from cmrn.data.packing import Batch, Cursor, PackedDataset

__all__ = [
    "Batch",
    "Corpus",
    "CorpusReport",
    "Cursor",
    "Document",
    "DomainReport",
    "EvaluationBatch",
    "EvaluationSet",
    "LaneDataset",
    "PackedDataset",
    "check_domains",
    "load_corpus",
    "sample_texts",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that reading the package's name loads neither torch nor numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmrn.data import corpus, documents, evaluation, lanes, packing

    modules = (documents, corpus, packing, lanes, evaluation)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
