"""Text in, text out: generation with the model's own tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cmrn.errors import UsageError
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["Generation", "generate_text", "tokenizer_of"]


@dataclass(frozen=True)
class Generation:
    """What a model wrote.

    text: without the prompt, ending before the stop string where one was met; the streamed pieces, joined.
    prompt_tokens, new_tokens: tokens read and tokens written.
    tokens_per_second: tokens written per second of the whole call, the reading of the prompt included.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float


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
) -> Generation:
    """What the model writes after `prompt`; the same seed gives the same text on the same machine.

    An empty prompt starts from the end-of-text token. A prompt may be longer than anything trained on: state is
    carried, so a token costs the same at any length. Generation ends after `max_new_tokens`, at the end-of-text token,
    or at the first of the `stop` strings. `stream` receives the text in pieces as it appears, never half a character.

    Raises:
        UsageError: the model has no tokenizer, `max_new_tokens` is below 0, a stop string is empty, or temperature,
            top_k or top_p is out of range.
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

    began = time.perf_counter()
    out_BT = model.generate(
        ids_BT,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop),
        stream=receive,
    )
    seconds = max(time.perf_counter() - began, 1e-9)
    written = out_BT.shape[1] - ids_BT.shape[1]
    return Generation("".join(pieces), len(prompt_ids), written, written / seconds)
