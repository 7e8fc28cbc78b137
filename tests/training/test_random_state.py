from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from cmrn.errors import CheckpointError
from cmrn.training.random_state import restore_random, save_random, seed_all


def draw() -> tuple[object, ...]:
    return (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist())


def test_every_generator_goes_on_as_before() -> None:
    seed_all(5)
    draw()
    document, tensors = save_random()
    expected = draw(), draw()
    draw()
    restore_random(json.loads(json.dumps(document)), {name: tensor.clone() for name, tensor in tensors.items()})
    assert (draw(), draw()) == expected


def test_a_seed_fixes_every_generator() -> None:
    seed_all(2**63 - 1)
    first = draw()
    seed_all(2**63 - 1)
    assert draw() == first
    seed_all(4)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


@pytest.mark.parametrize("part", ["python", "numpy"])
def test_a_state_that_is_none_is_refused(part: str) -> None:
    document, tensors = save_random()
    with pytest.raises(CheckpointError, match="random state"):
        restore_random({**document, part: [1, 2, 3]}, tensors)
    with pytest.raises(CheckpointError, match="random state"):
        restore_random(document, {"torch": tensors["torch"][:7]})
