"""How likely two phrases are to say the same, learned from phrases that annotators gave one predicate.

Twelve features of a pair, and one hidden layer: what the phrases share, and of what sort the words are that only one
has. Letters: P pairs, F features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmrn.reasoning.lexicon import PREPOSITIONS, word_set
from cmrn.reasoning.loose_words import VERBS, Words
from cmrn.reasoning.weights import fill

__all__ = ["Likeness", "Pair", "features_of", "learn_likeness", "opposed"]

HIDDEN = 8
STEPS = 300
_OPPOSING = word_set("without before after above below over under inside outside against behind during")
_LIGHT = (PREPOSITIONS - _OPPOSING) | word_set("often regularly currently once more any every other only can own must")
_TURNING = _OPPOSING | word_set("not no non never fake former alleged only unless more less least most")
_FEATURES = 12


@dataclass(frozen=True)
class Pair:
    """Two phrases of one passage, and whether they say the same."""

    left: Words
    right: Words
    same: bool


def features_of(left: Words, right: Words) -> tuple[float, ...]:
    """What tells whether two phrases say the same; the order of the two does not matter."""
    one, two = set(left), set(right)
    shared, only = one & two, (one - two, two - one)
    near = _near(*only)
    loose = [word for side in only for word in side if word not in near]
    heavy = [word for word in loose if word not in _LIGHT]
    return (
        len(shared - _LIGHT) / max(1, len((one | two) - _LIGHT - near)),
        float(bool(shared - _LIGHT)),
        float(bool(near)),
        float(bool(shared & VERBS)),
        min(3, sum(word in VERBS for word in heavy)) / 3,
        min(4, len(heavy)) / 4,
        min(3, len(loose) - len(heavy)) / 3,
        float(all(any(word not in _LIGHT for word in side - near) for side in only)),
        float(left[-1] == right[-1]),
        float(left[0] == right[0]),
        float(bool(_TURNING & set(loose))),
        float(any(word[0].isdigit() for word in loose)),
    )


def opposed(left: Words, right: Words) -> bool:
    """Whether each phrase has a word of content that the other lacks, or one of them a number or a `not`.

    Tennis players are no tennis umpires, three films no four, and `before May` is not `in May`, however much is shared.
    """
    one, two = set(left), set(right)
    near = _near(one - two, two - one)
    loose = ((one - two) - near, (two - one) - near)
    if any(word in _TURNING or word[0].isdigit() for side in loose for word in side):
        return True
    if {"to", "from"} <= one ^ two:
        return True
    return all(side - _LIGHT for side in loose)


def _near(left: Iterable[str], right: Iterable[str]) -> set[str]:
    """The words of which the other phrase has one of the same stem: vegetarian and vegetation."""
    found: set[str] = set()
    for one in left:
        for two in right:
            stem = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
            if not {one, two} & _TURNING and stem >= 4 and stem >= 0.6 * min(len(one), len(two)):
                found |= {one, two}
    return found


class Likeness(nn.Module):
    """Degrees of likeness, from features of pairs.

    >>> float(Likeness().degree(("own", "dog"), ("have", "dog"))) <= 1
    True
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(_FEATURES, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, pairs_PF: Tensor) -> Tensor:
        """(P,) float32 logits. pairs_PF: float32 features."""
        logits_P: Tensor = self.out(functional.silu(self.inner(pairs_PF)))[:, 0]
        return logits_P

    @torch.no_grad()
    def degree(self, left: Words, right: Words) -> float:
        """How likely the two say the same, in [0, 1]; 0 where they are opposed."""
        if opposed(left, right):
            return 0.0
        return float(self(torch.tensor([features_of(left, right)])).sigmoid())

    @classmethod
    def load(cls, path: Path) -> Likeness:
        """A likeness with the weights of a file.

        Raises:
            CheckpointError: there is no such file, or it holds no likeness's weights.
        """
        likeness = cls()
        fill(likeness, path)
        return likeness


def learn_likeness(
    pairs: Sequence[Pair], seed: int = 1, progress: Callable[[str], None] = lambda text: None
) -> Likeness:
    """The likeness that annotated pairs teach, by gradient descent on all of them at once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        likeness = Likeness()
    pairs_PF = torch.tensor([features_of(pair.left, pair.right) for pair in pairs])
    same_P = torch.tensor([float(pair.same) for pair in pairs])
    optimizer = torch.optim.AdamW(likeness.parameters(), lr=0.03, weight_decay=0.03)
    for _ in range(STEPS):
        loss = functional.binary_cross_entropy_with_logits(likeness(pairs_PF), same_P)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    progress(f"likeness from {len(pairs):,} pairs: loss {loss.item():.4f}")
    return likeness.eval()
