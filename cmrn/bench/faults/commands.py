"""Command lines run at a terminal of their own, with all that they wrote to it."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any, TextIO

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.made import DIM, fingerprint, vectors
from cmrn.bench.faults.pouring import StandIn

__all__ = ["BUG", "run_command_lines"]

BUG = "Traceback (most recent call last)"
LIMIT = 60.0


class CommandEmbedder(StandIn):
    """Takes the encoder's place in commands, which would spend their time on loading it."""

    def __init__(self, *ignored: object, **options: object) -> None:
        self.dim = DIM

    def fingerprint(self) -> Any:
        """What a store filled by it is tied to."""
        return fingerprint(DIM)

    def embed(self, texts: list[str]) -> Any:
        """The vectors of the texts."""
        return vectors(texts, DIM)


def run_command_lines(
    events: Events, commands: list[list[str]], folder: str, encode: bool = False
) -> list[dict[str, Any]]:
    """Run each command line in `folder`; its exit code, and its output as UTF-8 with foreign bytes as surrogates.

    encode: with the real encoder.
    """
    os.chdir(folder)
    embedding: Any = import_module("cmrn.memory.embedding")
    if not encode:
        embedding.Embedder = CommandEmbedder
    return [_run(command) for command in commands]


def _run(command: list[str]) -> dict[str, Any]:
    child, terminal = pty.fork()
    if child == 0:
        code = 70
        try:
            os.environ.update(TERM="xterm-256color", COLUMNS="100", CI="1")
            # The streams of the process that forked were made for what lay behind them then.
            sys.stdin, sys.stdout, sys.stderr = map(_stream, range(3))
            code = import_module("cmrn_cli.main").run(command)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    output = _read(terminal, child)
    os.close(terminal)
    status = os.waitpid(child, 0)[1]
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    return {"code": code, "output": output.decode("utf-8", "surrogateescape")}


def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8")


def _read(terminal: int, child: int) -> bytes:
    """All that is written until the command ends; one that does not is killed."""
    output = b""
    deadline = time.monotonic() + LIMIT
    while True:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            return output
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:
            # Linux says so when the other side has been closed.
            return output
        if not piece:
            return output
        output += piece
