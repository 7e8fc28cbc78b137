from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cmrn.files import verify_folder
from cmrn.training.checkpoint import newest_whole
from tests.training.small_run import train

CHECKOUT = Path(__file__).resolve().parents[2]


def weights(run: Path) -> dict[str, str]:
    """The hash of each file of tensors in the newest checkpoint, the optimizer's and the generators' included."""
    folder, problems = newest_whole(run)
    assert folder is not None
    assert not problems
    files = verify_folder(folder).files
    return {name: entry.blake2b for name, entry in files.items() if name.endswith(".safetensors")}


def metrics(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


def check(run: Path, moments: list[str], least: int, *, carry: bool = False) -> None:
    train(run / "whole", carry_states=carry)
    how = "carry" if carry else "fresh"
    command = [sys.executable, "-m", "tests.training.killed_run", str(run / "killed"), how, *moments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least
    assert weights(run / "killed") == weights(run / "whole")
    assert metrics(run / "killed") == metrics(run / "whole")
    kept = sorted(path.name for path in (run / "killed" / "checkpoints").iterdir())
    assert kept == ["step-6", "step-8"]


def test_a_run_killed_inside_saves_ends_with_the_same_weights_and_metrics(tmp_path: Path) -> None:
    check(tmp_path, ["call:9", "call:26", "seconds:0.4"], 2)


def test_a_killed_run_that_carries_its_state_goes_on_from_it(tmp_path: Path) -> None:
    check(tmp_path, ["call:13", "call:26"], 2, carry=True)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    draw = random.Random(20)
    calls = [f"call:{draw.randint(2, 45)}" for _ in range(10)]
    times = [f"seconds:{draw.uniform(0.05, 0.8):.2f}" for _ in range(10)]
    moments = calls + times
    draw.shuffle(moments)
    check(tmp_path, moments, 12)
