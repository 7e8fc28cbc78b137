"""Entries of long ago, brought back from the archive for a question."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from cmrn.memory import MemoryAttention
from cmrn.memory.compression_archive import Archive
from cmrn.model import CMRN
from cmrn.records import CMRNState

__all__ = ["bring_back"]


@torch.no_grad()
def bring_back(
    model: CMRN, archive: Archive, prompt_BT: Tensor, states: CMRNState | None = None, most: int = 256
) -> int:
    """Read a prompt without long-term memory, and put the archived entries that it asks for back into it; how many.

    states: of the text that the prompt goes on with. most: entries of each memory block. The model is in eval mode
    meanwhile and left as it was; nothing is written but what is brought back.
    """
    asked: dict[int, Tensor] = {}
    readers = {index: cast(MemoryAttention, model.blocks[index].memory) for index in model.config.reading_blocks}

    def keep(index: int) -> Any:
        def hook(module: MemoryAttention, inputs: tuple[Any, ...]) -> None:
            asked[index] = module.queries(*inputs)

        return hook

    hooks = [reader.register_forward_pre_hook(keep(index)) for index, reader in readers.items()]
    was_training = model.training
    model.eval()
    try:
        model(prompt_BT, states=states, use_memory=False)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return sum(archive.bring_back(index, queries, most) for index, queries in asked.items())
