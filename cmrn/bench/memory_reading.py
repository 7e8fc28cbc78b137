"""Reading long texts in chunks, with long-term memory or without, to see whether a question is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.bench.llama import Llama
from cmrn.bench.memory_text import Question
from cmrn.model import CMRN
from cmrn.training.device import Precision, autocast

__all__ = ["CHUNK", "answered", "chunks", "seen_by"]

CHUNK = 8192
Integers = npt.NDArray[np.int64]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` that together are [0, length); the first is shorter where they do not fit."""
    edges = [0, *range(length % size or size, length + 1, size)]
    return (slice(first, last) for first, last in pairwise(edges))


def seen_by(model: Llama) -> int | None:
    """How many tokens back the last output of a windowed Transformer depends on; None where on all of them."""
    windows = [model.config.window_of(layer) for layer in range(model.config.layers)]
    return None if None in windows else 1 + sum(window - 1 for window in windows if window)


@torch.inference_mode()
def answered(
    model: CMRN | Llama,
    questions: Sequence[Question],
    precision: Precision,
    *,
    memory: bool = False,
    chunk: int = CHUNK,
    batch: int = 8,
    after_piece: Callable[[CMRN], None] | None = None,
) -> list[bool]:
    """Whether each answer is the model's own: every token of it the likeliest after what stands before it.

    That is what greedy decoding would write. CMRN reads all the text, `chunk` tokens at a time with its state carried,
    and with `memory` writes its long-term memory on the way and reads it. A windowed Transformer is shown what its last
    outputs can depend on, which gives the same logits as all the text. after_piece: called with ours after each chunk.
    """
    model.eval()
    right: list[bool] = [False] * len(questions)
    by_length = sorted(range(len(questions)), key=lambda place: len(questions[place].ids))
    for _, group in groupby(by_length, key=lambda place: len(questions[place].ids)):
        places = list(group)
        for start in range(0, len(places), batch):
            rows = places[start : start + batch]
            longest = max(questions[place].answer for place in rows)
            ids = np.stack([questions[place].ids for place in rows])
            said_BA = _last_choices(model, ids, longest, precision, memory, max(chunk, longest + 1), after_piece)
            for place, said_A in zip(rows, said_BA, strict=True):
                count = questions[place].answer
                right[place] = bool((said_A[-count:] == questions[place].ids[-count:]).all())
    return right


def _last_choices(
    model: CMRN | Llama,
    ids: Integers,
    count: int,
    precision: Precision,
    memory: bool,
    chunk: int,
    after_piece: Callable[[CMRN], None] | None,
) -> Integers:
    """(B,count) likeliest tokens at the last `count` places of the text, each given what is before it."""
    device = next(model.parameters()).device
    ids_BN = torch.from_numpy(ids)
    logits: Tensor | None = None
    if isinstance(model, Llama):
        back = seen_by(model)
        shown = ids_BN if back is None else ids_BN[:, -(back + count) :]
        with autocast(device, precision):
            logits = model(shown.to(device)).logits
    else:
        states: Any = None
        options = {"update_memory": memory, "use_memory": memory}
        if memory:
            model.reset_memory()
        # The last token is no input that counts: what follows it is not asked.
        for part in chunks(ids_BN.shape[1], chunk):
            with autocast(device, precision):
                output = model(ids_BN[:, part].to(device), states=states, **options)
            states, logits = output.states, output.logits
            if after_piece is not None:
                after_piece(model)
    assert logits is not None
    said: Integers = logits[:, -count - 1 : -1].argmax(-1).cpu().numpy()
    return said
