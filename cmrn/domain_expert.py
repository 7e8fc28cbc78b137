"""Experts as things of their own: added to a model, taken from it, silenced, and shipped as folders.

    expert/  expert.json  expert.safetensors  [memory.jsonl  memory.safetensors]  manifest.json

`expert.json` holds the expert's configuration and the fingerprint of the backbone it fits, `expert.safetensors` its
weights and its row of every block's router; `memory.jsonl` and `memory.safetensors` the records of its partition of a
memory and their vectors, where it has one. Experts that own a domain together may lie in one folder, each in a folder
of its name within it, and `experts.json` names them in their order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.errors import CheckpointError, UsageError
from cmrn.experts.growth import (
    ExpertParts,
    backbone_fingerprint,
    drawn_parts,
    expert_named,
    group_named,
    parts_of,
    renamed_expert,
    with_expert,
    without_expert,
)
from cmrn.files import MANIFEST, read_json, verify_folder, write_folder
from cmrn.model import CMRN
from cmrn.pretrained import read_tensors, write_tensors

__all__ = [
    "MEMORY",
    "MEMORY_VECTORS",
    "ExpertFolder",
    "add_expert",
    "insert_expert",
    "read_expert",
    "remove_expert",
    "rename_expert",
    "routing_networks",
    "silenced",
    "write_expert",
]

DESCRIPTION, TENSORS, GROUP = "expert.json", "expert.safetensors", "experts.json"
AGAIN = "export it again from a model that has it: cmrn expert export NAME DIR -m CKPT"
MEMORY, MEMORY_VECTORS = "memory.jsonl", "memory.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExpertFolder:
    """What an exported folder holds. name: of the expert, or of the domain that several own together.

    memory, vectors: records as JSON Lines and their vectors; None where it has none.
    """

    folder: Path
    name: str
    parts: tuple[ExpertParts, ...]
    backbone: str
    memory: Path | None
    vectors: Path | None = None


def add_expert(model: CMRN, expert: ExpertConfig, init_from: str | None = None, seed: int = 1) -> CMRN:
    """A model like this one with one more expert in every block, the last.

    Weights are copied; those of the expert are drawn and its router rows are zero, or all is copied from the expert
    `init_from`.

    Raises:
        UsageError: the name is taken, init_from does not exist or is of another type, or the router is not learned.
    """
    config, tensors = model.config, model.state_dict()
    parts = drawn_parts(config, expert, seed)
    if init_from is not None:
        source = parts_of(config, tensors, init_from)
        if source.config.type != expert.type:
            raise UsageError(
                f"{init_from!r} is a {source.config.type} expert and {expert.name!r} a {expert.type} one",
                hint="weights are copied between experts of one type",
            )
        parts = ExpertParts(expert, source.weights, source.ngrams, source.rows_LR, source.bias_L)
    elif expert.type == "pattern":
        shared = {f"blocks.{i}": tensors.get(f"blocks.{i}.experts.ngram.weight") for i in range(config.num_blocks)}
        own = {block: value for block, value in shared.items() if value is not None}
        parts = ExpertParts(expert, parts.weights, own or parts.ngrams, parts.rows_LR, parts.bias_L)
    return _like(model, *with_expert(config, tensors, parts))


def insert_expert(model: CMRN, found: ExpertFolder) -> CMRN:
    """A model like this one with the experts of a folder added, the last.

    Raises:
        CheckpointError: the expert was made for another backbone.
        UsageError: the name is taken, or its n-gram features are not this model's.
    """
    own = backbone_fingerprint(model.config, model.state_dict())
    if found.backbone != own:
        raise CheckpointError(
            f"the expert {found.name!r} was made for another backbone: it fits {found.backbone[:16]}, "
            f"this model is {own[:16]}",
            where=str(found.folder / (DESCRIPTION if len(found.parts) == 1 else GROUP)),
            hint="an expert works only in the model it was added to and in others grown from the same one",
        )
    config, tensors = model.config, model.state_dict()
    for parts in found.parts:
        config, tensors = with_expert(config, tensors, parts)
    return _like(model, config, tensors)


def remove_expert(model: CMRN, name: str) -> CMRN:
    """A model like this one without that expert: bit for bit what it was before the expert was added.

    Raises:
        UsageError: there is none of that name, too few would remain, or the router is not learned.
    """
    return _like(model, *without_expert(model.config, model.state_dict(), name))


def rename_expert(model: CMRN, name: str, new: str) -> CMRN:
    """A model like this one in which an expert has another name.

    Raises:
        UsageError: there is none of that name, or the new one is taken or no name.
    """
    return _like(model, *renamed_expert(model.config, model.state_dict(), name, new))


def routing_networks(model: CMRN) -> list[Any]:
    """Every block's `RoutingNetwork`, in order; none where routing is not learned."""
    networks = [block.router.routing_network for block in model.blocks]  # type: ignore[union-attr]
    return [network for network in networks if network is not None]


