"""Rotary positions: how far back an entry lies, written into the angle between a query and a key."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.records import WorkingMemory

__all__ = ["BASE", "placeless", "rotate", "rotate_carried", "rotated"]

BASE = 1000.0
"""The slowest pair turns by about 1/BASE a token: several windows to a radian."""


def rotated(width: int) -> int:
    """How many of a head's first features are turned: half of them, in pairs. The others compare contents alone."""
    return width // 4 * 2


def rotate(x_BTHC: Tensor, first: int = 0) -> Tensor:
    """Queries or keys with the turn of their place: first, first + 1, … Shape, dtype and norm stay.

    Features c and c + R/2 of the R turned ones are a point in the plane, turned by place · BASE^(−2c/R), so that the
    product of a query and a key depends on their distance alone (RoFormer, Su et al. 2021, eq. 34). Unlike there, half
    of a head's features stay as they are.
    """
    size = rotated(x_BTHC.shape[-1])
    if not size:
        return x_BTHC
    if x_BTHC.is_cuda and x_BTHC.dtype != torch.float64:
        from cmrn.memory.rotary_triton import rotate_rows

        return rotate_rows(x_BTHC, first, size, BASE)
    wide = torch.promote_types(x_BTHC.dtype, torch.float32)
    place_T = torch.arange(first, first + x_BTHC.shape[1], dtype=wide, device=x_BTHC.device)
    rate_C = BASE ** (-torch.arange(0, size, 2, dtype=wide, device=x_BTHC.device) / size)
    angle_T1C = (place_T[:, None] * rate_C)[:, None]
    cos, sin = angle_T1C.cos(), angle_T1C.sin()
    left, right, rest = x_BTHC.to(wide).split([size // 2, size // 2, x_BTHC.shape[-1] - size], -1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos, rest], -1).to(x_BTHC.dtype)


def rotate_carried(carried: WorkingMemory) -> WorkingMemory:
    """The entries before a chunk, kept as they were read, with the turns of places −W … −1."""
    rows, window = carried.keys_BHWC.flatten(0, 1), carried.keys_BHWC.shape[2]
    keys_BHWC = rotate(rows[:, :, None], -window).reshape(carried.keys_BHWC.shape)
    return WorkingMemory(keys_BHWC, carried.values_BHWC, carried.valid_BW, carried.tail_BTC)


def placeless(key_HC: Tensor, width: int) -> Tensor:
    """A key that has no place: nothing in the turned features, so that every turn leaves it as it is."""
    return F.pad(key_HC, (rotated(width), 0))
