"""Held-out documents as lanes, read from end to end with carried states."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.data.documents import Document
from cmrn.data.encoding import TextEncoder, Tokens, encode_documents

__all__ = ["UNLABELLED", "EvaluationBatch", "EvaluationSet"]

UNLABELLED = "unlabelled"
IGNORED = -100
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationBatch:
    """One window of every lane of a domain; the states it leaves are carried to the next window.

    input_ids_BT, labels_BT, document_ids_BT int64: labels are the input ids, -100 on padding; document ids differ
    between the documents of a lane and stay the same from window to window. attention_mask_BT bool, False on padding,
    which lies at the right. scored_BT bool: the tokens a model scores, all but padding and a document's first token.
    scored_bytes: UTF-8 bytes of their text. domain_id: index into the owned domains, or -1.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    document_ids_BT: Tensor
    attention_mask_BT: Tensor
    scored_BT: Tensor
    scored_bytes: int
    domain_id: int


@dataclass(frozen=True)
class _Domain:
    """The tokens of one domain's documents in reading order, and which document each belongs to."""

    tokens: Integers
    documents: Integers
    domain_id: int


class EvaluationSet:
    """Held-out text of each domain, in an order that depends on the texts alone."""

    def __init__(
        self, domains: Mapping[str, _Domain], byte_lengths: Integers, pad_id: int, sequence_length: int, batch_size: int
    ) -> None:
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self._domains = dict(domains)
        self._byte_lengths = byte_lengths
        self._pad_id = pad_id

    @classmethod
    def build(
        cls,
        documents: Sequence[Document],
        tokenizer: TextEncoder,
        domains: Sequence[str],
        sequence_length: int,
        batch_size: int,
    ) -> EvaluationSet:
        """Encode the documents of every domain, owned by an expert (listed in `domains`) or not."""
        ordered = sorted(documents, key=lambda document: hashlib.blake2b(document.text.encode()).digest())
        groups: dict[str, list[Document]] = defaultdict(list)
        for document in ordered:
            if document.text:
                groups[document.domain if document.domain is not None else UNLABELLED].append(document)
        packed = {}
        for name in sorted(groups):
            encoded = encode_documents(groups[name], tokenizer)
            packed[name] = _Domain(
                np.concatenate(encoded).astype(np.int64),
                np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded]),
                domains.index(name) if name in domains else -1,
            )
        return cls(packed, tokenizer.byte_lengths, tokenizer.pad_token_id, sequence_length, batch_size)

    @classmethod
    def packed(
        cls,
        parts: Mapping[str, tuple[Tokens | Integers, Integers]],
        byte_lengths: Integers,
        pad_id: int,
        domains: Sequence[str],
        sequence_length: int,
        batch_size: int,
    ) -> EvaluationSet:
        """Text that is encoded already: of each domain its tokens, and where each document begins and the last ends."""
        held = {
            name: _Domain(
                tokens.astype(np.int64),
                np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)),
                domains.index(name) if name in domains else -1,
            )
            for name, (tokens, bounds) in parts.items()
        }
        return cls(held, byte_lengths, pad_id, sequence_length, batch_size)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains held, sorted; documents without one are "unlabelled"."""
        return tuple(self._domains)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens held of each domain."""
        return {name: len(domain.tokens) for name, domain in self._domains.items()}

    def streams(self, max_tokens: int | None = None) -> dict[str, Iterator[EvaluationBatch]]:
        """For each domain its windows in order, over the first `max_tokens` tokens or over all."""
        return {name: self._windows(domain, max_tokens) for name, domain in self._domains.items()}

    def pieces(self, domain: str, count: int, length: int) -> Tensor:
        """(N,length) ids of at most `count` pieces, each within one document, spread evenly over a domain's text."""
        held = self._domains[domain]
        starts = np.arange(0, len(held.tokens) - length + 1, length)
        whole = starts[held.documents[starts] == held.documents[starts + length - 1]]
        chosen = whole[np.arange(min(count, len(whole))) * len(whole) // max(1, min(count, len(whole)))]
        return torch.from_numpy(held.tokens[chosen[:, None] + np.arange(length)])

    def _windows(self, domain: _Domain, max_tokens: int | None) -> Iterator[EvaluationBatch]:
        tokens, documents = domain.tokens[:max_tokens], domain.documents[:max_tokens]
        lanes = max(1, min(self.batch_size, len(tokens) // self.sequence_length))
        edges = [len(tokens) * lane // lanes for lane in range(lanes + 1)]
        width = max(end - start for start, end in pairwise(edges))
        ids_BL = np.full((lanes, width), self._pad_id, dtype=np.int64)
        documents_BL = np.zeros((lanes, width), dtype=np.int64)
        real_BL = np.zeros((lanes, width), dtype=bool)
        for lane, (start, end) in enumerate(pairwise(edges)):
            ids_BL[lane, : end - start] = tokens[start:end]
            documents_BL[lane, : end - start] = documents[start:end]
            documents_BL[lane, end - start :] = documents[end - 1]
            real_BL[lane, : end - start] = True
        first_BL = np.ones((lanes, width), dtype=bool)
        first_BL[:, 1:] = documents_BL[:, 1:] != documents_BL[:, :-1]
        scored_BL = real_BL & ~first_BL
        for begin in range(0, width, self.sequence_length):
            window = np.s_[:, begin : begin + self.sequence_length]
            ids_BT, real_BT, scored_BT = (torch.from_numpy(whole[window]) for whole in (ids_BL, real_BL, scored_BL))
            yield EvaluationBatch(
                input_ids_BT=ids_BT,
                labels_BT=ids_BT.masked_fill(~real_BT, IGNORED),
                document_ids_BT=torch.from_numpy(documents_BL[window]),
                attention_mask_BT=real_BT,
                scored_BT=scored_BT,
                scored_bytes=int(self._byte_lengths[ids_BL[window][scored_BL[window]]].sum()),
                domain_id=domain.domain_id,
            )