@contextmanager
def silenced(model: CMRN, *names: str) -> Iterator[None]:
    """Within it no token chooses these experts, and every logit is bit for bit that of the model without them.

    Raises:
        UsageError: there is none of a name, too few would remain, or the router is not learned.
    """
    silent = frozenset(expert_named(model.config, name)[0] for name in names)
    networks = routing_networks(model)
    if not networks:
        raise UsageError(f"{model.config.routing_strategy} routing cannot pass over an expert")
    if model.config.num_experts - len(silent) < model.config.routing_k:
        raise UsageError(f"{model.config.routing_k} experts read each token, and fewer would be left")
    before = [network.silent for network in networks]
    try:
        for network in networks:
            network.silent = network.silent | silent
        yield
    finally:
        for network, silent_before in zip(networks, before, strict=True):
            network.silent = silent_before


def write_expert(
    folder: str | os.PathLike[str],
    model: CMRN,
    name: str,
    memory: bytes | None = None,
    vectors: bytes | None = None,
) -> None:
    """Write an expert, or all that `group_named` finds, as a folder, whole or not at all.

    memory, vectors: see `cmrn.memory.partition`.

    Raises:
        UsageError: there is none of that name, or the router is not learned.
        ResourceError: the disk is full; what stood in `folder` before is untouched.
        CheckpointError: the folder cannot be written, or holds something else.
    """
    tensors = model.state_dict()
    backbone = backbone_fingerprint(model.config, tensors)
    group = [parts_of(model.config, tensors, each) for each in group_named(model.config, name)]
    with write_folder(Path(folder)) as temporary:
        if len(group) == 1:
            _write_parts(temporary, group[0], backbone)
        else:
            names = [parts.config.name for parts in group]
            _write_json(temporary / GROUP, {"format_version": FORMAT_VERSION, "name": name, "experts": names})
            for parts in group:
                (temporary / parts.config.name).mkdir()
                _write_parts(temporary / parts.config.name, parts, backbone)
        for file, content in ((MEMORY, memory), (MEMORY_VECTORS, vectors)):
            if content is not None:
                (temporary / file).write_bytes(content)


def _write_parts(folder: Path, parts: ExpertParts, backbone: str) -> None:
    expert = parts.config.model_dump(mode="json")
    _write_json(folder / DESCRIPTION, {"format_version": FORMAT_VERSION, "expert": expert, "backbone": backbone})
    write_tensors(folder / TENSORS, _table(parts))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_expert(folder: str | os.PathLike[str], config: CMRNConfig) -> ExpertFolder:
    """The expert in a folder, or the group, for a model of this configuration, with every hash checked first.

    Raises:
        CheckpointError: no such folder, a file missing, changed or not an expert's, or tensors of another shape.
    """
    place = Path(folder)
    try:
        files = verify_folder(place).files
    except CheckpointError as error:
        raise CheckpointError(error.message, where=error.where, hint=error.hint or AGAIN) from error
    memory, vectors = (place / file if file in files else None for file in (MEMORY, MEMORY_VECTORS))
    if GROUP not in files:
        parts, backbone = _read_parts(place, "", files, config)
        return ExpertFolder(place, parts.config.name, (parts,), backbone, memory, vectors)
    name, members = _listed(place / GROUP)
    read = [_read_parts(place, f"{member}/", files, config) for member in members]
    backbones = {backbone for _, backbone in read}
    if len(backbones) != 1:
        raise CheckpointError("names experts of several backbones", where=str(place / GROUP))
    return ExpertFolder(place, name, tuple(parts for parts, _ in read), backbones.pop(), memory, vectors)


