"""Texts to vectors: MiniLM by default, from the weights that come with the installation, so that no network is needed.

Models that `Encoder` computes run in it, on every core; any other sentence-transformers model runs in that library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from cmrn.errors import CheckpointError, DataError, UsageError
from cmrn.files import read_json
from cmrn.layers import computes_bfloat16
from cmrn.memory.encoder import Encoder, batches_of, is_plain_bert
from cmrn.memory.entry import Fingerprint
from cmrn.memory.pretrained_encoders import DEFAULT_MODEL, FoundModel, find_model

__all__ = ["DEFAULT_MODEL", "Embedder", "Pending"]

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Vectors: TypeAlias = NDArray[np.float32]
Job: TypeAlias = tuple[list[int], Callable[[], Vectors]]

PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "In 1901 the first Nobel Prize in Physics was awarded to Wilhelm Röntgen.",
    "def add(a, b): return a + b",
    "Солнце — звезда. 太陽は恒星である。",
)
# The encoder reads a few hundred tokens; cutting a text first keeps a megabyte of it from being tokenised.
CHARACTERS_A_TOKEN = 64
HASHED = ("*.safetensors", "*.json", "1_Pooling/*.json", "2_Dense/*", "vocab.txt")


class _Engine(Protocol):
    dim: int
    threads: int

    def jobs(self, texts: Sequence[str]) -> list[Job]: ...


@dataclass(frozen=True)
class Pending:
    """Vectors on their way."""

    vectors_ND: Vectors
    parts: tuple[Future[None], ...]

    def result(self) -> Vectors:
        """The vectors, (N, D) float32, once they are all there."""
        for part in self.parts:
            part.result()
        return self.vectors_ND


class Embedder:
    """Turns texts into vectors of unit length, (N, D) float32, in the order of the texts.

    model: a folder or hub id of a sentence-transformers model; by default all-MiniLM-L6-v2 (384 numbers, 256 tokens).
    precision: of the matrix products; `auto` takes bfloat16 where the device has instructions for it.
    device: by default CUDA where there is any, else the CPU.
    threads: CPU cores to use; by default as many as torch has.

    Raises:
        CheckpointError: no such model, or one that cannot be read.
        UsageError: an unknown precision.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        precision: Precision = "auto",
        *,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        if precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"no precision {precision!r}", hint="auto, float32 or bfloat16")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        narrow = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(place))
        self.found = find_model(model)
        self.precision = "bfloat16" if narrow else "float32"
        self._engine: _Engine
        if is_plain_bert(self.found.folder):
            self._engine = _OwnEngine(self.found, torch.bfloat16 if narrow else torch.float32, place, threads)
        else:
            self._engine = _LibraryEngine(self.found, place)

    @property
    def name(self) -> str:
        """The model's name, as a store remembers it."""
        return self.found.name

    @property
    def dim(self) -> int:
        """Numbers a vector."""
        return self._engine.dim

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One unit vector a text, (N, D) float32.

        Raises:
            DataError: a text that is not valid Unicode.
        """
        jobs = self._engine.jobs(texts)
        if len(jobs) > 1:
            with self.running() as start:
                return start(texts).result()
        vectors_ND = np.zeros((len(texts), self.dim), np.float32)
        for rows, encode in jobs:
            vectors_ND[rows] = encode()
        return vectors_ND

    @contextmanager
    def running(self) -> Iterator[Callable[[Sequence[str]], Pending]]:
        """A function that begins to embed texts and returns at once; work begun is dropped if the block fails.

        Cores compute whole batches of their own: they wait for one another only at the end.
        """
        threads = self._engine.threads
        before = torch.get_num_threads()
        one_each = (torch.set_num_threads, (1,)) if threads > 1 else (None, ())
        workers = ThreadPoolExecutor(threads, "embed", *one_each)

        def start(texts: Sequence[str]) -> Pending:
            vectors_ND = np.zeros((len(texts), self.dim), np.float32)

            def fill(rows: list[int], encode: Callable[[], Vectors]) -> None:
                vectors_ND[rows] = encode()

            return Pending(vectors_ND, tuple(workers.submit(fill, *job) for job in self._engine.jobs(texts)))

        try:
            yield start
        finally:
            workers.shutdown(wait=True, cancel_futures=True)
            if threads > 1:
                torch.set_num_threads(before)

    def fingerprint(self) -> Fingerprint:
        """What a store keeps of this encoder, to refuse another."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> Fingerprint:
        vectors_ND = self.embed(PROBES)
        return Fingerprint(
            embedder=self.found.name,
            revision=self.found.revision,
            weights=_hash_of(self.found.folder),
            pooling="mean" if isinstance(self._engine, _OwnEngine) else "model",
            normalised=True,
            dim=self.dim,
            probes=tuple(zip(PROBES, vectors_ND, strict=True)),
        )


class _OwnEngine:
    """Plain BERT models, on every core."""

    def __init__(self, found: FoundModel, dtype: torch.dtype, device: torch.device, threads: int | None) -> None:
        self.encoder = Encoder.load(found.folder, dtype, device)
        self.dim = self.encoder.width
        self.threads = 1 if device.type == "cuda" else threads or torch.get_num_threads()
        self.tokenizer, self.most_tokens = _tokenizer_of(found.folder, len(self.encoder.positions_TD))

    def jobs(self, texts: Sequence[str]) -> list[Job]:
        longest = self.most_tokens * CHARACTERS_A_TOKEN
        try:
            tokens = [each.ids for each in self.tokenizer.encode_batch_fast([text[:longest] for text in texts])]
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError("a text is not valid Unicode", hint="remove its lone surrogates") from error
        rows = batches_of([len(text) for text in tokens], self.encoder.tokens_a_batch)
        return [(batch, self._job([tokens[row] for row in batch])) for batch in rows]

    def _job(self, tokens: list[list[int]]) -> Callable[[], Vectors]:
        return lambda: self.encoder.encode(tokens)


class _LibraryEngine:
    """Any other model, as sentence-transformers runs it."""

    threads = 1

    def __init__(self, found: FoundModel, device: torch.device) -> None:
        from sentence_transformers import SentenceTransformer

        try:
            self.model = SentenceTransformer(
                str(found.folder), device=str(device), local_files_only=True, model_kwargs={"use_safetensors": True}
            )
        # The library raises whatever its parts do; all of it means that there is no model to use.
        except Exception as error:
            raise CheckpointError(f"is no model that can be used: {error}", where=str(found.folder)) from error
        self.dim = self._encode([""]).shape[1]

    def jobs(self, texts: Sequence[str]) -> list[Job]:
        return [(list(range(len(texts))), lambda: self._encode(texts))] if texts else []

    def _encode(self, texts: Sequence[str]) -> Vectors:
        vectors_ND = self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors_ND, np.float32)


def _tokenizer_of(folder: Path, positions: int) -> tuple[Any, int]:
    """The tokenizer, which takes text for text, and the most tokens that it gives."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = folder / "sentence_bert_config.json"
        most = min(positions, int(read_json(settings)["max_seq_length"]) if settings.is_file() else positions)
    # The tokenizers library raises Exception itself for a file it cannot read.
    except Exception as error:
        raise CheckpointError(f"its tokenizer cannot be read: {error}", where=str(folder)) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    tokenizer.encode_special_tokens = True
    return tokenizer, most


def _hash_of(folder: Path) -> str:
    """BLAKE2b of everything that decides what a model computes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted({path for pattern in HASHED for path in folder.glob(pattern)}):
        with open(path, "rb") as file:
            part = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {part}\n".encode())
    return digest.hexdigest()
