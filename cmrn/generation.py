"""Writing on from a prompt, one token a step, with the model's state carried: a token costs the same at any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from cmrn.errors import CMRNError, UsageError
from cmrn.records import CMRNOutput, CMRNState, TemporalState, map_tensors, tensors_of
from cmrn.sampling import SamplingConfig, draw, refuse_nothing, sample
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["PREFILL", "WORTH_CAPTURING", "CapturedDecoder", "StopWatch", "continue_ids", "read_prompt", "watches"]

PREFILL = 2048
WORTH_CAPTURING = 16
"""Tokens from which on capturing a step costs less than it saves."""


class Reader(Protocol):
    """A model that reads token ids and carries its state."""

    def __call__(self, input_ids: Tensor, *, states: CMRNState | None) -> CMRNOutput: ...


def read_prompt(model: Reader, prompt_BT: Tensor, states: CMRNState | None = None) -> CMRNOutput:
    """The output at the prompt's end: read in pieces of at most 2,048 tokens, so memory does not grow with it.

    states: of a text that the prompt goes on with.
    """
    for piece in prompt_BT.split(PREFILL, 1):
        output = model(piece, states=states)
        states = output.states
    return output


def continue_ids(
    model: Reader,
    prompt_BT: Tensor,
    new_tokens: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None,
    states: CMRNState | None = None,
    watch: Callable[[CMRNOutput], None] | None = None,
) -> Iterator[Tensor]:
    """Up to `new_tokens` drawn ids (B,) on the host, one a step, after reading the prompt.

    states: of a text that the prompt goes on with. watch: receives the output that each id is drawn from.
    """
    output = read_prompt(model, prompt_BT, states)
    # Outputs are not told of in a captured step, and what a memory holds decides what a step computes.
    plain = watch is None and output.states.origin_B is None
    if prompt_BT.is_cuda and new_tokens >= WORTH_CAPTURING and plain:
        decoder = CapturedDecoder(model, output.logits[:, -1], output.states, sampling, generator)
        yield from _continue_captured(decoder, new_tokens)
        return
    for _ in range(new_tokens):
        if watch is not None:
            watch(output)
        ids_B = sample(output.logits[:, -1].float(), sampling, generator)
        yield ids_B.cpu()
        output = model(ids_B[:, None], states=output.states)


def _continue_captured(decoder: CapturedDecoder, new_tokens: int) -> Iterator[Tensor]:
    """The ids of a captured decoder; a step is always under way while the host looks at the one before."""
    waiting = decoder.step()
    for number in range(new_tokens):
        ids_B, done = waiting
        if number + 1 < new_tokens:
            waiting = decoder.step()
        done.synchronize()
        refuse_nothing(ids_B)
        yield ids_B


class CapturedDecoder:
    """One token a step on CUDA as a replayed graph: draw from the logits, read what was drawn, carry the state.

    The state lives in buffers that a step updates in place, so that device memory does not grow with the text. Logits
    of the step's last token stand in `logits_BV` after it.
    """

    def __init__(
        self,
        model: Reader,
        logits_BV: Tensor,
        states: CMRNState,
        sampling: SamplingConfig,
        generator: torch.Generator | None,
    ) -> None:
        device = logits_BV.device
        self._model, self._sampling, self._generator = model, sampling, generator
        self.logits_BV = logits_BV.float().clone()
        self.ids_B = torch.zeros(len(logits_BV), dtype=torch.int64, device=device)
        self.states = map_tensors(_after_one_token(states), _own)
        drawn = torch.cuda.get_rng_state(device) if generator is None else generator.get_state()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                self._draw()
                self._read()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            self._draw()
            self._read()
        if generator is None:
            torch.cuda.set_rng_state(drawn, device)
        else:
            generator.set_state(drawn)
        self.reset(logits_BV, states)

    def _draw(self) -> None:
        self.ids_B.copy_(draw(self.logits_BV, self._sampling, self._generator))

    def _read(self) -> None:
        # An id of NOTHING must not reach the embedding; the host ends the text when it sees it.
        output = self._model(self.ids_B.clamp(min=0)[:, None], states=self.states)
        self.logits_BV.copy_(output.logits[:, -1])
        _copy_tensors(self.states, output.states)

    def reset(self, logits_BV: Tensor, states: CMRNState) -> None:
        """Go on from another place in a text, or from another text, of as many rows."""
        self.logits_BV.copy_(logits_BV)
        _copy_tensors(self.states, _after_one_token(states))

    def step(self) -> tuple[Tensor, torch.cuda.Event]:
        """Launch a step: the ids it draws, on the host, and the event after which they are there."""
        self._graph.replay()
        ids_B = torch.empty(self.ids_B.shape, dtype=torch.int64, pin_memory=True)
        ids_B.copy_(self.ids_B, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return ids_B, done


def _after_one_token(states: CMRNState) -> CMRNState:
    """The state with the surprise, which follows the chunk's length and is read by nothing, of its last token."""
    blocks = []
    for block in states.blocks:
        layers = (
            replace(layer, surprise_BT=layer.surprise_BT[:, -1:]) if isinstance(layer, TemporalState) else layer
            for layer in block.temporal
        )
        blocks.append(replace(block, temporal=tuple(layers)))
    return replace(states, blocks=tuple(blocks))


def _copy_tensors(into: CMRNState, source: CMRNState) -> None:
    """Copy every tensor of a state into another's, made by `_own`; one launch where types and shapes agree."""
    olds, news = tensors_of(into), tensors_of(source)
    if any((old.dtype, old.shape) != (new.dtype, new.shape) for old, new in zip(olds, news, strict=True)):
        for old, new in zip(olds, news, strict=True):
            old.copy_(new)
        return
    from cmrn.generation_triton import copy_all

    copy_all(olds, news)


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy."""
    return tensor.clone(memory_format=torch.contiguous_format)


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


def watches(
    tokenizer: CMRNTokenizer | None, rows: int, stop: Sequence[str], stream: Callable[[str], None] | None
) -> list[StopWatch]:
    """One StopWatch a row; none where there is nothing to watch for.

    Raises:
        UsageError: stream is given for several rows, or a stop string is empty.
        CMRNError: there is no tokenizer.
    """
    if not stop and stream is None:
        return []
    if tokenizer is None:
        raise CMRNError(
            "stop and stream need text, and this model has no tokenizer",
            hint="CMRN.from_pretrained attaches one; or pass CMRN(config, tokenizer)",
        )
    if stream is not None and rows != 1:
        raise UsageError(f"stream follows one row, and input_ids has {rows}")
    return [StopWatch(tokenizer, stop, stream) for _ in range(rows)]