def _listed(path: Path) -> tuple[str, list[str]]:
    """(the domain, the names of its experts) of a group."""
    document = read_json(path)
    try:
        if document["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"is of another version; this one reads {FORMAT_VERSION}", where=str(path))
        members = [ExpertConfig(name=name, domains=(document["name"],)) for name in document["experts"]]
        return members[0].domains[0], [member.name for member in members]
    except (KeyError, IndexError, TypeError, ValidationError) as error:
        raise CheckpointError("is not a list of experts", where=str(path)) from error


def _read_parts(folder: Path, below: str, files: Mapping[str, object], config: CMRNConfig) -> tuple[ExpertParts, str]:
    """One expert, and what it fits, of the verified files whose names begin with `below`."""
    for name in (DESCRIPTION, TENSORS):
        if below + name not in files:
            raise CheckpointError(
                f"is not an exported expert: {MANIFEST} names no {below}{name}", where=str(folder), hint=AGAIN
            )
    place = folder / below
    expert, backbone = _described(place / DESCRIPTION)
    tensors = read_tensors(place / TENSORS)
    expected = _shapes(config, expert)
    for key in sorted(expected.keys() | tensors.keys()):
        shape = tuple(tensors[key].shape) if key in tensors else None
        if shape != expected.get(key):
            raise CheckpointError(
                f"does not fit this model: {key} is {shape or 'missing'}, not {expected.get(key, 'there at all')}",
                where=str(place / TENSORS),
            )
    weights, ngrams = _below(tensors, "weights."), _below(tensors, "ngrams.")
    return ExpertParts(expert, weights, ngrams, tensors["rows_LR"], tensors["bias_L"]), backbone


def _described(path: Path) -> tuple[ExpertConfig, str]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("backbone"), str):
        raise CheckpointError("is not the description of an expert", where=str(path))
    if document.get("format_version") != FORMAT_VERSION:
        found = document.get("format_version")
        raise CheckpointError(f"has format {found!r}; this version reads {FORMAT_VERSION}", where=str(path))
    try:
        return ExpertConfig.model_validate(document.get("expert")), document["backbone"]
    except ValidationError as error:
        raise CheckpointError(f"describes no expert: {error.errors()[0]['msg']}", where=str(path)) from error


def _shapes(config: CMRNConfig, expert: ExpertConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an expert of this model."""
    with torch.device("meta"):
        table = _table(drawn_parts(config, expert, 0))
    return {key: tuple(value.shape) for key, value in table.items()}


def _table(parts: ExpertParts) -> dict[str, Tensor]:
    """Every tensor of an expert, by its name in the file."""
    table = {f"weights.{key}": value for key, value in parts.weights.items()}
    table |= {f"ngrams.{key}": value for key, value in parts.ngrams.items()}
    return table | {"rows_LR": parts.rows_LR, "bias_L": parts.bias_L}


def _like(model: CMRN, config: CMRNConfig, tensors: dict[str, Tensor]) -> CMRN:
    """A model of these tensors, on the device, in the type and in the mode of the one given."""
    weight = model.embedding.weight
    with torch.random.fork_rng(devices=[]):
        made = CMRN(config, model.tokenizer)
    made = made.to(weight.device, weight.dtype)
    made.load_state_dict(tensors)
    made.reasoning_mode = model.reasoning_mode
    return made.train(model.training)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
