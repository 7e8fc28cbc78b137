"""Documents of any length, read piece by piece: state and memories go on, and the device holds no more than before."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cmrn.errors import DataError, UsageError
from cmrn.inference.generate import tokenizer_of
from cmrn.model import CMRN
from cmrn.records import CMRNState
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["CHUNK", "Reading", "read_document", "text_of"]

CHUNK = 2048
"""Tokens that are read at once."""

PIECE = 1 << 16
"""Bytes of a file that are taken in at once."""

LONGEST_WORD = 1 << 10


@dataclass(frozen=True)
class Reading:
    """What reading a document left. tokens, seconds: how many were read, and how long that took."""

    states: CMRNState
    tokens: int
    seconds: float


def text_of(path: Path) -> Iterator[str]:
    """The text of a file in pieces of bounded size.

    Raises:
        UsageError: there is no such file, or it is a folder.
        DataError: it is not UTF-8.
    """
    decoder, taken = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                yield decoder.decode(piece)
                taken += len(piece)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8 text", where=f"{path}: near byte {taken + error.start}") from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error


@torch.no_grad()
def read_document(
    model: CMRN,
    text: Iterable[str],
    *,
    chunk: int = CHUNK,
    states: CMRNState | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Reading:
    """Read a text that comes in pieces, writing it into the episodic memory where the model has one.

    The pieces' boundaries do not matter but for where tokens begin: pieces are cut at white space. progress: told how
    many tokens have been read. The model is in eval mode meanwhile and left as it was.

    Raises:
        UsageError: the model has no tokenizer, or chunk is below 1.
        DataError: the text is empty.
    """
    if chunk < 1:
        raise UsageError(f"chunk is {chunk}; it must be at least 1")
    tokenizer, device = tokenizer_of(model), next(model.parameters()).device
    was_training, tokens, began = model.training, 0, time.perf_counter()
    update = model.episodic is not None
    model.eval()
    try:
        for ids in _chunks(text, tokenizer, chunk):
            output = model(torch.tensor([ids], device=device), states=states, update_memory=update)
            states, tokens = output.states, tokens + len(ids)
            progress(tokens)
    finally:
        model.train(was_training)
    if states is None or not tokens:
        raise DataError("the document holds no text")
    return Reading(states, tokens, time.perf_counter() - began)


def _chunks(text: Iterable[str], tokenizer: CMRNTokenizer, size: int) -> Iterator[list[int]]:
    """Lists of `size` ids, the last one shorter; holds one piece of text at a time."""
    waiting: list[int] = []
    for piece in _whole_words(text):
        waiting.extend(tokenizer.encode(piece))
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield waiting


def _whole_words(text: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end before white space, where there is any within reach."""
    held = ""
    for piece in text:
        held += piece
        if len(held) < PIECE // 4:
            continue
        cut = max(held.rfind(" ", len(held) - LONGEST_WORD), held.rfind("\n", len(held) - LONGEST_WORD))
        cut = cut if cut > 0 else len(held)
        yield held[:cut]
        held = held[cut:]
    if held:
        yield held
