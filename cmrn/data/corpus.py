"""From the sources a recipe names to documents to train on and documents held out."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from cmrn.config import DataConfig
from cmrn.data.deduplicate import Passages
from cmrn.data.documents import Corpus, CorpusReport, Document, DomainReport
from cmrn.data.sources import data_root, read_source
from cmrn.data.split import split_documents
from cmrn.errors import DataError, UsageError

__all__ = ["Corpus", "CorpusReport", "Document", "DomainReport", "check_domains", "load_corpus", "sample_texts"]

MOST_REPEATED = 0.5
SAMPLE_BYTES = 8_000_000
SAMPLE_PIECE = 20_000


def load_corpus(data: DataConfig, root: Path | None = None, seed: int = 1) -> Corpus:
    """Read every source, remove near-duplicates, and hold out whole documents of each domain.

    A near-duplicate is a document half of whose 13-word passages occur in longer documents. What is held out depends
    on the texts and the seed, not on their order. Quizzes are all trained on, whatever text they repeat, and are in no
    report. Relative paths start at `root`, else at CMRN_DATA, else here.

    Raises:
        UsageError: a file or source is missing, or its path cannot be understood.
        DataError: a source is empty, undecodable or malformed; `where` names file:line or the byte.
    """
    place = data_root(root)
    documents: list[Document] = []
    for index, source in enumerate(data.sources):
        before = len(documents)
        documents.extend(read_source(source, index, place))
        if len(documents) == before:
            raise DataError("the source holds no text", where=source.path)
    made = tuple(document for document in documents if document.answers)
    documents = [document for document in documents if not document.answers]
    passages = Passages.of([document.text for document in documents])
    kept = list(range(len(documents)))
    if data.deduplicate:
        longest_first = sorted(kept, key=lambda i: (-len(documents[i].text), i))
        kept = sorted(passages.novel(longest_first, MOST_REPEATED))
    split = split_documents([documents[i] for i in kept], passages.subset(kept), data.validation_fraction, seed)
    unique = [documents[i] for i in kept]
    held = set(split.validation) | set(split.withheld)
    train = tuple(split.head_of.get(i, document) for i, document in enumerate(unique) if i not in held)
    validation = (*(unique[i] for i in split.validation), *split.tails)
    report = _report(documents, unique, train, validation, [unique[i] for i in split.withheld])
    return Corpus((*train, *made), validation, report, tuple(source.weight for source in data.sources))


def _report(
    read: Sequence[Document],
    unique: Sequence[Document],
    train: Sequence[Document],
    validation: Sequence[Document],
    withheld: Sequence[Document],
) -> CorpusReport:
    def count(documents: Iterable[Document], domain: str | None) -> tuple[int, int]:
        sizes = [len(document.text.encode()) for document in documents if document.domain == domain]
        return len(sizes), sum(sizes)

    rows = []
    for domain in dict.fromkeys(document.domain for document in read):
        read_count, read_bytes = count(read, domain)
        train_count, train_bytes = count(train, domain)
        held_count, held_bytes = count(validation, domain)
        rows.append(
            DomainReport(
                domain=domain,
                read_documents=read_count,
                read_bytes=read_bytes,
                duplicates=read_count - count(unique, domain)[0],
                withheld=count(withheld, domain)[0],
                train_documents=train_count,
                train_bytes=train_bytes,
                validation_documents=held_count,
                validation_bytes=held_bytes,
            )
        )
    return CorpusReport(tuple(rows))


def check_domains(owned: Iterable[str], corpus: Corpus) -> None:
    """Make sure every domain that an expert owns has text to train on.

    Raises:
        UsageError: a domain named but absent from the data; it names those that are there.
    """
    present = {document.domain for document in corpus.train}
    absent = [domain for domain in dict.fromkeys(owned) if domain not in present]
    if absent:
        named = ", ".join(sorted(domain for domain in present if domain)) or "none"
        raise UsageError(
            f"an expert owns the domain {absent[0]!r}, but no document to train on carries it",
            hint=f"domains in the data: {named}; set `domain` on a source, or take it from the expert",
        )


def sample_texts(documents: Sequence[Document], most_bytes: int = SAMPLE_BYTES) -> list[str]:
    """About `most_bytes` of text to train a tokenizer on, shared evenly between domains; all of it where less.

    Quizzes are left out.
    """
    pieces: dict[str | None, list[str]] = defaultdict(list)
    for document in documents:
        text = "" if document.answers else document.text
        pieces[document.domain] += [text[i : i + SAMPLE_PIECE] for i in range(0, len(text), SAMPLE_PIECE)]
    chosen: list[str] = []
    left = most_bytes
    smallest_first = sorted(pieces.values(), key=lambda group: sum(map(len, group)))
    for position, group in enumerate(smallest_first):
        share = left // (len(smallest_first) - position)
        for piece in sorted(group, key=lambda text: hashlib.blake2b(text.encode(), digest_size=8).digest()):
            if share <= 0:
                break
            size = len(piece.encode())
            chosen.append(piece)
            share, left = share - size, left - size
    return chosen
