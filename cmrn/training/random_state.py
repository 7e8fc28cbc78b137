"""Every random generator a training step may draw from, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmrn.errors import CheckpointError

__all__ = ["restore_random", "save_random", "seed_all"]


def seed_all(seed: int) -> None:
    """Seed torch (every device), Python and numpy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def save_random() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON, tensors): the states of torch's generator, CUDA's where it was used, Python's and numpy's."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    document = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
    }
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states = enumerate(torch.cuda.get_rng_state_all())
        tensors |= {f"cuda.{index}": state for index, state in states}
    return document, tensors


def restore_random(document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put every generator back to a former `save_random()`.

    Raises:
        CheckpointError: the states are not ones that these generators can take.
    """
    try:
        version, words, gauss = document["python"]
        random.setstate((version, tuple(words), gauss))
        name, keys, position, has_gauss, cached = document["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(tensors["torch"])
        for key, state in tensors.items():
            if key.startswith("cuda.") and int(key[5:]) < torch.cuda.device_count():
                torch.cuda.set_rng_state(state, int(key[5:]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the saved random state cannot be restored: {error}") from error
