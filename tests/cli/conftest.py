"""A small model on disk, and the command line run as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cmrn(tmp_path: Path) -> Run:
    """Run the command line in its own process, in an empty folder; stdout and stderr are decoded strictly."""

    def run(
        *arguments: str, stdin: str | bytes = b"", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), **(environment or {})}
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "cmrn_cli.main", *arguments],
            input=given,
            capture_output=True,
            cwd=tmp_path,
            env=whole,
            timeout=120,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of two experts, saved with its tokenizer."""
    import torch

    from cmrn.config import CMRNConfig, ExpertConfig
    from cmrn.model import CMRN
    from cmrn.tokenizer import CMRNTokenizer

    tokenizer = CMRNTokenizer.train(["the integral of x is here, and the court of law is there"], vocab_size=280)
    config = CMRNConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        head_dim=16,
        num_blocks=2,
        temporal_layers=1,
        memory_dim=32,
        memory_heads=2,
        working_memory=8,
        experts=(ExpertConfig(name="math", domains=("math",)), ExpertConfig(name="legal", domains=("legal",))),
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "small"
    CMRN(config, tokenizer).save_pretrained(folder)
    return folder
