"""The records of the data: a document, a corpus, and what became of what was read."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Corpus", "CorpusReport", "Document", "DomainReport"]


@dataclass(frozen=True)
class Document:
    """One text: its domain if it has one, where it came from, and which of the recipe's sources (from 0) read it.

    answers: (start, end) in characters of what alone is to be learnt, in order; where there are none, everything is.
    """

    text: str
    domain: str | None = None
    source: str = ""
    source_index: int = 0
    answers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class DomainReport:
    """What became of one domain's documents: duplicates were removed, withheld ones overlap what they would test."""

    domain: str | None
    read_documents: int
    read_bytes: int
    duplicates: int
    withheld: int
    train_documents: int
    train_bytes: int
    validation_documents: int
    validation_bytes: int


@dataclass(frozen=True)
class CorpusReport:
    """One row a domain, in the order of first mention."""

    domains: tuple[DomainReport, ...]

    @property
    def duplicates(self) -> int:
        """Documents removed as near-duplicates."""
        return sum(row.duplicates for row in self.domains)

    @property
    def unvalidated(self) -> tuple[str | None, ...]:
        """Domains of which nothing could be held out."""
        return tuple(row.domain for row in self.domains if not row.validation_documents)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, documents held out, the report, and the mixture weight of each source."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    report: CorpusReport
    weights: tuple[float, ...]
