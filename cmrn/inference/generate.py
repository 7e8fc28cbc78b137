"""Text in, text out: generation with the model's own tokenizer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cmrn.errors import UsageError
from cmrn.memory.entry import Hit
from cmrn.model import CMRN
from cmrn.records import CMRNState, MemoryRead
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["Generation", "TokenReads", "generate_text", "tokenizer_of"]

MOST_READS = 32
"""Long-term entries that a token's reading is told of."""


@dataclass(frozen=True)
class TokenReads:
    """A new token's text, and the stored records whose entries were read as it was drawn.

    records: (number of the record, share of the softmax, mean over memory blocks and heads), largest share first.
    """

    text: str
    records: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    text: without the prompt, ending before the stop string where one was met; the streamed pieces, joined.
    prompt_tokens, new_tokens: tokens read and tokens written.
    tokens_per_second: tokens written per second of the whole call, the reading of the prompt included.
    memory_hits: the stored passages that were recalled for the prompt, nearest first.
    reads: for each new token what was read of them as it was drawn; only where that was asked for.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float
    memory_hits: tuple[Hit, ...] = ()
    reads: tuple[TokenReads, ...] = ()


def tokenizer_of(model: CMRN) -> CMRNTokenizer:
    """The tokenizer attached to a model.

    Raises:
        UsageError: the model has none.
    """
    if model.tokenizer is None:
        raise UsageError(
            "the model has no tokenizer, so it cannot read text",
            hint="CMRN.from_pretrained attaches one; CMRN(config, tokenizer) takes one",
        )
    return model.tokenizer


def generate_text(
    model: CMRN,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Sequence[str] = (),
    stream: Callable[[str], None] | None = None,
    use_memory: bool | None = None,
    states: CMRNState | None = None,
    show_reads: bool = False,
) -> Generation:
    """What the model writes after `prompt`; the same seed gives the same text on the same machine.

    An empty prompt starts from the end-of-text token. A prompt may be longer than anything trained on: state is
    carried, so a token costs the same at any length. Generation ends after `max_new_tokens`, at the end-of-text token,
    or at the first of the `stop` strings. `stream` receives the text in pieces as it appears, never half a character.
    use_memory, states: as `CMRN.generate`. show_reads: whether to say which records each new token was drawn with; a
    model without long-term memory cannot, since it reads passages as text.

    Raises:
        UsageError: the model has no tokenizer, or no memory that is to be used, `max_new_tokens` is below 0, a stop
            string is empty, or temperature, top_k or top_p is out of range.
        GuaranteeError: the model's logits are not numbers.
    """
    tokenizer = tokenizer_of(model)
    prompt_ids = tokenizer.encode(prompt)
    ids_BT = torch.tensor([prompt_ids or [tokenizer.eos_token_id]], device=next(model.parameters()).device)

    pieces: list[str] = []

    def receive(piece: str) -> None:
        pieces.append(piece)
        if stream is not None:
            stream(piece)

    hits: list[Hit] = []
    reads: list[tuple[MemoryRead, ...]] = []
    shown = 0 if model.episodic is None else model.episodic.shown
    if model.episodic is not None and show_reads:
        model.episodic.shown = max(shown, MOST_READS)
    began = time.perf_counter()
    try:
        out_BT = model.generate(
            ids_BT,
            max_new_tokens=max_new_tokens,
            use_memory=use_memory,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop),
            stream=receive,
            states=states,
            watch=(lambda output: reads.append(output.memory_hits)) if show_reads else None,
            recalled=hits.extend,
        )
    finally:
        if model.episodic is not None:
            model.episodic.shown = shown
    seconds = max(time.perf_counter() - began, 1e-9)
    written = out_BT.shape[1] - ids_BT.shape[1]
    said = out_BT[0, ids_BT.shape[1] :].tolist()
    told = tuple(
        TokenReads(tokenizer.decode([token_id]), _records_of(read))
        for token_id, read in zip(said[len(said) - len(reads) :], reads, strict=True)
    )
    return Generation("".join(pieces), len(prompt_ids), written, written / seconds, tuple(hits), told)


def _records_of(reads: Sequence[MemoryRead]) -> tuple[tuple[int, float], ...]:
    """The records that a row's last token read, with their shares, mean over memory blocks."""
    shares: dict[int, float] = defaultdict(float)
    for read in reads:
        for record, share in zip(read.records_BTM[0, -1].tolist(), read.weights_BTM[0, -1].tolist(), strict=True):
            if record >= 0:
                shares[record] += share / len(reads)
    return tuple(sorted(shares.items(), key=lambda pair: -pair[1]))
