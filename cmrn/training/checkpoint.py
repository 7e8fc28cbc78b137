"""Checkpoints of a run: a model folder that also holds all that training needs to go on as if it had never stopped.

run/checkpoints/step-N/  the model's files  training.safetensors  training.json  manifest.json
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.errors import CheckpointError
from cmrn.files import MANIFEST, read_json, verify_folder, write_folder
from cmrn.pretrained import load_tensors, read_model, read_tensors, write_model_files, write_tensors
from cmrn.unseen import UNSEEN, Unseen

__all__ = [
    "CHECKPOINTS",
    "TrainingState",
    "checkpoints_of",
    "difference",
    "find_checkpoint",
    "holds_training",
    "load_checkpoint",
    "newest_whole",
    "prune_checkpoints",
    "read_state",
    "save_checkpoint",
]

CHECKPOINTS = "checkpoints"
STATE = "training.json"
STATE_TENSORS = "training.safetensors"
STATE_FORMAT = 1
STEP_FOLDER = re.compile(r"step-([1-9]\d{0,17}|0)")


@dataclass(frozen=True)
class TrainingState:
    """All that a run carries from step to step besides the model's own tensors.

    step: steps done. cursor: where the data goes on. skipped: steps skipped in a row, and in all. seconds: time spent
    training. identity: what must not change on resuming. random, random_tensors: every generator. optimizer: its state.
    carried: what the model reads on from, empty where it carries nothing.
    """

    step: int
    cursor: str
    skipped_in_a_row: int
    skipped: int
    seconds: float
    identity: dict[str, Any]
    random: dict[str, Any]
    random_tensors: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    carried: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    config: CMRNConfig,
    model: nn.Module,
    tokenizer_json: str | None,
    state: TrainingState,
    unseen: Unseen | None = None,
) -> Path:
    """Write the checkpoint of `state.step` durably, read it back to verify it, and return its folder.

    unseen: what is usual on held-out text, where that was measured.

    Raises:
        ResourceError: the disk is full; earlier checkpoints are whole.
        CheckpointError: the run cannot be written.
    """
    folder = run / CHECKPOINTS / f"step-{state.step}"
    document = {
        "format_version": STATE_FORMAT,
        "step": state.step,
        "cursor": state.cursor,
        "skipped_in_a_row": state.skipped_in_a_row,
        "skipped": state.skipped,
        "seconds": state.seconds,
        "identity": state.identity,
        "random": state.random,
    }
    tensors = {f"random.{name}": tensor for name, tensor in state.random_tensors.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
    tensors |= {f"carried.{name}": tensor for name, tensor in state.carried.items()}
    with write_folder(folder) as temporary:
        write_model_files(temporary, config, model.state_dict(), tokenizer_json)
        write_tensors(temporary / STATE_TENSORS, tensors)
        (temporary / STATE).write_text(json.dumps(document) + "\n", encoding="utf-8")
        if unseen is not None:
            (temporary / UNSEEN).write_text(unseen.to_json(), encoding="utf-8")
    verify_folder(folder)
    return folder


def load_checkpoint(folder: Path, model: nn.Module) -> TrainingState:
    """The training state in `folder`, its tensors copied into `model`.

    Raises:
        CheckpointError: the folder is not a whole checkpoint of a run, or not of this model.
    """
    files = read_model(folder)
    state = read_state(folder)
    load_tensors(model, files)
    return state


def holds_training(folder: Path) -> bool:
    """Whether a run could go on from the checkpoint in `folder`.

    Raises:
        CheckpointError: the folder holds files that are not those of its manifest.
    """
    return (folder / MANIFEST).exists() and STATE in verify_folder(folder).files


def read_state(folder: Path) -> TrainingState:
    """The training state in a verified checkpoint folder.

    Raises:
        CheckpointError: there is none (a model saved without its training), or it is of another version.
    """
    manifest = verify_folder(folder)
    if STATE not in manifest.files or STATE_TENSORS not in manifest.files:
        raise CheckpointError("holds a model but no training state", where=str(folder))
    document = read_json(folder / STATE)
    tensors = read_tensors(folder / STATE_TENSORS)
    if not isinstance(document, dict) or document.pop("format_version", None) != STATE_FORMAT:
        raise CheckpointError("is of another version", where=str(folder / STATE))
    try:
        return TrainingState(
            **document,
            random_tensors=_below(tensors, "random."),
            optimizer=_below(tensors, "optimizer."),
            carried=_below(tensors, "carried."),
        )
    except TypeError as error:
        raise CheckpointError("lacks a field, or has one too many", where=str(folder / STATE)) from error


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint of a run, newest first; whole or not, but none half written."""
    folder = run / CHECKPOINTS
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        name = STEP_FOLDER.fullmatch(path.name)
        if name and path.is_dir() and not path.is_symlink():
            found.append((int(name[1]), path))
    return sorted(found, reverse=True)


def newest_whole(run: Path) -> tuple[Path | None, tuple[CheckpointError, ...]]:
    """(the newest checkpoint whose every hash holds, or None; what is wrong with each newer one)."""
    problems = []
    for _, folder in checkpoints_of(run):
        try:
            verify_folder(folder)
        except CheckpointError as error:
            problems.append(error)
        else:
            return folder, tuple(problems)
    return None, tuple(problems)


def prune_checkpoints(run: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to `step`, whose own has just been verified."""
    done = [folder for saved, folder in checkpoints_of(run) if saved <= step]
    for folder in done[keep:]:
        # Without its manifest a folder is no checkpoint, so a kill half way leaves nothing that looks whole.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(path: Path | None, runs: Path = Path("runs")) -> Path:
    """The checkpoint a user means: itself, the newest whole one of a run, or of the newest run below `runs` (None).

    Raises:
        CheckpointError: there is none, or the one named is corrupt; the message names the file.
    """
    if path is None:
        return _newest_run(runs)
    if not path.exists():
        raise CheckpointError("no such run or checkpoint", where=str(path), hint=_hint(runs))
    if (path / MANIFEST).exists() or not (path / CHECKPOINTS).is_dir():
        return path
    whole, problems = newest_whole(path)
    if whole is None:
        raise problems[0] if problems else CheckpointError("holds no checkpoint yet", where=str(path))
    return whole


def difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line a field that differs, `training.learning_rate: 0.001 -> 0.002`, in the order of the fields."""
    lines = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += difference(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _newest_run(runs: Path) -> Path:
    def saved(folder: Path) -> float:
        return folder.stat().st_mtime

    newest = [found[0][1] for run in _folders(runs) if (found := checkpoints_of(run))]
    for folder in sorted(newest, key=saved, reverse=True):
        whole, _ = newest_whole(folder.parent.parent)
        if whole is not None:
            return whole
    raise CheckpointError("no trained model here", where=str(runs), hint="train one first: cmrn train quickstart")


def _folders(runs: Path) -> Iterator[Path]:
    return (path for path in sorted(runs.iterdir()) if path.is_dir()) if runs.is_dir() else iter(())


def _hint(runs: Path) -> str:
    names = [str(run) for run in _folders(runs) if checkpoints_of(run)]
    return f"runs here: {', '.join(names)}" if names else "train a model first: cmrn train quickstart"


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
