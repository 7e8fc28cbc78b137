"""Bits per byte of long documents after their first thousand tokens, by what the reader remembers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.bench.knn_lm import Datastore, Mixture
from cmrn.bench.llama import Llama
from cmrn.bench.memory_reading import seen_by
from cmrn.loss import token_nats
from cmrn.model import CMRN
from cmrn.training.device import Precision, autocast

__all__ = ["LONG", "UNSCORED", "Nats", "bits", "document_nats", "hidden_states", "scored_bytes"]

LONG = 4096
"""Tokens of the shortest document that counts as long."""
UNSCORED = 1000
"""Tokens at a document's start that are read only."""
PIECE = 4096
OVERLAPPING = 16_384
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Nats:
    """Nats of a document's scored tokens. mixed: with kNN-LM, by its settings; empty without."""

    plain: float
    mixed: dict[tuple[float, float], float]


def scored_bytes(documents: Sequence[Integers], byte_lengths: Integers) -> int:
    """UTF-8 bytes of the tokens that are scored."""
    return int(sum(byte_lengths[document[UNSCORED:]].sum() for document in documents))


@torch.inference_mode()
def document_nats(
    model: CMRN | Llama,
    document: Integers,
    precision: Precision,
    *,
    memory: bool = False,
    mixture: Mixture | None = None,
    store: Datastore | None = None,
    unscored: int = UNSCORED,
    after_piece: Callable[[CMRN], None] | None = None,
) -> Nats:
    """Nats of every token after the first `unscored`, the document read from its start.

    memory: whether long-term memory, empty at the start, is written and read. mixture: with what kNN-LM is tried;
    store: its datastore, by default the document's own text so far, a piece behind. A windowed Transformer reads pieces
    that overlap by all it can see. after_piece: called with ours after each piece.
    """
    model.eval()
    plain, mixed = 0.0, dict.fromkeys(mixture.settings, 0.0) if mixture else {}
    growing = Datastore() if mixture and store is None else None
    store = store or growing
    if isinstance(model, Llama):
        pieces: Iterator[tuple[int, Tensor, Tensor | None]] = _by_llama(model, document, precision)
    else:
        pieces = _by_ours(model, document, precision, memory, after_piece)
    for first, logits_TV, hidden_TD in pieces:
        targets_T = torch.from_numpy(document[first + 1 : first + 1 + len(logits_TV)]).to(logits_TV.device)
        logits_TV = logits_TV[: len(targets_T)]
        scored_T = torch.arange(first + 1, first + 1 + len(targets_T), device=logits_TV.device) >= unscored
        plain += float(token_nats(logits_TV, targets_T.masked_fill(~scored_T, -100)))
        if mixture and store is not None and hidden_TD is not None:
            hidden_TD = hidden_TD[: len(targets_T)]
            for setting, nats_T in mixture.nats(store, hidden_TD, logits_TV, targets_T).items():
                mixed[setting] += float(nats_T[scored_T].sum())
            if growing is not None:
                growing.add(hidden_TD, targets_T)
    return Nats(plain, mixed)


def _by_ours(
    model: CMRN, document: Integers, precision: Precision, memory: bool, after_piece: Callable[[CMRN], None] | None
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(place of the first token, logits, hidden states) of each piece."""
    device = next(model.parameters()).device
    states: Any = None
    options = {"update_memory": memory, "use_memory": memory}
    if memory:
        model.reset_memory()
    with hidden_states(model) as hidden:
        for first in range(0, len(document), PIECE):
            ids_1T = torch.from_numpy(document[None, first : first + PIECE]).to(device)
            with autocast(device, precision):
                output = model(ids_1T, states=states, **options)
            states = output.states
            if after_piece is not None:
                after_piece(model)
            yield first, output.logits[0], hidden[-1][0]
            hidden.clear()


def _by_llama(model: Llama, document: Integers, precision: Precision) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    device = next(model.parameters()).device
    back = seen_by(model)
    if back is None:
        raise ValueError("the Transformer reads its whole past: its cost would be quadratic")
    for first in range(0, len(document), OVERLAPPING):
        start = max(0, first - back)
        ids_1T = torch.from_numpy(document[None, start : first + OVERLAPPING]).to(device)
        with autocast(device, precision):
            logits_TV = model(ids_1T).logits[0]
        yield first, logits_TV[first - start :], None


@contextmanager
def hidden_states(model: CMRN) -> Iterator[list[Tensor]]:
    """What the last norm gives, call by call, while the context is open."""
    kept: list[Tensor] = []
    handle = model.final_norm.register_forward_hook(lambda module, given, result: kept.append(result))
    try:
        yield kept
    finally:
        handle.remove()


def bits(nats: float, size: int) -> float:
    """Bits per byte."""
    return nats / math.log(2) / size
