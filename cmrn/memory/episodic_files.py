"""An episodic memory as a folder: `memory.json`, `entries.safetensors` and a manifest with their hashes.

Every count in the document is checked against the tensors, and every tensor's type and shape against the model's
configuration, before the memory takes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cmrn.config import CMRNConfig
from cmrn.errors import CheckpointError
from cmrn.files import read_json, verify_folder, write_folder
from cmrn.memory.entries import SHARED, BlockEntries, Entries, join

if TYPE_CHECKING:
    from cmrn.memory.episodic import EpisodicMemory

__all__ = ["load", "save"]

DOCUMENT, TENSORS = "memory.json", "entries.safetensors"
FORMAT = 1
FIELDS = tuple(Entries.__dataclass_fields__)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class _About(BaseModel):
    """What `memory.json` says. shape: what a model must have in common with the one that wrote the memory."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: int
    shape: dict[str, int | list[int]]
    clock: int = Field(ge=0)
    tokens: int = Field(ge=0)
    place: int = Field(ge=0)
    document: int = Field(ge=-1)
    rows: int = Field(ge=0)
    namespaces: list[str] = Field(min_length=1)
    namespace: int = Field(ge=0)
    record: int = Field(ge=-1)
    announced: bool
    lost: list[int]


def save(memory: EpisodicMemory, folder: Path) -> None:
    """As `EpisodicMemory.save`."""
    about = _About(
        format=FORMAT,
        shape=_shape(memory.config),
        lost=[memory.blocks[index].lost for index in sorted(memory.blocks)],
        **memory.bookkeeping(),
    )
    tensors: dict[str, Tensor] = {}
    for index, block in memory.blocks.items():
        waiting = block.waiting_parts()
        for kind, entries in (("held", block.entries() if block.count else None),
                              ("waiting", join(waiting) if waiting else None)):  # fmt: skip
            if entries is not None:
                named = zip(FIELDS, vars(entries).values(), strict=True)
                tensors |= {f"{index}.{kind}.{name}": each.cpu().clone().contiguous() for name, each in named}
    with write_folder(folder) as temporary:
        (temporary / DOCUMENT).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")
        save_file(tensors, temporary / TENSORS)


def load(memory: EpisodicMemory, folder: Path, device: torch.device) -> None:
    """As `EpisodicMemory.load`."""
    manifest = verify_folder(folder)
    missing = [name for name in (DOCUMENT, TENSORS) if name not in manifest.files]
    if missing:
        raise CheckpointError(f"holds no episodic memory: there is no {missing[0]}", where=str(folder))
    about = _read_about(folder / DOCUMENT)
    expected = _shape(memory.config)
    for name, value in expected.items():
        if about.shape.get(name) == value:
            continue
        raise CheckpointError(
            f"was written by a model with {name} {about.shape.get(name)}, and this one has {value}",
            where=str(folder),
            hint="use the memory with the model that wrote it",
        )
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"is not a safetensors file: {error}", where=str(folder / TENSORS)) from error
    blocks = {}
    for place, index in enumerate(sorted(memory.blocks)):
        held, waiting = (_entries(tensors, f"{index}.{kind}.", about, memory.config, folder, device)
                         for kind in ("held", "waiting"))  # fmt: skip
        blocks[index] = _block(memory, held, waiting, about.lost[place : place + 1], folder)
    if tensors:
        raise CheckpointError(f"holds a tensor that does not belong in it: {min(tensors)}", where=str(folder))
    counts = {(block.count, block.waiting) for block in blocks.values()}
    if len(counts) > 1:
        raise CheckpointError("is damaged: its blocks hold different numbers of entries", where=str(folder))
    memory.take(blocks, about.model_dump(exclude={"format", "shape", "lost"}))


def _shape(config: CMRNConfig) -> dict[str, int | list[int]]:
    return {
        "d_model": config.d_model,
        "memory_dim": config.memory_dim,
        "memory_heads": config.memory_heads,
        "working_memory": config.working_memory,
        "episodic_chunk": config.episodic_chunk,
        "memory_blocks": list(config.reading_blocks),
    }


def _read_about(path: Path) -> _About:
    document: Any = read_json(path)
    try:
        about = _About.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"is no memory's document: {where}: {first['msg']}", where=str(path)) from error
    if about.format != FORMAT:
        raise CheckpointError(f"has the format {about.format}; this version reads {FORMAT}", where=str(path))
    if about.namespaces[0] != SHARED or about.namespace >= len(about.namespaces):
        raise CheckpointError("is damaged: its namespaces do not fit", where=str(path))
    return about


def _entries(
    tensors: dict[str, Tensor], prefix: str, about: _About, config: CMRNConfig, folder: Path, device: torch.device
) -> Entries | None:
    """The entries whose names begin so, taken out of the table; None where there are none."""
    names = [name for name in tensors if name.startswith(prefix)]
    if not names:
        return None
    columns = [tensors.pop(f"{prefix}{field}", None) for field in FIELDS]
    present = [column for column in columns if column is not None]
    count = 0 if len(present) < len(FIELDS) or present[3].dim() != 2 else present[3].shape[1]
    wide = (about.rows, config.memory_heads, count, config.memory_dim // config.memory_heads)
    fits = len(present) == len(FIELDS) and all(
        tuple(column.shape) == (wide if place < 2 else (about.rows, count))
        and (column.dtype in FLOATS if place < 3 else column.dtype == torch.int64)
        for place, column in enumerate(present)
    )
    if not fits or not count:
        raise CheckpointError(f"is damaged: {prefix}* are not the columns of a table", where=str(folder))
    entries = Entries(*(column.to(device) for column in present))
    spaces = entries.namespace_BN
    if bool((spaces < 0).any()) or int(spaces.max()) >= len(about.namespaces):
        raise CheckpointError(f"is damaged: {prefix}* name a namespace that is none", where=str(folder))
    return entries


def _block(
    memory: EpisodicMemory, held: Entries | None, waiting: Entries | None, lost: list[int], folder: Path
) -> BlockEntries:
    """A block's memory with these entries."""
    block = memory.empty_block()
    if held is not None and held.when_BN.shape[1] > block.capacity:
        raise CheckpointError(
            f"holds {held.when_BN.shape[1]} entries a row, and this model's memory {block.capacity}",
            where=str(folder),
            hint="use the memory with the model that wrote it",
        )
    if held is not None:
        block.fill(held)
    if waiting is not None:
        block.append(waiting)
    block.lost = lost[0] if lost else 0
    return block
