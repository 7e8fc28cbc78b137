"""Texts for adding a domain: the tokenizer has read all domains but the one that is to be added.

What a base was trained without, its vocabulary must not know either. The tokens are kept in one .npz file of integer
arrays, as those of `cmrn.bench.text`, with the vocabulary beside them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cmrn.bench.report import Progress
from cmrn.bench.text import DOMAINS, cached_tokens
from cmrn.data.encoding import Tokens
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset, PackedSource
from cmrn.errors import UsageError
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["DomainText", "prepare_without", "read_domains"]

Integers = npt.NDArray[np.int64]
Part = tuple[Tokens, Integers]
PIECE, PIECES = 160, 3_000


@dataclass(frozen=True)
class DomainText:
    """Encoded text of every domain. train, held_out: tokens and where documents begin and the last ends."""

    train: dict[str, Part]
    held_out: dict[str, Part]
    byte_lengths: Integers

    def dataset(
        self,
        owned: Sequence[str],
        names: Sequence[str],
        length: int,
        seed: int,
        shares: Sequence[float] | None = None,
        *,
        lanes: bool = True,
    ) -> PackedDataset:
        """Training text of some domains, with equal shares by default. owned: what domain ids index into."""
        sources = []
        for name in names:
            tokens, bounds = self.train[name]
            label = owned.index(name) if name in owned else -1
            sources.append(PackedSource(tokens, bounds, np.full(len(bounds) - 1, label, dtype=np.int64)))
        packing = LaneDataset if lanes else PackedDataset
        return packing(sources, shares or [1 / len(names)] * len(names), length, seed, "-".join(names))

    def pieces(self, names: Sequence[str], length: int, seed: int) -> PackedDataset:
        """Short pieces of the training text of some domains, drawn by length, each a document of its own."""
        sources = []
        for index, name in enumerate(names):
            tokens, bounds = self.train[name]
            draw, sizes = np.random.default_rng([seed, index]), np.diff(bounds)
            chosen = draw.choice(len(sizes), PIECES, p=sizes / sizes.sum())
            starts = bounds[chosen] + (draw.random(PIECES) * np.maximum(1, sizes[chosen] - PIECE)).astype(np.int64)
            ends = np.minimum(starts + PIECE, bounds[chosen + 1])
            cut = np.concatenate([tokens[start:end] for start, end in zip(starts, ends, strict=True)])
            edges = np.cumsum([0, *(ends - starts)]).astype(np.int64)
            sources.append(PackedSource(cut, edges, np.full(PIECES, -1, dtype=np.int64)))
        return PackedDataset(sources, [1 / len(names)] * len(names), length, seed, f"pieces-{'-'.join(names)}")

    def evaluation(self, owned: Sequence[str], length: int, batch: int) -> EvaluationSet:
        """Held-out text of all domains."""
        pad = CMRNTokenizer.pad_token_id
        return EvaluationSet.packed(self.held_out, self.byte_lengths, pad, owned, length, batch)

    def sample(self, names: Sequence[str], owned: Sequence[str], length: int, batch: int, tokens: int) -> EvaluationSet:
        """About so many tokens of the training text of each domain, whole documents drawn at random."""
        chosen = {}
        for index, name in enumerate(names):
            ids, bounds = self.train[name]
            lengths = np.diff(bounds)
            order = np.random.default_rng(index).permutation(len(lengths))
            taken = order[: 1 + int(np.searchsorted(np.cumsum(lengths[order]), tokens))]
            pieces = [ids[bounds[each] : min(bounds[each] + tokens, bounds[each + 1])] for each in taken]
            ends = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
            chosen[name] = (np.concatenate(pieces).astype(np.int64), ends)
        return EvaluationSet.packed(chosen, self.byte_lengths, CMRNTokenizer.pad_token_id, owned, length, batch)


def prepare_without(root: Path, cache: Path, vocab_size: int, left_out: str, progress: Progress) -> Path:
    """The file of tokens for adding `left_out`, in `cache`; made from the texts under `root` where it is not there yet.

    Where the texts are absent, the only file for that domain and vocabulary will do: texts need not travel.

    Raises:
        UsageError: there is no such domain, or there are neither texts nor such a file.
    """
    if left_out not in DOMAINS:
        raise UsageError(f"no domain {left_out!r}", where="--domain", hint=", ".join(DOMAINS))

    def make(path: Path, files: Sequence[Path]) -> None:
        progress(f"tokenising {len(DOMAINS)} domains with a vocabulary that has not read {left_out}")
        _write(path, files, vocab_size, left_out)

    return cached_tokens(root, cache, f"without-{left_out}-{vocab_size}", DOMAINS, make)


def _write(path: Path, files: Sequence[Path], vocab_size: int, left_out: str) -> None:
    from cmrn.config import SourceConfig
    from cmrn.data.corpus import sample_texts
    from cmrn.data.encoding import encode_documents
    from cmrn.data.sources import read_source
    from cmrn.files import write_file

    names = [DOMAINS[index // 2] for index in range(len(files))]
    parts = [
        list(read_source(SourceConfig(path=str(file), domain=name), index // 2, Path(".")))
        for index, (file, name) in enumerate(zip(files, names, strict=True))
    ]
    known = [each for part, name in zip(parts[::2], DOMAINS, strict=True) if name != left_out for each in part]
    tokenizer = CMRNTokenizer.train(sample_texts(known), vocab_size)
    arrays: dict[str, npt.NDArray[np.generic]] = {"byte_lengths": tokenizer.byte_lengths}
    for index, (documents, name) in enumerate(zip(parts, names, strict=True)):
        encoded = encode_documents(documents, tokenizer)
        kind = "valid" if index % 2 else "train"
        end = np.array([] if index % 2 else [tokenizer.eos_token_id], dtype=encoded[0].dtype)
        arrays[f"{kind}.{name}.tokens"] = np.concatenate([piece for ids in encoded for piece in (ids, end)])
        arrays[f"{kind}.{name}.bounds"] = np.cumsum([0, *(len(ids) + len(end) for ids in encoded)]).astype(np.int64)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())


def read_domains(path: Path) -> DomainText:
    """What `prepare_without` wrote."""
    with np.load(path) as arrays:
        train, held_out = (
            {name: (arrays[f"{kind}.{name}.tokens"], arrays[f"{kind}.{name}.bounds"]) for name in DOMAINS}
            for kind in ("train", "valid")
        )
        return DomainText(train, held_out, arrays["byte_lengths"])
