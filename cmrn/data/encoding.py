"""Documents as arrays of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cmrn.data.documents import Document

__all__ = ["Flags", "TextEncoder", "Tokens", "encode_documents", "encode_quizzes"]

Tokens: TypeAlias = "np.ndarray[Any, np.dtype[np.uint16 | np.uint32]]"
Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"
ENCODED_AT_ONCE = 2_000_000


class TextEncoder(Protocol):
    """What data needs of a tokenizer; CMRNTokenizer has it."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def eos_token_id(self) -> int:
        """The token that ends a document."""

    @property
    def pad_token_id(self) -> int:
        """The token that fills a row."""

    @property
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each token, (V,)."""

    @property
    def fingerprint(self) -> str:
        """A hash of the whole tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""


def encode_documents(documents: Sequence[Document], tokenizer: TextEncoder) -> list[Tokens]:
    """The token ids of each document, in the smallest type that holds the vocabulary."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    encoded: list[Tokens] = []
    start = 0
    while start < len(documents):
        end, size = start, 0
        while end < len(documents) and (end == start or size + len(documents[end].text) <= ENCODED_AT_ONCE):
            size += len(documents[end].text)
            end += 1
        texts = [document.text for document in documents[start:end]]
        encoded += [np.array(ids, dtype=kind) for ids in tokenizer.encode_batch(texts)]
        start = end
    return encoded


def encode_quizzes(documents: Sequence[Document], tokenizer: TextEncoder) -> list[tuple[Tokens, Flags]]:
    """(token ids, whether each is of an answer) of each document; an answer's tokens share none with what is around it.

    The text between two answers is encoded on its own, and so is each answer.
    """
    pieces: list[Document] = []
    kinds: list[list[bool]] = []
    for document in documents:
        edges = [0, *(edge for span in document.answers for edge in span), len(document.text)]
        spans = [(start, end, place % 2 == 1) for place, (start, end) in enumerate(pairwise(edges)) if end > start]
        pieces += [Document(document.text[start:end]) for start, end, _ in spans]
        kinds.append([answer for _, _, answer in spans])
    encoded = iter(encode_documents(pieces, tokenizer))
    found = []
    for flags in kinds:
        parts = list(islice(encoded, len(flags)))
        found.append((np.concatenate(parts), np.repeat(flags, [len(part) for part in parts])))
    return found
