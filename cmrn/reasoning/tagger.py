"""A small convolutional tagger that marks the frame of a sentence: where phrases begin, and which words join them.

It reads words it has never seen by their endings and their places. Letters: B sentences, T words, F features a word,
H channels, K tags.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmrn.reasoning.lexicon import CLOSED, IRREGULAR_VERBS, PREPOSITIONS, verb_bases, word_set
from cmrn.reasoning.loose_words import PARTS, VERBS
from cmrn.reasoning.weights import fill

__all__ = ["FEATURES", "TAGS", "Tagged", "Tagger", "features"]

TAGS = ("other", "verb", "inner verb", "name", "kind", "joins phrases", "joins clauses", "fronted")
"""What a word does: `inner verb` begins the phrase of a relative clause, `fronted` stands before the subject."""
FEATURES = 6
HASHED = 512
SHAPES = 16
CHANNELS = 64
LAYERS = 4
_MARKS = word_set(", ( ) : ; - – # % + $")
_KNOWN = tuple(sorted(CLOSED | PREPOSITIONS | _MARKS | word_set("then also as cannot been being once he/she one's")))


@dataclass(frozen=True)
class Tagged:
    """A tag for each word, and the least of their probabilities."""

    tags: tuple[str, ...]
    confidence: float


def features(words: Sequence[str]) -> Tensor:
    """(T, F) int64: a word's number in the closed classes, three of its endings hashed, its shape, whether a verb."""
    places = {word: number for number, word in enumerate(_KNOWN, 1)}
    rows = []
    for at, word in enumerate(words):
        low = word.lower()
        closed = places.get(low, 0)
        endings = [0, 0, 0] if closed else [1 + zlib.crc32(low[-size:].encode()) % (HASHED - 1) for size in (1, 2, 3)]
        rows.append([closed, *endings, _shape(word, at == 0), _verbal(low)])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(words), FEATURES)


def _shape(word: str, first: bool) -> int:
    upper = 2 if word.isupper() and len(word) > 1 else int(word[:1].isupper())
    return 8 * first + upper + 3 * any(character.isdigit() for character in word)


def _verbal(word: str) -> int:
    """0 for a word that is no known verb, 1 for a base form, 2 for another form of one."""
    if word in VERBS:
        return 1
    return 2 * (word in PARTS or word in IRREGULAR_VERBS or any(base in VERBS for base in verb_bases(word)))


class Tagger(nn.Module):
    """Tags words from their neighbours: gated convolutions over nine words each way, no attention.

    >>> Tagger()(torch.zeros(1, 5, FEATURES, dtype=torch.int64)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        self.closed = nn.Embedding(len(_KNOWN) + 1, CHANNELS)
        self.endings = nn.ModuleList(nn.Embedding(HASHED, CHANNELS) for _ in range(3))
        self.shapes = nn.Embedding(SHAPES, CHANNELS)
        self.verbs = nn.Embedding(3, CHANNELS)
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(LAYERS))
        self.layers = nn.ModuleList(
            nn.Conv1d(CHANNELS, 2 * CHANNELS, 5, padding=2 * step, dilation=step) for step in (1, 1, 2, 3)
        )
        self.out = nn.Linear(CHANNELS, len(TAGS))

    def forward(self, words_BTF: Tensor) -> Tensor:
        """(B, T, K) float32 logits. words_BTF: int64 features."""
        x_BTH = self.closed(words_BTF[..., 0]) + self.shapes(words_BTF[..., 4]) + self.verbs(words_BTF[..., 5])
        for number, table in enumerate(self.endings, 1):
            x_BTH = x_BTH + table(words_BTF[..., number])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            value_BTH, gate_BTH = layer(norm(x_BTH).transpose(1, 2)).transpose(1, 2).chunk(2, -1)
            x_BTH = x_BTH + functional.silu(gate_BTH) * value_BTH
        logits_BTK: Tensor = self.out(x_BTH)
        return logits_BTK

    @torch.no_grad()
    def tag(self, words: Sequence[str]) -> Tagged:
        """The likeliest tag of each word."""
        if not words:
            return Tagged((), 1.0)
        shares_TK = self(features(words)[None])[0].softmax(-1)
        best_T, tags_T = shares_TK.max(-1)
        return Tagged(tuple(TAGS[tag] for tag in tags_T.tolist()), float(best_T.min()))

    @classmethod
    def load(cls, path: Path) -> Tagger:
        """A tagger with the weights of a file.

        Raises:
            CheckpointError: there is no such file, or it holds no tagger's weights.
        """
        tagger = cls()
        fill(tagger, path)
        return tagger
