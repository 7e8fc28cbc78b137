"""What was learned and is shipped: the tagger of sentences and the likeness of phrases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmrn.reasoning.likeness import Likeness
from cmrn.reasoning.tagger import Tagger

__all__ = ["LIKENESS", "TAGGER", "Learned", "nothing_learned", "shipped"]

TAGGER = Path(__file__).with_name("tagger.safetensors")
LIKENESS = Path(__file__).with_name("likeness.safetensors")


@dataclass(frozen=True)
class Learned:
    """The parts of a loose reading that have weights; without one of them, it does without."""

    tagger: Tagger | None = None
    likeness: Likeness | None = None


def shipped() -> Learned:
    """What the package brings.

    Raises:
        CheckpointError: the installation lacks it.
    """
    return Learned(Tagger.load(TAGGER), Likeness.load(LIKENESS))


def nothing_learned() -> Learned:
    """A reading by rules alone."""
    return Learned()
