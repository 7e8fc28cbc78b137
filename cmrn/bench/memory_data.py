"""What models with a memory are trained on and asked about: the six domains as tokens, quizzes, public questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from cmrn.bench.memory_text import Hay
from cmrn.bench.report import Progress
from cmrn.bench.text import DOMAINS, TokenisedText, domain_files, prepare, read
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedSource, pack
from cmrn.data.quizzes import Noise
from cmrn.data.sources import QUIZ, make_quizzes
from cmrn.errors import UsageError
from cmrn.recipe import Recipe
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["Material", "load_material", "training_set"]

HAY = "literature"


@dataclass(frozen=True)
class Material:
    """text: the six domains. questions: the folder of public questions, which may be absent."""

    text: TokenisedText
    tokenizer: CMRNTokenizer
    questions: Path

    @cached_property
    def hay(self) -> Hay:
        """Held-out literature."""
        return Hay(self.documents(HAY))

    @cached_property
    def noise(self) -> Noise:
        """Literature that is trained on, as text."""
        source = self.text.train[self.text.domains.index(HAY)]
        return Noise([self.tokenizer.decode(source.tokens[first:last]) for first, last in pairwise(source.bounds)])

    def documents(self, domain: str) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """The held-out documents of a domain."""
        tokens, bounds = self.text.held_out[self.text.domains.index(domain)]
        return [tokens[first:last].astype(np.int64) for first, last in pairwise(bounds)]


def load_material(root: Path, cache: Path, vocab_size: int, progress: Progress) -> Material:
    """Tokens and tokenizer, from `cache` or made from the texts under `root`; the cache alone will do.

    Raises:
        UsageError: neither texts nor cached tokens are there.
    """
    tokens = prepare(root, cache, vocab_size, progress)
    path = tokens.with_name(tokens.name.replace("tokens-", "tokenizer-")).with_suffix(".json")
    if not path.is_file():
        progress("training the tokenizer again, to keep it beside the tokens")
        _keep_tokenizer(path, root, vocab_size)
    tokenizer = CMRNTokenizer.from_pretrained(path)
    text = read(tokens)
    if not np.array_equal(text.byte_lengths, tokenizer.byte_lengths):
        raise UsageError("is not the tokenizer of the tokens beside it", where=str(path), hint="remove both")
    folders = [folder / "long_context" for folder in (root / "data", root, cache)]
    return Material(text, tokenizer, next((folder for folder in folders if folder.is_dir()), folders[0]))


def _keep_tokenizer(path: Path, root: Path, vocab_size: int) -> None:
    from cmrn.config import SourceConfig
    from cmrn.data.corpus import sample_texts
    from cmrn.data.sources import read_source
    from cmrn.files import write_file

    documents = [
        document
        for index, file in enumerate(domain_files(root, DOMAINS)[::2])
        for document in read_source(SourceConfig(path=str(file), domain=DOMAINS[index]), index, Path("."))
    ]
    tokenizer = CMRNTokenizer.train(sample_texts(documents), vocab_size)
    write_file(path, tokenizer.to_json().encode())


def training_set(recipe: Recipe, material: Material, seed: int, without: Sequence[str] = ()) -> LaneDataset:
    """What the recipe trains on, its text taken from the tokens, but for the domains `without`.

    Noise for quizzes is the literature that is trained on, whatever the recipe names.

    Raises:
        UsageError: a source is neither a quiz nor of one of the six domains.
    """
    text, owned = material.text, recipe.model.domains
    sources, weights = [], []
    for number, source in enumerate(recipe.data.sources):
        if source.path.startswith(QUIZ):
            made = list(make_quizzes(source, number, material.noise))
            sources.append(pack(made, material.tokenizer, {}, [material.tokenizer.eos_token_id]))
        elif source.domain in text.domains:
            if source.domain in without:
                continue
            part = text.train[text.domains.index(source.domain)]
            label = owned.index(source.domain) if source.domain in owned else -1
            sources.append(PackedSource(part.tokens, part.bounds, np.full_like(part.domains, label)))
        else:
            raise UsageError("neither a quiz nor one of the six domains", where=f"data.sources[{number}]")
        weights.append(source.weight)
    length = recipe.training.sequence_length
    name = f"{text.fingerprint}-{length}-{seed}-{'-'.join(without)}"
    return LaneDataset(sources, [weight / sum(weights) for weight in weights], length, seed, name)
