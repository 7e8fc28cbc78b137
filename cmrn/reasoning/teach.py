"""Teaches the tagger with sentences drawn at random: `python -m cmrn.reasoning.teach FILE` writes its weights.

Letters: B sentences, T words, F features a word, K tags.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from cmrn.reasoning.tagged_english import Marked, Teller
from cmrn.reasoning.tagger import FEATURES, TAGS, Tagger, features
from cmrn.reasoning.weights import keep

__all__ = ["share_right", "teach"]

BATCH = 64
STEPS = 1_500
RATE = 3e-3
_PADDING = -100


def teach(seed: int = 1, steps: int = STEPS, progress: Callable[[str], None] = lambda text: None) -> Tagger:
    """A tagger taught with `steps` batches of 64 sentences; the same for the same seed on the same machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = Tagger()
    teller = Teller(random.Random(seed))
    optimizer = torch.optim.AdamW(tagger.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        words_BTF, tags_BT = _batch([teller.sentence() for _ in range(BATCH)])
        loss = functional.cross_entropy(tagger(words_BTF).flatten(0, 1), tags_BT.flatten(), ignore_index=_PADDING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            progress(f"{step + 1:,} of {steps:,} batches, loss {loss.item():.4f}")
    return tagger.eval()


def _batch(sentences: Sequence[Marked]) -> tuple[Tensor, Tensor]:
    """(B, T, F) features and (B, T) tags, padded with what counts for nothing."""
    longest = max(map(len, sentences))
    words_BTF = torch.zeros(len(sentences), longest, FEATURES, dtype=torch.int64)
    tags_BT = torch.full((len(sentences), longest), _PADDING)
    for row, sentence in enumerate(sentences):
        words_BTF[row, : len(sentence)] = features([word for word, _ in sentence])
        tags_BT[row, : len(sentence)] = torch.tensor([TAGS.index(tag) for _, tag in sentence])
    return words_BTF, tags_BT


def share_right(tagger: Tagger, seed: int, count: int = 500) -> tuple[float, float]:
    """(share of words, share of whole sentences) of fresh sentences that are tagged as they were made."""
    teller = Teller(random.Random(seed))
    words = hits = whole = 0
    for _ in range(count):
        sentence = teller.sentence()
        found = tagger.tag([word for word, _ in sentence]).tags
        same = sum(tag == right for tag, (_, right) in zip(found, sentence, strict=True))
        words, hits, whole = words + len(sentence), hits + same, whole + (same == len(sentence))
    return hits / words, whole / count


if __name__ == "__main__":
    keep(teach(progress=lambda text: print(text, file=sys.stderr, flush=True)), Path(sys.argv[1]))
