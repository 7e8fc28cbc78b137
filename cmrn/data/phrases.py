"""Phrases: short pieces of the training text, each read as if it stood alone.

A row of running text shows a router each word after a long context. What a person asks it about is a word or a line
with nothing before it; these pieces are how it learns to answer that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cmrn.data.documents import Document

__all__ = ["cut_phrases"]

LONGEST = 16
CHARACTERS = 1 << 20
WORD = re.compile(r"\S+")


def cut_phrases(documents: Sequence[Document], seed: int, index: int) -> list[Document]:
    """Documents cut into pieces of 1 to 16 words without the space around them; lengths are log-uniform.

    Documents are taken in an order drawn from (seed, index) until about a million characters are cut, so that a large
    source costs no more than a small one. A piece keeps its document's domain and source.
    """
    draw = np.random.default_rng([seed, index, LONGEST])
    pieces: list[Document] = []
    taken = 0
    for position in draw.permutation(len(documents)):
        if taken >= CHARACTERS:
            break
        document = documents[position]
        text = document.text[: CHARACTERS - taken]
        taken += len(text)
        spans = [match.span() for match in WORD.finditer(text)]
        start = 0
        while start < len(spans):
            end = min(len(spans), start + int(np.exp(draw.uniform(0.0, np.log(LONGEST + 1)))))
            pieces.append(replace(document, text=text[spans[start][0] : spans[end - 1][1]]))
            start = end
    return pieces
