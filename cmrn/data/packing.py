"""Documents as rows of tokens for training: a mixture of sources, packed without padding.

Each source is an endless stream: epoch after epoch of its documents, every epoch in an order of its own, each document
followed by the end-of-text token, which belongs to it. Row r of a source is tokens r·T … (r + 1)·T - 1 of that stream,
so that row boundaries move from epoch to epoch and every token occurs once in each. A source's phrases, where they are
asked for, are a source of their own beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.data.documents import Document
from cmrn.data.encoding import Flags, TextEncoder, Tokens, encode_documents, encode_quizzes
from cmrn.data.evaluation import IGNORED, EvaluationBatch, EvaluationSet
from cmrn.data.phrases import cut_phrases
from cmrn.errors import CheckpointError, DataError, UsageError

__all__ = ["Batch", "Cursor", "EvaluationBatch", "EvaluationSet", "Lane", "PackedDataset", "PackedSource", "pack"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lane:
    """Where a lane is: `offset` tokens into its `number`-th section, which is the `section`-th drawn of `source`."""

    source: int
    section: int
    offset: int
    number: int


@dataclass(frozen=True)
class Cursor:
    """How far training has read. rows: rows drawn from each source so far; of a data set with lanes, sections.

    lanes: where each is; none without them and before the first batch.
    """

    rows: tuple[int, ...]
    lanes: tuple[Lane, ...] | None = None

    def to_json(self) -> str:
        """As JSON, for a checkpoint."""
        lanes = {} if self.lanes is None else {"lanes": [[*vars(lane).values()] for lane in self.lanes]}
        return json.dumps({"rows": list(self.rows), **lanes})

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        """The cursor `to_json` wrote. Raises CheckpointError where it is not one."""
        try:
            document = json.loads(text)
            rows, lanes = document["rows"], document.get("lanes")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"not a data cursor: {error}") from error
        if not _counts(rows):
            raise CheckpointError("not a data cursor: rows must be counts")
        if lanes is None:
            return cls(tuple(rows))
        if not isinstance(lanes, list) or not all(_counts(lane) and len(lane) == len(fields(Lane)) for lane in lanes):
            raise CheckpointError("not a data cursor: lanes must be lists of four counts")
        return cls(tuple(rows), tuple(Lane(*lane) for lane in lanes))


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


@dataclass(frozen=True)
class Batch:
    """Rows to train on, all int64.

    input_ids_BT; document_ids_BT, from 0 in each row, one more at each document's start; domain_ids_BT, indices into
    the owned domains, -1 where the document has none of them; labels_BT, the input ids: the model shifts them; -100
    where a quiz has no answer.
    """

    input_ids_BT: Tensor
    document_ids_BT: Tensor
    domain_ids_BT: Tensor
    labels_BT: Tensor


@dataclass(frozen=True)
class PackedSource:
    """One source's tokens: document d is tokens[bounds[d]:bounds[d + 1]], its end-of-text token, if any, included.

    domains: (D,), the index of each document's domain among the owned ones, or -1. learnt: (N,), the tokens that are
    targets; None where all are.
    """

    tokens: Tokens
    bounds: Integers
    domains: Integers
    learnt: Flags | None = None

    @property
    def size(self) -> int:
        """Tokens of one epoch."""
        return len(self.tokens)

    def labels(self, first: int, count: int) -> Integers:
        """`count` tokens from the `first` on, -100 where they are no targets."""
        part = slice(first, first + count)
        ids = self.tokens[part].astype(np.int64)
        return ids if self.learnt is None else np.where(self.learnt[part], ids, IGNORED)

    def order(self, seed: int, index: int, epoch: int) -> tuple[Integers, Integers]:
        """The documents of an epoch in order, and where in the epoch each begins and the last ends."""
        order = np.random.default_rng([seed, index, epoch]).permutation(len(self.domains))
        lengths = np.diff(self.bounds)[order]
        return order, np.concatenate([[0], np.cumsum(lengths)])


class PackedDataset:
    """Batches as a pure function of (seed, cursor)."""

    def __init__(self, sources: Sequence[PackedSource], weights: Sequence[float], sequence_length: int, seed: int,
                 fingerprint: str) -> None:  # fmt: skip
        self.sequence_length = sequence_length
        self.seed = seed
        self.fingerprint = fingerprint
        self._sources = tuple(sources)
        self._weights = tuple(weights)
        self._orders: dict[tuple[int, int], tuple[Integers, Integers]] = {}

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        tokenizer: TextEncoder,
        domains: Sequence[str],
        sequence_length: int,
        weights: Sequence[float] | None = None,
        seed: int = 1,
        phrase_share: float = 0.0,
    ) -> PackedDataset:
        """Encode and pack documents.

        `weights[i]`, relative, is the share of rows that come from documents whose `source_index` is i; by default
        all sources weigh the same. `domains` are those that experts own. `phrase_share` of each source's rows hold
        phrases (see `cut_phrases`) instead of whole documents, every phrase a document of its own without an
        end-of-text token. The fingerprint names tokens, domains, weights, seed and length: two data sets with the same
        one give the same batches.

        Raises:
            DataError: there is no token to train on.
            UsageError: a weight is missing or not positive.
        """
        index_of = {domain: index for index, domain in enumerate(domains)}
        weights = weights if weights is not None else [1.0] * (1 + max((d.source_index for d in documents), default=0))
        if any(weight <= 0 for weight in weights) or any(d.source_index >= len(weights) for d in documents):
            raise UsageError("every source needs a weight above 0")
        sources: list[PackedSource] = []
        kept: list[float] = []
        digest = hashlib.sha256(tokenizer.fingerprint.encode())
        digest.update(json.dumps([list(domains), sequence_length, list(weights), seed, phrase_share]).encode())
        for index, weight in enumerate(weights):
            own = [document for document in documents if document.source_index == index and document.text]
            if not own:
                continue
            sources.append(pack(own, tokenizer, index_of, [tokenizer.eos_token_id]))
            kept.append(weight * (1 - phrase_share))
            phrases = cut_phrases(own, seed, index) if phrase_share and not own[0].answers else []
            if phrases:
                sources.append(pack(phrases, tokenizer, index_of, []))
                kept.append(weight * phrase_share)
        for source in sources:
            for part in (source.tokens, source.bounds, source.domains, source.learnt):
                digest.update(b"" if part is None else part.tobytes())
        if not sources:
            raise DataError("there is no text to train on")
        return cls(sources, [weight / sum(kept) for weight in kept], sequence_length, seed, digest.hexdigest())

    @property
    def tokens(self) -> int:
        """Tokens of one epoch of every source, end-of-text tokens included."""
        return sum(source.size for source in self._sources)

    def start(self) -> Cursor:
        """The cursor of a training that has read nothing."""
        return Cursor((0,) * len(self._sources))

    def batch(self, cursor: Cursor, batch_size: int) -> tuple[Batch, Cursor]:
        """The next `batch_size` rows after `cursor`, and the cursor after them.

        Each row comes from the source that is furthest behind its share, so that every batch follows the weights.

        Raises:
            CheckpointError: the cursor belongs to other sources.
        """
        self._check(cursor)
        drawn = list(cursor.rows)
        rows = []
        for _ in range(batch_size):
            read = sum(drawn) + 1
            behind = [weight * read - count for weight, count in zip(self._weights, drawn, strict=True)]
            source = behind.index(max(behind))
            rows.append(self._row(source, drawn[source]))
            drawn[source] += 1
        ids, documents, domains, labels = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return Batch(ids, documents, domains, labels), Cursor(tuple(drawn))

    def _check(self, cursor: Cursor) -> None:
        if len(cursor.rows) != len(self._sources):
            raise CheckpointError(
                f"the data cursor counts {len(cursor.rows)} sources, the data has {len(self._sources)}"
            )

    def _row(self, index: int, row: int) -> tuple[Integers, ...]:
        """(ids, document ids, domain ids, labels) of one row of one source, each (T,)."""
        source = self._sources[index]
        position = row * self.sequence_length
        ids, documents, domains, labels = (np.empty(self.sequence_length, dtype=np.int64) for _ in range(4))
        filled = number = 0
        while filled < self.sequence_length:
            epoch, within = divmod(position + filled, source.size)
            order, starts = self._order(index, epoch)
            place = int(np.searchsorted(starts, within, side="right")) - 1
            count = min(int(starts[place + 1]) - within, self.sequence_length - filled)
            first = int(source.bounds[order[place]]) + within - int(starts[place])
            part = slice(filled, filled + count)
            ids[part] = source.tokens[first : first + count]
            labels[part] = source.labels(first, count)
            documents[part] = number
            domains[part] = source.domains[order[place]]
            filled += count
            number += 1
        return ids, documents, domains, labels

    def _order(self, index: int, epoch: int) -> tuple[Integers, Integers]:
        """The order of one source in one epoch; the newest few are kept at hand."""
        key = (index, epoch)
        if key not in self._orders:
            while len(self._orders) >= 2 * len(self._sources) + 2:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = self._sources[index].order(self.seed, index, epoch)
        return self._orders[key]


def pack(
    documents: Sequence[Document], tokenizer: TextEncoder, index_of: dict[str, int], ending: Sequence[int]
) -> PackedSource:
    """The documents' tokens, each document's followed by `ending`."""
    asking, learnt = any(document.answers for document in documents), None
    if asking:
        pairs = encode_quizzes(documents, tokenizer)
        encoded = [ids for ids, _ in pairs]
        unasked = np.zeros(len(ending), dtype=np.bool_)
        learnt = np.concatenate([part for _, flags in pairs for part in (flags, unasked)])
    else:
        encoded = encode_documents(documents, tokenizer)
    end = np.array(ending, dtype=encoded[0].dtype)
    bounds = np.cumsum([0, *(len(ids) + len(end) for ids in encoded)]).astype(np.int64)
    tokens = np.concatenate([part for ids in encoded for part in (ids, end)])
    domains = np.array([index_of.get(document.domain or "", -1) for document in documents], dtype=np.int64)
    return PackedSource(tokens, bounds, domains, learnt)
