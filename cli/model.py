"""What the commands that use a model share: finding it, loading it, and reading text from an argument or stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cmrn.model import CMRN

__all__ = ["ModelOption", "load_model", "read_text"]

ModelOption = Annotated[
    str | None,
    typer.Option("-m", "--model", metavar="CKPT", help="A run, a checkpoint or a hub id; by default the newest run."),
]


def load_model(name: str | None) -> tuple[CMRN, str]:
    """The model in evaluation mode on the best device there is, and where it was found."""
    from cmrn.model import CMRN
    from cmrn.training.checkpoint import find_checkpoint
    from cmrn.training.device import resolve_device

    place = str(find_checkpoint(None if name is None else Path(name))) if name is None or Path(name).exists() else name
    model = CMRN.from_pretrained(place)
    model.eval()
    return model.to(resolve_device(None)), place


def read_text(argument: str) -> str:
    """The argument itself, or all of stdin where it is `-`.

    Raises:
        DataError: stdin is not UTF-8.
    """
    from cmrn.errors import DataError

    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: byte {error.start}", where="stdin") from error
