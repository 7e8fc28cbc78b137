"""What the memory cases share: questions at the end of long texts, as token ids of an exact length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cmrn.data.encoding import TextEncoder

__all__ = ["Hay", "Question", "hidden"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Question:
    """A text that ends with a question and its answer. ids: (N,), of which the last `answer` are the answer's."""

    ids: Integers
    answer: int


class Hay:
    """Tokens of real text in one long row, read round and round where more are asked for than there are."""

    def __init__(self, documents: Sequence[npt.NDArray[np.generic]]) -> None:
        self.tokens = np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])

    def take(self, start: int, count: int) -> Integers:
        """`count` tokens from the one at `start` on."""
        return np.take(self.tokens, np.arange(start, start + count), mode="wrap")


def hidden(
    hay: Hay,
    start: int,
    length: int,
    statements: Sequence[tuple[float, str]],
    question: str,
    answer: str,
    tokenizer: TextEncoder,
) -> Question:
    """`length` tokens of hay from `start` on with statements in it, each at its depth, then the question and answer.

    A depth is the share of the hay that lies before the statement; those of equal depth stand in the order given.
    """
    ordered = sorted(statements, key=lambda each: each[0])
    *needles, asked, told = (
        np.array(ids, dtype=np.int64)
        for ids in tokenizer.encode_batch([f" {text} " for _, text in ordered] + [f"\n{question}", answer])
    )
    hay_tokens = length - sum(map(len, needles)) - len(asked) - len(told)
    if hay_tokens < 0:
        raise ValueError(f"the statements alone have more than {length} tokens")
    straw = hay.take(start, hay_tokens)
    cuts = [round(depth * hay_tokens) for depth, _ in ordered]
    pieces: list[Integers] = []
    for (first, last), needle in zip(pairwise([0, *cuts]), needles, strict=True):
        pieces += [straw[first:last], needle]
    pieces += [straw[cuts[-1] if cuts else 0 :], asked, told]
    return Question(np.concatenate(pieces), len(told))
