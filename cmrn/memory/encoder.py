"""A BERT sentence encoder for reading only: mean of the last layer over a text's tokens, at unit length.

The same numbers as sentence-transformers' to rounding, from the same weights, for less: texts of like length share a
batch, a batch holds a fixed number of tokens, and each of the CPU's cores computes batches of its own.

Letters: B texts, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.errors import CheckpointError
from cmrn.files import read_json

__all__ = ["Encoder", "batches_of", "is_plain_bert"]

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
MODULES = ("Transformer", "Pooling", "Normalize")
# Batches of few different lengths: the CPU's kernels are made for each shape they meet.
LENGTH_STEP = 16
TOKENS_A_BATCH = 1024
TOKENS_A_BATCH_CUDA = 65536


@dataclass(frozen=True)
class _Dense:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Layer:
    """One block: attention and a two-layer map, each added to what it read and normalised after."""

    heads: int
    qkv: _Dense
    out: _Dense
    out_norm: _Norm
    up: _Dense
    down: _Dense
    down_norm: _Norm

    def __call__(self, x_BTD: Tensor, bias_B11T: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q_BHTd, k_BHTd, v_BHTd = self.qkv(x_BTD).view(shape).permute(2, 0, 3, 1, 4)
        read_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, attn_mask=bias_B11T)
        read_BTD = read_BHTd.transpose(1, 2).reshape(batch, length, width)
        x_BTD = self.out_norm(self.out(read_BTD).add_(x_BTD))
        return self.down_norm(self.down(F.gelu(self.up(x_BTD))).add_(x_BTD))


@dataclass(frozen=True)
class Encoder:
    """The weights, in the type and on the device that they compute in."""

    words_VD: Tensor
    positions_TD: Tensor
    norm: _Norm
    layers: tuple[_Layer, ...]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.words_VD.device

    @property
    def width(self) -> int:
        """Numbers a vector."""
        return self.words_VD.shape[1]

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
        """The encoder in a folder that `is_plain_bert` accepts.

        Raises:
            CheckpointError: the weights are missing, unreadable or not those of the configuration.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(folder / WEIGHTS)
            weights = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
            return cls._assemble(read_json(folder / CONFIG), weights, dtype, device)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot be read: {error}", where=str(folder / WEIGHTS)) from error
        except (KeyError, TypeError, RuntimeError) as error:
            message = f"its weights are not those of {CONFIG}: {error}"
            raise CheckpointError(message, where=str(folder / WEIGHTS)) from error

    @classmethod
    def _assemble(
        cls, config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> Encoder:
        eps = float(config["layer_norm_eps"])

        def dense(*names: str) -> _Dense:
            parts = [torch.cat([weights[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias")]
            return _Dense(parts[0].to(device, dtype), parts[1].to(device, dtype))

        def norm(name: str) -> _Norm:
            weight, bias = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
            return _Norm(weight.to(device, dtype), bias.to(device, dtype), eps)

        def layer(prefix: str) -> _Layer:
            return _Layer(
                int(config["num_attention_heads"]),
                dense(*(f"{prefix}.attention.self.{part}" for part in ("query", "key", "value"))),
                dense(f"{prefix}.attention.output.dense"),
                norm(f"{prefix}.attention.output"),
                dense(f"{prefix}.intermediate.dense"),
                dense(f"{prefix}.output.dense"),
                norm(f"{prefix}.output"),
            )

        kinds_KD = weights["embeddings.token_type_embeddings.weight"]
        positions_TD = weights["embeddings.position_embeddings.weight"] + kinds_KD[0]
        return cls(
            weights["embeddings.word_embeddings.weight"].to(device),
            positions_TD.to(device),
            norm("embeddings"),
            tuple(layer(f"encoder.layer.{index}") for index in range(int(config["num_hidden_layers"]))),
        )

    @torch.inference_mode()
    def encode(self, tokens: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One unit vector a text, (B, D) float32; every text has a token at least."""
        longest = -(-max(map(len, tokens)) // LENGTH_STEP) * LENGTH_STEP
        longest = min(longest, len(self.positions_TD))
        ids_BT = torch.tensor([[*text, *[0] * (longest - len(text))] for text in tokens], device=self.device)
        lengths_B1 = torch.tensor([[len(text)] for text in tokens], device=self.device)
        real_BT = torch.arange(longest, device=self.device) < lengths_B1
        dtype = self.norm.weight.dtype
        bias_B11T = torch.zeros(real_BT.shape, dtype=dtype, device=self.device).masked_fill_(~real_BT, -torch.inf)
        x_BTD = self.norm((self.words_VD[ids_BT] + self.positions_TD[:longest]).to(dtype))
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias_B11T[:, None, None])
        sum_BD = torch.bmm(real_BT[:, None].to(dtype), x_BTD)[:, 0].float()
        vectors: np.ndarray[Any, np.dtype[np.float32]] = F.normalize(sum_BD, dim=-1).cpu().numpy()
        return vectors

    @property
    def tokens_a_batch(self) -> int:
        """Tokens that one call of `encode` should hold."""
        return TOKENS_A_BATCH_CUDA if self.device.type == "cuda" else TOKENS_A_BATCH


def batches_of(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """The indices of texts of those lengths, longest first, in batches of at most `tokens` tokens with padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        longest = -(-lengths[order[start]] // LENGTH_STEP) * LENGTH_STEP
        end = start + max(1, tokens // longest)
        yield order[start:end]
        start = end


def is_plain_bert(folder: Path) -> bool:
    """Whether a sentence-transformers folder holds what `Encoder` computes: BERT, mean pooling, unit length."""
    if not all((folder / name).is_file() for name in (WEIGHTS, CONFIG, "modules.json", "tokenizer.json")):
        return False
    try:
        kinds = tuple(module["type"].rpartition(".")[2] for module in read_json(folder / "modules.json"))
        if kinds != MODULES or not (folder / "1_Pooling" / CONFIG).is_file():
            return False
        config, pooling = read_json(folder / CONFIG), read_json(folder / "1_Pooling" / CONFIG)
        asked = {key for key, value in pooling.items() if key.startswith("pooling_mode") and value is True}
        plain = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        given = {"position_embedding_type": "absolute", **config}
        return asked == {"pooling_mode_mean_tokens"} and all(given.get(key) == value for key, value in plain.items())
    except (AttributeError, KeyError, TypeError):
        return False
