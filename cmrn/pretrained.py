"""A model on disk, read and written from a configuration and a table of tensors.

    config.json  tokenizer.json  backbone.safetensors  router.safetensors  experts/<name>.safetensors  manifest.json

`router.safetensors` holds every tensor with `.router.` in its name, `experts/<name>.safetensors` those with
`.experts.experts.<name>.`, `backbone.safetensors` the rest. Nothing is parsed before its hash is checked, and nothing
pickled is ever opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmrn.config import CMRNConfig
from cmrn.errors import CheckpointError
from cmrn.files import MANIFEST, read_json, verify_folder, write_folder

__all__ = [
    "ModelFiles",
    "load_tensors",
    "read_config",
    "read_model",
    "read_tensors",
    "resolve_folder",
    "write_model",
    "write_model_files",
    "write_tensors",
]

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
BACKBONE = "backbone.safetensors"
ROUTER = "router.safetensors"
FORMAT_VERSION = 1
LAYOUT = f"{CONFIG}, {BACKBONE}, {ROUTER}, experts/*.safetensors, {MANIFEST}"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
EXPERT_KEY = re.compile(r"(?:^|\.)experts\.experts\.([^.]+)\.")
HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
CONVERT = "convert the weights to safetensors with the program that made them"


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder holds. tensors: by the model's own names, on the CPU, in the types they were saved in."""

    folder: Path
    config: CMRNConfig
    tensors: dict[str, Tensor]
    tokenizer_json: str | None


def write_model(
    folder: str | os.PathLike[str], config: CMRNConfig, tensors: Mapping[str, Tensor], tokenizer_json: str | None
) -> None:
    """Write a model folder durably, replacing an earlier one of the same name.

    Raises:
        ResourceError: the disk is full; an earlier model is whole.
        CheckpointError: the folder cannot be written, or holds something else.
    """
    with write_folder(Path(folder)) as temporary:
        write_model_files(temporary, config, tensors, tokenizer_json)


