"""Writing on from a prompt, one token a step, with the model's state carried: a token costs the same at any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cmrn.errors import UsageError
from cmrn.records import CMRNOutput, CMRNState
from cmrn.sampling import SamplingConfig, sample
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["PREFILL", "StopWatch", "continue_ids"]

PREFILL = 2048


class Reader(Protocol):
    """A model that reads token ids and carries its state."""

    def __call__(self, input_ids: Tensor, *, states: CMRNState | None) -> CMRNOutput: ...


def continue_ids(
    model: Reader, prompt_BT: Tensor, new_tokens: int, sampling: SamplingConfig, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Up to `new_tokens` drawn ids (B,), one a step; the prompt is read in pieces of at most 2,048 tokens first."""
    states: CMRNState | None = None
    for piece in prompt_BT.split(PREFILL, 1):
        output = model(piece, states=states)
        states = output.states
    for _ in range(new_tokens):
        ids_B = sample(output.logits[:, -1].float(), sampling, generator)
        yield ids_B
        output = model(ids_B[:, None], states=states)
        states = output.states


class StopWatch:
    """Turns one row's ids into text pieces as they become certain, and notices a stop string.

    A piece is held back while it could still be the beginning of a stop string or of an unfinished character; the stop
    string itself is never passed on.
    """

    def __init__(self, tokenizer: CMRNTokenizer, stop: Sequence[str], stream: Callable[[str], None] | None) -> None:
        if any(not text for text in stop):
            raise UsageError("a stop string is empty", hint="leave it out to stop only at the end of the text")
        self._decoder = tokenizer.stream()
        self._stop = tuple(stop)
        self._stream = stream or (lambda piece: None)
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> None:
        """Take one more id."""
        self._held += self._decoder.push(token_id)
        found = [place for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            self._held, self.stopped = self._held[: min(found)], True
        self._emit(0 if self.stopped else self._doubtful())

    def finish(self) -> None:
        """Pass on what is still held back."""
        if not self.stopped:
            self._held += self._decoder.finish()
        self._emit(0)

    def _emit(self, kept: int) -> None:
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        if certain:
            self._stream(certain)

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(text) for text in self._stop), default=1) - 1
        ends = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in ends if any(text.startswith(self._held[-n:]) for text in self._stop)), 0)
