"""Documents as arrays of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from cmrn.data.documents import Document

__all__ = ["TextEncoder", "Tokens", "encode_documents"]

Tokens: TypeAlias = "np.ndarray[Any, np.dtype[np.uint16 | np.uint32]]"
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
