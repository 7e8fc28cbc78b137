"""What a trained model is worth: bits per byte of held-out text, the same way for every kind of model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cmrn.bench.llama import Llama
from cmrn.bench.text import TokenisedText
from cmrn.loss import IGNORED, token_nats
from cmrn.model import CMRN
from cmrn.records import CMRNState
from cmrn.training.device import Precision, autocast

__all__ = ["bits_per_byte", "carried_bits_per_byte", "overlapping_bits_per_byte", "with_mean"]

Integers = npt.NDArray[np.int64]


def bits_per_byte(
    model: CMRN | Llama, text: TokenisedText, length: int, batch: int, precision: Precision
) -> dict[str, float]:
    """Nats of all targets over ln 2 over the bytes of their text, by domain, and the mean over domains.

    Each document is read in windows of `length` tokens, no state or cache carried from one to the next. Every call has
    the shape (batch, length) of training, so that no kernel is built anew.
    """
    return _windowed(model, text, length, 0, batch, precision)


def overlapping_bits_per_byte(
    model: CMRN | Llama, text: TokenisedText, length: int, batch: int, precision: Precision
) -> dict[str, float]:
    """The same with windows that overlap by half, whose second half is scored: twice the work, for longer contexts."""
    return _windowed(model, text, length, length // 2, batch, precision)


@torch.inference_mode()
def _windowed(
    model: CMRN | Llama, text: TokenisedText, length: int, repeated: int, batch: int, precision: Precision
) -> dict[str, float]:
    model.eval()
    figures = {}
    for index, domain in enumerate(text.domains):
        windows = text.windows(index, length, repeated)
        nats: Tensor | float = 0.0
        for start in range(0, len(windows.inputs), batch):
            rows = slice(start, start + batch)
            nats = nats + _nats(model, windows.inputs[rows], windows.targets[rows], batch, None, precision)[0]
        figures[domain] = float(nats) / math.log(2) / windows.bytes
    return with_mean(figures)


@torch.inference_mode()
def carried_bits_per_byte(
    model: CMRN, text: TokenisedText, length: int, batch: int, precision: Precision
) -> dict[str, float]:
    """The same with the model's state carried from each window of a document to the next."""
    model.eval()
    figures = {}
    for index, domain in enumerate(text.domains):
        nats: Tensor | float = 0.0
        for lanes in _lanes(text, index, length, batch):
            states: CMRNState | None = None
            for start in range(0, lanes.shape[1] - 1, length):
                inputs, targets = lanes[:, start : start + length], lanes[:, start + 1 : start + length + 1]
                more, states = _nats(model, inputs, targets, batch, states, precision)
                nats = nats + more
        figures[domain] = float(nats) / math.log(2) / text.windows(index, length).bytes
    return with_mean(figures)


def _nats(
    model: CMRN | Llama, inputs: Integers, targets: Integers, batch: int, states: Any, precision: Precision
) -> tuple[Tensor, Any]:
    """(nats of the targets, float64; states after). Rows are made up to `batch`; ids below 0 stand for nothing."""
    device = next(model.parameters()).device
    missing = ((0, batch - len(inputs)), (0, 0))
    ids_BT, targets_BT = (torch.from_numpy(np.pad(part, missing, constant_values=-1)) for part in (inputs, targets))
    with autocast(device, precision):
        output = model(ids_BT.clamp(min=0).to(device), states=states)
    targets_BT = targets_BT.masked_fill(targets_BT < 0, IGNORED).to(device)
    return token_nats(output.logits.flatten(0, 1), targets_BT.flatten()).double(), output.states


def _lanes(text: TokenisedText, domain: int, length: int, batch: int) -> Iterator[Integers]:
    """Documents of about one length as rows (≤ batch, a multiple of `length` + 1), −1 behind the end of each."""
    tokens, bounds = text.held_out[domain]
    longest_first = np.argsort(-np.diff(bounds), kind="stable")
    for start in range(0, len(longest_first), batch):
        chosen = longest_first[start : start + batch]
        longest = int(np.diff(bounds)[chosen].max())
        rows = np.full((len(chosen), -(-(longest - 1) // length) * length + 1), -1, dtype=np.int64)
        for row, document in zip(rows, chosen, strict=True):
            piece = tokens[bounds[document] : bounds[document + 1]]
            row[: len(piece)] = piece
        yield rows


def with_mean(figures: dict[str, float]) -> dict[str, float]:
    """The table with the mean of its values added."""
    return {**figures, "mean": sum(figures.values()) / len(figures)}