def write_model_files(
    folder: Path, config: CMRNConfig, tensors: Mapping[str, Tensor], tokenizer_json: str | None
) -> None:
    """Write a model's files into a folder that a `write_folder` is filling."""
    document = {"format_version": FORMAT_VERSION, "model": config.model_dump(mode="json")}
    (folder / CONFIG).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if tokenizer_json is not None:
        (folder / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")
    files: dict[str, dict[str, Tensor]] = {name: {} for name in _expected_files(config)}
    for name, tensor in tensors.items():
        files[_file_of(name)][name] = tensor
    for file, content in files.items():
        write_tensors(folder / file, content)


def read_model(name: str | os.PathLike[str]) -> ModelFiles:
    """The model in a folder, or in the hub's repository of that name, with every hash checked first.

    Raises:
        CheckpointError: no such folder, pickled weights, a file missing or corrupt, a tensor in the wrong file.
    """
    folder, links_within = resolve_folder(name)
    config = read_config(folder, links_within)
    tensors: dict[str, Tensor] = {}
    for file in _expected_files(config):
        for key, tensor in read_tensors(folder / file).items():
            if key in tensors or _file_of(key) != file:
                raise CheckpointError(f"holds a tensor that does not belong in it: {key}", where=str(folder / file))
            tensors[key] = tensor
    tokenizer = folder / TOKENIZER
    return ModelFiles(folder, config, tensors, tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None)


def read_config(folder: Path, links_within: Path | None = None) -> CMRNConfig:
    """The configuration of the model in `folder`, once the folder is verified and holds every file a model needs.

    Raises:
        CheckpointError: as `read_model`.
    """
    _refuse_foreign(folder)
    manifest = verify_folder(folder, links_within)
    if CONFIG not in manifest.files:
        raise CheckpointError(f"is not a model folder: {MANIFEST} names no {CONFIG}", where=str(folder))
    config = _parse_config(folder / CONFIG)
    for file in _expected_files(config):
        if file not in manifest.files:
            raise CheckpointError(f"is incomplete: {MANIFEST} names no {file}", where=str(folder))
    if (folder / TOKENIZER).exists() and TOKENIZER not in manifest.files:
        raise CheckpointError(f"holds a {TOKENIZER} that {MANIFEST} does not name", where=str(folder))
    return config


def load_tensors(model: nn.Module, files: ModelFiles) -> None:
    """Copy the tensors of `files` into `model`, which must have exactly these, in these shapes; or change nothing.

    Raises:
        CheckpointError: tensors missing, left over or of another shape, each named with its file.
    """
    expected = model.state_dict()
    problems = [f"{_file_of(key)}: {key} is missing" for key in expected if key not in files.tensors]
    for key, tensor in files.tensors.items():
        if key not in expected:
            problems.append(f"{_file_of(key)}: {key} is not a tensor of this model")
        elif tensor.shape != expected[key].shape:
            problems.append(f"{_file_of(key)}: {key} is {tuple(tensor.shape)}, not {tuple(expected[key].shape)}")
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        rest = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"does not fit its configuration:\n{shown}{rest}", where=str(files.folder))
    model.load_state_dict(files.tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file; a tensor that shares storage with another is written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = _own_storage(tensor)
        separate[name] = own.clone() if own.data_ptr() in seen else own
        seen.add(own.data_ptr())
    save_file(separate, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: it is not a safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"is not a safetensors file: {error}", where=str(path)) from error


def resolve_folder(name: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """(folder, links_within) of a model given by a path or a hub id `owner/name[@revision]`; the hub is asked last.

    links_within is the hub cache of a repository, whose files are links; None for a folder of the user's own.

    Raises:
        CheckpointError: neither a folder nor a hub id, or a hub that has no such model or cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder, None
    hub_id = HUB_ID.fullmatch(str(name))
    if (
        not isinstance(name, str)
        or hub_id is None
        or folder.parts[0] in {"..", "runs"}
        or Path(folder.parts[0]).exists()
    ):
        raise CheckpointError(_not_found(str(name)), where=str(name), hint=_local_runs())
    return _download(hub_id["id"], hub_id["revision"])


def _not_found(name: str) -> str:
    if re.fullmatch(r"[\w.-]+", name):
        return "is neither a folder here nor a hub id (owner/name); no weights are published under a bare name"
    return "no such folder"


def _local_runs() -> str:
    runs = sorted(path.parent for path in Path("runs").glob("*/checkpoints") if path.is_dir())
    if not runs:
        return "train a model first: cmrn train quickstart"
    return "models here: " + ", ".join(str(run) for run in runs[:10])


def _download(hub_id: str, revision: str | None) -> tuple[Path, Path]:
    from huggingface_hub import snapshot_download

    patterns = [CONFIG, TOKENIZER, BACKBONE, ROUTER, "experts/*.safetensors", MANIFEST]
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    # The client raises errors of four libraries, from validation to sockets; all mean that there is no model.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"no such folder, and the hub did not give it: {reason}"
        raise CheckpointError(message, where=hub_id, hint=_local_runs()) from error
    return folder, folder.parent.parent


def _refuse_foreign(folder: Path) -> None:
    """Say what is wrong with a folder that no version of this package wrote."""
    if (folder / MANIFEST).exists() or not folder.is_dir():
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"holds pickled weights ({pickles[0]}), which can run code when opened and are never read; "
            f"a model folder holds {LAYOUT}",
            where=str(folder),
            hint=CONVERT,
        )
    if (folder / "checkpoints").is_dir():
        steps = sorted((folder / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime)
        hint = f"name one of its checkpoints, such as {steps[-1]}" if steps else "it holds no checkpoint yet"
        raise CheckpointError("is a run, not a model", where=str(folder), hint=hint)
    raise CheckpointError(f"is not a model folder: it lacks {MANIFEST}; one holds {LAYOUT}", where=str(folder))


def _parse_config(path: Path) -> CMRNConfig:
    document: Any = read_json(path)
    if not isinstance(document, dict) or "format_version" not in document:
        raise CheckpointError("is not the configuration of a CMRN", where=str(path))
    if document["format_version"] != FORMAT_VERSION:
        found = document["format_version"]
        raise CheckpointError(f"has format {found!r}; this version reads {FORMAT_VERSION}", where=str(path))
    try:
        return CMRNConfig.model_validate(document.get("model"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "model"
        raise CheckpointError(f"is not a valid configuration: {key}: {first['msg']}", where=str(path)) from error


def _expected_files(config: CMRNConfig) -> tuple[str, ...]:
    return (BACKBONE, ROUTER, *(f"experts/{expert.name}.safetensors" for expert in config.named_experts))


def _file_of(key: str) -> str:
    """The file a tensor of that name lives in."""
    expert = EXPERT_KEY.search(key)
    if expert:
        return f"experts/{expert[1]}.safetensors"
    return ROUTER if ".router." in key else BACKBONE


def _own_storage(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to("cpu", memory_format=torch.contiguous_format)
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
