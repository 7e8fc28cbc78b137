from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cmrn.errors import CheckpointError
from cmrn.files import MANIFEST
from cmrn.model import CMRN
from cmrn.training.checkpoint import (
    TrainingState,
    checkpoints_of,
    difference,
    find_checkpoint,
    load_checkpoint,
    newest_whole,
    prune_checkpoints,
    read_state,
    save_checkpoint,
)
from tests.training.small_run import model_config


def save(run: Path, step: int) -> Path:
    state = TrainingState(
        step=step,
        cursor='{"rows": [1]}',
        skipped_in_a_row=1,
        skipped=2,
        seconds=3.5,
        identity={"seed": 1},
        random={"python": [3]},
        random_tensors={"torch": torch.arange(4)},
        optimizer={"embedding.weight.exp_avg": torch.ones(2)},
    )
    return save_checkpoint(run, model_config(), CMRN(model_config()), None, state)


def spoil(folder: Path, name: str = "backbone.safetensors") -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


def test_a_state_comes_back_as_saved(tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    assert folder == tmp_path / "checkpoints" / "step-4"
    state = load_checkpoint(folder, CMRN(model_config()))
    assert (state.step, state.cursor, state.skipped_in_a_row, state.skipped) == (4, '{"rows": [1]}', 1, 2)
    assert (state.seconds, state.identity, state.random) == (3.5, {"seed": 1}, {"python": [3]})
    assert torch.equal(state.optimizer["embedding.weight.exp_avg"], torch.ones(2))
    assert torch.equal(state.random_tensors["torch"], torch.arange(4))


@pytest.mark.parametrize("name", ["training.json", "training.safetensors"])
def test_a_changed_state_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 4)
    spoil(folder, name)
    with pytest.raises(CheckpointError, match="corrupt") as caught:
        read_state(folder)
    assert str(caught.value.where).endswith(name)


def test_only_folders_of_steps_are_checkpoints(tmp_path: Path) -> None:
    for step in (10, 9, 2):
        save(tmp_path, step)
    for name in ("step-11.backup", "step-012", "step-13.tmp-0123456789ab", "step-"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step-14").write_text("a file")
    assert [step for step, _ in checkpoints_of(tmp_path)] == [10, 9, 2]
    assert checkpoints_of(tmp_path / "nowhere") == []


def test_the_newest_whole_one_is_found_past_those_that_are_not(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (1, 2, 3)]
    spoil(folders[2])
    (folders[1] / MANIFEST).unlink()
    whole, problems = newest_whole(tmp_path)
    assert whole == folders[0]
    assert [str(folders[2]) in str(problems[0]), str(folders[1]) in str(problems[1])] == [True, True]
    assert find_checkpoint(tmp_path) == folders[0]
    spoil(folders[0])
    assert newest_whole(tmp_path)[0] is None
    with pytest.raises(CheckpointError, match="corrupt"):
        find_checkpoint(tmp_path)


def test_pruning_keeps_the_newest_up_to_the_step(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 3, 2)
    assert [step for step, _ in checkpoints_of(tmp_path)] == [9, 3, 2]


def test_without_a_path_the_newest_run_is_meant(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(CheckpointError, match="no trained model") as caught:
        find_checkpoint(None, runs)
    assert "cmrn train" in str(caught.value.hint)
    old, new = save(runs / "old", 5), save(runs / "new", 1)
    (runs / "begun").mkdir()
    os.utime(old, (1000, 1000))
    os.utime(new, (2000, 2000))
    assert find_checkpoint(None, runs) == new
    spoil(new)
    assert find_checkpoint(None, runs) == old
    assert find_checkpoint(new, runs) == new
    with pytest.raises(CheckpointError, match="no such run") as caught:
        find_checkpoint(tmp_path / "runs" / "olt", runs)
    assert "old" in str(caught.value.hint)
    (runs / "begun" / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(runs / "begun", runs)


def test_differences_are_named_field_by_field() -> None:
    before = {"seed": 1, "training": {"learning_rate": 0.1, "batch_size": 4}, "old": True}
    now = {"seed": 1, "training": {"learning_rate": 0.2, "batch_size": 4}, "data": {"path": "x"}}
    assert difference(before, before) == []
    assert difference(before, now) == [
        "training.learning_rate: 0.1 -> 0.2",
        "old: true -> null",
        'data: null -> {"path": "x"}',
    ]
