"""The six domains as token ids, kept in one file, so that a process of a benchmark starts in a second.

The file is a plain .npz of integer arrays, no pickle. Its name carries the hash of the texts and of the vocabulary's
size; the tokenizer is trained on the training text, balanced over domains, so the same texts give the same ids.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmrn.bench.report import Progress
from cmrn.data.encoding import Tokens, encode_documents
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset, PackedSource
from cmrn.errors import UsageError

__all__ = ["DOMAINS", "TokenisedText", "Windows", "cached_tokens", "domain_files", "prepare", "read"]

DOMAINS = ("medical", "math", "code", "legal", "literature", "general")
FOLDER = "data/corpora"
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Held-out tokens of one domain in rows of sequence_length: every token but a document's first is a target once.

    What a row repeats of the one before it, where windows overlap, is read and not a target.

    inputs, targets: (N,T) int64; targets are the tokens one place on, −100 where there is none. bytes: UTF-8 bytes of
    all targets' text.
    """

    inputs: Integers
    targets: Integers
    bytes: int


@dataclass(frozen=True)
class TokenisedText:
    """Training and held-out tokens of each domain. fingerprint: a hash of texts and vocabulary, twelve digits."""

    domains: tuple[str, ...]
    train: tuple[PackedSource, ...]
    held_out: tuple[tuple[Tokens, Integers], ...]
    byte_lengths: Integers
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """Tokens that the vocabulary holds."""
        return len(self.byte_lengths)

    def dataset(
        self, sequence_length: int, seed: int, owned: Sequence[str] = (), *, lanes: bool = False
    ) -> PackedDataset:
        """The training text, packed as training packs it, every domain with the same share of tokens.

        owned: the domains that experts own, which domain ids index into. lanes: whether rows read on from batch to
        batch.
        """
        labels = [owned.index(domain) if domain in owned else -1 for domain in self.domains]
        sources = [
            PackedSource(part.tokens, part.bounds, np.full_like(part.domains, label))
            for part, label in zip(self.train, labels, strict=True)
        ]
        shares = [1 / len(sources)] * len(sources)
        packing = LaneDataset if lanes else PackedDataset
        return packing(sources, shares, sequence_length, seed, f"{self.fingerprint}-{sequence_length}-{seed}")

    def windows(self, domain: int, length: int, repeated: int = 0) -> Windows:
        """A domain's documents in windows of `length` + 1 tokens, each of which begins with the last of the one before.

        repeated: how many more tokens of the one before it a window begins with, as context.
        """
        tokens, bounds = self.held_out[domain]
        rows, context = [], []
        for start, end in pairwise(bounds):
            document = tokens[start:end].astype(np.int64)
            for first in range(0, max(1, len(document) - 1 - repeated), length - repeated):
                row = np.full(length + 1, -1, dtype=np.int64)
                piece = document[first : first + length + 1]
                row[: len(piece)] = piece
                rows.append(row)
                context.append(repeated if first else 0)
        table = np.stack(rows)
        known = np.arange(length) < np.array(context)[:, None]
        targets = np.where(known, -1, table[:, 1:])
        size = int(self.byte_lengths[targets[targets >= 0]].sum())
        return Windows(table[:, :-1].clip(min=0), np.where(targets < 0, -100, targets), size)


def prepare(root: Path, cache: Path, vocab_size: int, progress: Progress, domains: Sequence[str] = DOMAINS) -> Path:
    """The file of the domains' tokens in `cache`; made from the texts under `root` where it is not there yet.

    Where the texts are absent, the only file of that vocabulary in the cache will do: texts need not travel.

    Raises:
        UsageError: there are neither texts nor such a file.
    """

    def make(path: Path, files: Sequence[Path]) -> None:
        progress(f"tokenising {len(domains)} domains with {vocab_size} tokens")
        _write(path, files, vocab_size, domains)

    return cached_tokens(root, cache, f"tokens-{vocab_size}", domains, make, str(vocab_size))


def cached_tokens(
    root: Path,
    cache: Path,
    stem: str,
    domains: Sequence[str],
    make: Callable[[Path, Sequence[Path]], None],
    salt: str = "",
) -> Path:
    """STEM-HASH.npz in `cache`, the hash of `salt` and the domains' files; `make` writes it where it is not there yet.

    Where the texts are absent, the only file of that stem will do: texts need not travel.

    Raises:
        UsageError: there are neither texts nor such a file.
    """
    files = domain_files(root, domains)
    missing = [file for file in files if not file.is_file()]
    if missing:
        found = sorted(cache.glob(f"{stem}-*.npz"))
        if len(found) == 1:
            return found[0]
        raise UsageError(
            f"no such file, nor its tokens in {cache}",
            where=str(missing[0]),
            hint="--data-root, or CMRN_DATA, names the folder that holds data/corpora or corpora",
        )
    digest = hashlib.sha256(salt.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    path = cache / f"{stem}-{digest.hexdigest()[:12]}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        make(path, files)
    return path


def domain_files(root: Path, domains: Sequence[str]) -> list[Path]:
    """The files of training and of held-out text under `root`, domain by domain."""
    folder = root / FOLDER if (root / FOLDER).is_dir() else root / "corpora"
    return [folder / domain / f"{part}.jsonl.gz" for domain in domains for part in ("train", "valid")]


def _write(path: Path, files: Sequence[Path], vocab_size: int, domains: Sequence[str]) -> None:
    from cmrn.config import SourceConfig
    from cmrn.data.corpus import sample_texts
    from cmrn.data.sources import read_source
    from cmrn.files import write_file
    from cmrn.tokenizer import CMRNTokenizer

    parts = [
        list(read_source(SourceConfig(path=str(file), domain=domains[index // 2]), index // 2, Path(".")))
        for index, file in enumerate(files)
    ]
    tokenizer = CMRNTokenizer.train(sample_texts([each for part in parts[::2] for each in part]), vocab_size)
    arrays: dict[str, npt.NDArray[np.generic]] = {"byte_lengths": tokenizer.byte_lengths}
    for index, documents in enumerate(parts):
        encoded = encode_documents(documents, tokenizer)
        name = f"{'valid' if index % 2 else 'train'}.{domains[index // 2]}"
        end = np.array([] if index % 2 else [tokenizer.eos_token_id], dtype=encoded[0].dtype)
        arrays[f"{name}.tokens"] = np.concatenate([piece for ids in encoded for piece in (ids, end)])
        lengths = [len(ids) + len(end) for ids in encoded]
        arrays[f"{name}.bounds"] = np.cumsum([0, *lengths]).astype(np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())


def read(path: Path) -> TokenisedText:
    """What `prepare` wrote.

    Raises:
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError("no such file of tokens", where=str(path), hint="cmrn bench quality --prepare-only")
    with np.load(path) as arrays:
        domains = tuple(name.split(".")[1] for name in arrays.files if name.startswith("train.") and "tokens" in name)
        train = tuple(
            PackedSource(
                arrays[f"train.{domain}.tokens"],
                arrays[f"train.{domain}.bounds"],
                np.full(len(arrays[f"train.{domain}.bounds"]) - 1, index, dtype=np.int64),
            )
            for index, domain in enumerate(domains)
        )
        held_out = tuple((arrays[f"valid.{domain}.tokens"], arrays[f"valid.{domain}.bounds"]) for domain in domains)
        return TokenisedText(domains, train, held_out, arrays["byte_lengths"], path.stem.rpartition("-")[2])
