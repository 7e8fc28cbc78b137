"""Small networks kept in safetensors files of half precision."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cmrn.errors import CheckpointError

__all__ = ["fill", "keep"]


def keep(module: nn.Module, path: Path) -> None:
    """Write a network's weights."""
    from safetensors.torch import save_file

    save_file({name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}, path)


def fill(module: nn.Module, path: Path) -> None:
    """Give a network the weights of a file.

    Raises:
        CheckpointError: there is no such file, or its weights are not this network's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError("the weights of the parser cannot be read", where=str(path)) from error
    module.eval()
