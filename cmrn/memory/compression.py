"""Keys and values of memory as a few bytes: a tied linear autoencoder whose code is quantised, fitted in closed form.

    code = quantise((x − μ) B)      x̂ = μ + step · code Bᵀ

x is a head's key beside its value, B (the encoder, and transposed the decoder) the eigenvectors of their covariance: no
linear autoencoder of that width has a smaller squared error. Directions of much variance get 8 bits, others 4 or none,
so that the bytes go where the error would be largest. Nothing here carries gradient: entries are fitted as they are.

Letters: N entries, H heads, C width of a head's key or value, X = 2·C, P kept directions, Y bytes of a head's code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from cmrn.errors import CheckpointError, DataError, UsageError

__all__ = ["CompressionLoss", "EntryCodec"]

WIDE, NARROW = 127, 7
"""Largest codes of 8 and of 4 bits; the smallest are their negatives."""

TINY = 1e-12
CLIPS = 24


@dataclass(frozen=True)
class CompressionLoss:
    """What a codec loses: squared error of keys and of values over their squared norms, each in [0, 1]."""

    keys: float
    values: float


@dataclass(frozen=True)
class EntryCodec:
    """Turns a head's key and value, C numbers each, into Y bytes and back.

    scale_H2: what keys and values are divided by. mean_HX, basis_HXP, step_HP: as in the module's equation, the `wide`
    directions of 8 bits first. unit_keys: whether keys have length 1, which decoding then restores. All float32.

    >>> keys, values = torch.randn(2, 500, 1, 8).unbind()
    >>> codec = EntryCodec.fit(keys, values, code_bytes=16)
    >>> codes = codec.encode(keys, values)
    >>> codes.shape, codes.dtype
    (torch.Size([500, 1, 16]), torch.int8)
    >>> codec.loss(keys, values).values < 1e-3
    True
    """

    scale_H2: Tensor
    mean_HX: Tensor
    basis_HXP: Tensor
    step_HP: Tensor
    wide: int
    unit_keys: bool

    @classmethod
    def fit(cls, keys_NHC: Tensor, values_NHC: Tensor, code_bytes: int | None = None) -> Self:
        """The codec of least squared error on these entries, keys and values weighing the same.

        code_bytes: bytes of a head's code, by default C: an eighth of a key and value in float32.

        Raises:
            UsageError: keys and values of different shapes, or a code longer than 8 bits a number.
            DataError: no entries, or one that is not finite.
        """
        x_NHX, scale_H2 = _joined(keys_NHC, values_NHC)
        count, _, both = x_NHX.shape
        size = both // 2 if code_bytes is None else code_bytes
        if not 1 <= size <= both:
            raise UsageError(f"a code of {size} bytes for {both} numbers a head", hint=f"1 to {both}")
        mean_HX = x_NHX.mean(0)
        centred_HNX = (x_NHX - mean_HX).transpose(0, 1)
        variance_HX, basis_HXX = torch.linalg.eigh(centred_HNX.mT @ centred_HNX / count)
        variance_HX, basis_HXX = variance_HX.flip(-1).clamp(min=0), basis_HXX.flip(-1)
        wide, kept = _shares(variance_HX, size)
        basis_HXP = basis_HXX[..., :kept]
        step_HP = _steps(centred_HNX @ basis_HXP, wide)
        lengths = keys_NHC.detach().float().norm(dim=-1)
        unit_keys = bool(((lengths - 1).abs() < 0.05).all())
        scale_H2, mean_HX, basis_HXP, step_HP = (
            each.float().cpu().contiguous() for each in (scale_H2, mean_HX, basis_HXP, step_HP)
        )
        return cls(scale_H2, mean_HX, basis_HXP, step_HP, wide, unit_keys)

    @property
    def heads(self) -> int:
        """Heads of an entry."""
        return self.mean_HX.shape[0]

    @property
    def width(self) -> int:
        """Numbers of a head's key."""
        return self.mean_HX.shape[1] // 2

    @property
    def code_bytes(self) -> int:
        """Bytes of a head's code."""
        return self.wide + (self.step_HP.shape[1] - self.wide) // 2

    @cached_property
    def version(self) -> str:
        """Names the codec by its contents: codes of one version mean nothing to another."""
        digest = hashlib.blake2b(f"{self.wide} {self.unit_keys}".encode(), digest_size=16)
        for tensor in (self.scale_H2, self.mean_HX, self.basis_HXP, self.step_HP):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def encode(self, keys_NHC: Tensor, values_NHC: Tensor) -> Tensor:
        """int8 codes (N,H,Y), on the device of the keys.

        Raises:
            UsageError: entries of another shape than those it was fitted on.
            DataError: an entry that is not finite.
        """
        self._check(keys_NHC.shape, values_NHC.shape)
        if not (bool(keys_NHC.isfinite().all()) and bool(values_NHC.isfinite().all())):
            raise DataError("a memory entry is not finite and cannot be compressed")
        scale_H2, mean_HX, basis_HXP, step_HP = self._on(keys_NHC.device)
        halves = torch.stack([keys_NHC.detach().float(), values_NHC.detach().float()], -2)
        x_NHX = (halves / scale_H2[..., None]).flatten(-2) - mean_HX
        numbers = (torch.einsum("nhx,hxp->nhp", x_NHX, basis_HXP) / step_HP).round()
        wide = numbers[..., : self.wide].clamp(-WIDE, WIDE)
        low, high = numbers[..., self.wide :].clamp(-NARROW, NARROW).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([wide, low + 16 * high], -1).to(torch.int8)

    def decode(self, codes_NHY: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(keys, values), (N,H,C) each, near those that were encoded."""
        scale_H2, mean_HX, basis_HXP, step_HP = self._on(codes_NHY.device)
        packed = codes_NHY[..., self.wide :].float()
        high = (packed / 16).round()
        pairs = torch.stack([packed - 16 * high, high], -1).flatten(-2)
        numbers = torch.cat([codes_NHY[..., : self.wide].float(), pairs], -1) * step_HP
        x_NHX = torch.einsum("nhp,hxp->nhx", numbers, basis_HXP) + mean_HX
        keys, values = (x_NHX.unflatten(-1, (2, -1)) * scale_H2[..., None]).unbind(-2)
        if self.unit_keys:
            keys = torch.nn.functional.normalize(keys, dim=-1)
        return keys.to(dtype), values.to(dtype)

    def loss(self, keys_NHC: Tensor, values_NHC: Tensor, codes_NHY: Tensor | None = None) -> CompressionLoss:
        """What encoding and decoding these entries costs; codes_NHY: theirs, where they are known."""
        decoded = self.decode(self.encode(keys_NHC, values_NHC) if codes_NHY is None else codes_NHY)
        keys, values = (
            float((new - old.float()).square().sum() / old.float().square().sum().clamp(min=TINY))
            for new, old in zip(decoded, (keys_NHC.detach(), values_NHC.detach()), strict=True)
        )
        return CompressionLoss(keys, values)

    def tensors(self) -> dict[str, Tensor]:
        """The codec as named tensors, for a safetensors file."""
        numbers = torch.tensor([self.wide, int(self.unit_keys)], dtype=torch.int64)
        return {"scale": self.scale_H2, "mean": self.mean_HX, "basis": self.basis_HXP, "step": self.step_HP,
                "form": numbers}  # fmt: skip

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], where: str | None = None) -> Self:
        """The codec that `tensors` described.

        Raises:
            CheckpointError: a tensor is missing, or they do not fit one another.
        """
        try:
            scale_H2, mean_HX, basis_HXP, step_HP = (tensors[name] for name in ("scale", "mean", "basis", "step"))
            wide, unit_keys = tensors["form"].tolist()
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"its codec is incomplete: {error}", where=where) from error
        heads, both, kept = basis_HXP.shape if basis_HXP.dim() == 3 else (-1, -1, -1)
        shapes = [tuple(each.shape) for each in (scale_H2, mean_HX, step_HP)]
        if shapes != [(heads, 2), (heads, both), (heads, kept)] or not 0 <= wide <= kept or (kept - wide) % 2:
            raise CheckpointError("the tensors of its codec do not fit one another", where=where)
        return cls(scale_H2, mean_HX, basis_HXP, step_HP, wide, bool(unit_keys))

    def _check(self, *shapes: torch.Size) -> None:
        for shape in shapes:
            if len(shape) != 3 or shape[1:] != (self.heads, self.width) or shape != shapes[0]:
                raise UsageError(f"entries have the shape {tuple(shape)}, the codec (N, {self.heads}, {self.width})")

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, mean, basis, step = (
            each.to(device) for each in (self.scale_H2, self.mean_HX, self.basis_HXP, self.step_HP)
        )
        return scale, mean, basis, step


def _joined(keys_NHC: Tensor, values_NHC: Tensor) -> tuple[Tensor, Tensor]:
    """(x_NHX float64, scale_H2): keys beside values, each divided by its root mean square in its head."""
    if keys_NHC.dim() != 3 or keys_NHC.shape != values_NHC.shape:
        raise UsageError(f"keys {tuple(keys_NHC.shape)} and values {tuple(values_NHC.shape)} must be (N, H, C) both")
    if not len(keys_NHC):
        raise DataError("no memory entries to fit a codec on")
    halves = torch.stack([keys_NHC.detach().double(), values_NHC.detach().double()], -2)
    if not bool(halves.isfinite().all()):
        raise DataError("a memory entry is not finite and cannot be compressed")
    scale_H2 = halves.square().mean((0, -1)).sqrt().clamp(min=TINY)
    return (halves / scale_H2[..., None]).flatten(-2), scale_H2


def _shares(variance_HX: Tensor, size: int) -> tuple[int, int]:
    """(directions of 8 bits, directions kept) that lose least in `size` bytes, the same for every head.

    A number of unit variance loses 0.0001 in 8 bits and 0.0115 in 4 (Max 1960, uniform, Gaussian), and 1 if dropped.
    """
    both = variance_HX.shape[1]
    total_X = variance_HX.sum(0)
    best = (torch.inf, size, size)
    for wide in range(max(0, 2 * size - both), size + 1):
        kept = min(both - (both - wide) % 2, wide + 2 * (size - wide))
        lost = 1e-4 * total_X[:wide].sum() + 0.0115 * total_X[wide:kept].sum() + total_X[kept:].sum()
        best = min(best, (float(lost), wide, kept))
    return best[1:]


def _steps(numbers_HNP: Tensor, wide: int) -> Tensor:
    """The quantiser's step of every direction, the best of some between a third of the largest number and all of it."""
    most_P = torch.full((numbers_HNP.shape[-1],), float(NARROW), dtype=numbers_HNP.dtype, device=numbers_HNP.device)
    most_P[:wide] = WIDE
    largest_HP = numbers_HNP.abs().amax(1).clamp(min=TINY)
    best_HP, step_HP = torch.full_like(largest_HP, torch.inf), largest_HP
    for share in torch.linspace(1.0, 0.3, CLIPS).tolist():
        tried_HP = share * largest_HP / most_P
        rounded = (numbers_HNP / tried_HP[:, None]).round().clamp(-most_P, most_P) * tried_HP[:, None]
        lost_HP = (rounded - numbers_HNP).square().mean(1)
        step_HP = torch.where(lost_HP < best_HP, tried_HP, step_HP)
        best_HP = torch.minimum(lost_HP, best_HP)
    return step_HP
