"""`cmrn bench memory`: what is recalled of a long text, and at what cost, beside models without such a memory.

The models are trained first, on the recipe's text and quizzes, unless the cache holds them; no case is trained for on
its own texts: questions, their places and the literature around them are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from cmrn.bench.babi import babi_questions, read_stories
from cmrn.bench.knn_lm import Mixture
from cmrn.bench.memory_compression import RoundTrip
from cmrn.bench.memory_data import Material, load_material
from cmrn.bench.memory_documents import LONG, UNSCORED, bits, document_nats, scored_bytes
from cmrn.bench.memory_domain import DOMAIN, domain_figures
from cmrn.bench.memory_figures import Figure, Figures, rows_of
from cmrn.bench.memory_models import MODELS, OURS, WINDOW, Subject, model_specs, subject
from cmrn.bench.memory_mqar import recall_figures
from cmrn.bench.memory_reading import answered
from cmrn.bench.memory_speed import speed_figures
from cmrn.bench.memory_text import Question
from cmrn.bench.passkey import DEPTHS, passkey_questions
from cmrn.bench.report import Progress, Report, describe_device, versions
from cmrn.bench.retrieval import pair_questions, read_pairs
from cmrn.errors import UsageError
from cmrn.recipe import Recipe, load_recipe
from cmrn.training.device import resolve_device

__all__ = ["CASES", "MemoryOptions", "run"]

OFF = "ours, memory off"
CODED = "ours, entries coded"
KNN = "ours, memory off, kNN-LM"
LONG_DOMAINS = ("literature", "math", "code")
LENGTHS = {"cuda": {"passkey": (100_000, 1_000_000), "babi": (131_072, 1_000_000), "speed": (100_000, 1_000_000),
                    "compression": (32_768,)},
           "cpu": {"passkey": (4096,), "babi": (4096,), "speed": (10_000, 100_000),
                   "compression": (4096,)}}  # fmt: skip
QUESTIONS = {"cuda": {"babi": 100, "pairs": 500}, "cpu": {"babi": 10, "pairs": 10}}


@dataclass(frozen=True)
class MemoryOptions:
    """What to measure and where.

    variants: of the models, all by default. lengths: of the texts, in tokens; count: of the questions, where a case
    has no number of its own. without a value the case and the device decide. overrides: of the recipe. cache: trained
    models and tokens; results: the file that figures collect in.
    """

    device: str | None = None
    cases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    recipe: str = "long"
    lengths: tuple[int, ...] = ()
    count: int | None = None
    seed: int = 1
    overrides: tuple[str, ...] = ()
    data_root: Path = Path(".")
    cache: Path = Path("runs/bench")
    results: Path | None = None
    prepare_only: bool = False


@dataclass(frozen=True)
class Bench:
    """What every case is given."""

    options: MemoryOptions
    recipe: Recipe
    material: Material
    device: torch.device
    progress: Progress

    def lengths(self, case: str) -> tuple[int, ...]:
        """Tokens of a case's texts."""
        return self.options.lengths or LENGTHS[self.device.type][case]

    def count(self, case: str) -> int:
        """Questions of a case."""
        return self.options.count or QUESTIONS[self.device.type][case]

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """The models asked for; ours twice, the second time with its memory off."""
        specs = model_specs(self.recipe, self.material.text.fingerprint, self.options.seed)
        names = self.options.variants or MODELS
        found = {}
        for name in names:
            made = subject(specs[name], self.recipe, self.material, self.options.cache, self.device, self.progress)
            found[name] = made
            if made.memory:
                found[OFF] = replace(made, name=OFF, memory=False)
        return found


def run(options: MemoryOptions, progress: Progress) -> Report:
    """Measure the cases, then one table of all that the results file holds of them.

    Raises:
        UsageError: an unknown case or variant, or texts or questions are absent.
    """
    cases = options.cases or tuple(CASES)
    _check("case", cases, tuple(CASES))
    _check("variant", options.variants, MODELS)
    device = resolve_device(options.device)
    recipe = load_recipe(options.recipe, options.overrides)
    material = load_material(options.data_root, options.cache, recipe.model.vocab_size, progress)
    if options.prepare_only:
        return Report("memory", "none", (), {}, (f"tokens and tokenizer are in {options.cache}",))
    bench, figures = Bench(options, recipe, material, device, progress), Figures(options.results)
    for case in cases:
        for figure in CASES[case](bench):
            progress(f"{figure.name}: {figure.value:.4g} {figure.unit} ({figure.model})")
            figures.add(figure)
    settings = {"recipe": options.recipe, "seed": options.seed, "overrides": list(options.overrides), **versions()}
    return Report("memory", describe_device(str(device)), rows_of(figures.of(cases), OURS), settings, NOTES)


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(f"no {what} {unknown[0]!r}", where=f"--{what}", hint=f"there are {', '.join(known)}")


def _ask(bench: Bench, case: str, name: str, questions: Sequence[Question], detail: bool = False) -> Iterator[Figure]:
    """The share of the questions that each model answers."""
    for each in bench.subjects.values():
        right = answered(each.model, questions, each.precision, memory=each.memory)
        told: dict[str, object] = {"questions": len(questions)}
        if detail:
            per_depth = len(questions) // len(DEPTHS)
            told["right_by_depth"] = [sum(right[i : i + per_depth]) for i in range(0, len(right), per_depth)]
        yield Figure(case, name, each.name, each.key, sum(right) / len(right), "answered", detail=told)


def _passkey(bench: Bench) -> Iterator[Figure]:
    for length in bench.lengths("passkey"):
        questions = passkey_questions(bench.material.hay, length, bench.material.tokenizer, bench.options.seed)
        yield from _ask(bench, "passkey", f"passkey, {length:,} tokens, ten depths", questions, detail=True)


def _babi(bench: Bench) -> Iterator[Figure]:
    stories = read_stories(bench.material.questions, 1)
    for length in bench.lengths("babi"):
        questions = babi_questions(
            stories, bench.material.hay, length, bench.material.tokenizer, bench.options.seed, bench.count("babi")
        )
        yield from _ask(bench, "babi", f"bAbI 1 in {length:,} tokens of literature", questions)


def _pairs(bench: Bench) -> Iterator[Figure]:
    pairs = read_pairs(bench.material.questions)
    questions = pair_questions(pairs, bench.material.tokenizer, bench.options.seed, bench.count("pairs"))
    yield from _ask(bench, "pairs", "key-value retrieval, 75 keys", questions)


def _documents(bench: Bench) -> Iterator[Figure]:
    """Bits per byte of long held-out documents; with kNN-LM at its best settings on the very text."""
    for domain in LONG_DOMAINS:
        documents = [each for each in bench.material.documents(domain) if len(each) > LONG]
        documents = documents[: bench.options.count]
        if not documents:
            continue
        size = scored_bytes(documents, bench.material.text.byte_lengths)
        name = f"{domain}: long documents after {UNSCORED:,} tokens"
        for each in bench.subjects.values():
            mixture = Mixture() if each.name == OFF else None
            found = [
                document_nats(each.model, document, each.precision, memory=each.memory, mixture=mixture)
                for document in documents
            ]
            told = {"documents": len(documents), "bytes": size}
            value = bits(sum(nats.plain for nats in found), size)
            yield Figure("documents", name, each.name, each.key, value, "bits/byte", "smaller", told)
            if mixture:
                best = min(mixture.settings, key=lambda setting: sum(nats.mixed[setting] for nats in found))
                value = bits(sum(nats.mixed[best] for nats in found), size)
                told_knn = {**told, "share": best[0], "temperature": best[1]}
                yield Figure("documents", name, KNN, each.key, value, "bits/byte", "smaller", told_knn)


def _speed(bench: Bench) -> Iterator[Figure]:
    for each in bench.subjects.values():
        if each.name in (OURS, OFF):
            yield from speed_figures(each, bench.material.hay, bench.lengths("speed"), bench.device)


def _mqar(bench: Bench) -> Iterator[Figure]:
    options = bench.options
    steps = next((int(each.partition("=")[2]) for each in options.overrides if "max_steps" in each), None)
    yield from recall_figures(options.variants or MODELS, steps, options.seed, bench.device, bench.progress)


def _domain(bench: Bench) -> Iterator[Figure]:
    spec = model_specs(bench.recipe, bench.material.text.fingerprint, bench.options.seed)[OURS]
    unread = subject(
        spec, bench.recipe, bench.material, bench.options.cache, bench.device, bench.progress, without=(DOMAIN,)
    )
    yield from domain_figures(unread, bench.material)


def _compression(bench: Bench) -> Iterator[Figure]:
    """Ours again with every entry coded, in texts that the memory holds whole, beside its entries as they are."""
    ours = bench.subjects.get(OURS)
    if ours is None:
        return
    trips = RoundTrip()
    told: dict[str, object] = {}
    for length in bench.lengths("compression"):
        questions = passkey_questions(bench.material.hay, length, bench.material.tokenizer, bench.options.seed)
        name = f"passkey, {length:,} tokens, entries plain and coded"
        for model, after in ((OURS, None), (CODED, trips)):
            right = answered(ours.model, questions, ours.precision, memory=True, after_piece=after)
            yield Figure("compression", name, model, ours.key, sum(right) / len(right), "answered", detail=told)
    capacity = ours.model.config.episodic_memory  # type: ignore[union-attr]
    fitting = [each for name in LONG_DOMAINS for each in bench.material.documents(name) if LONG < len(each) < capacity]
    fitting = fitting[: bench.options.count]
    if fitting:
        size = scored_bytes(fitting, bench.material.text.byte_lengths)
        for model, after in ((OURS, None), (CODED, trips)):
            nats = [document_nats(ours.model, each, ours.precision, memory=True, after_piece=after) for each in fitting]
            value = bits(sum(each.plain for each in nats), size)
            name = f"long documents of at most {capacity:,} tokens"
            yield Figure("compression", name, model, ours.key, value, "bits/byte", "smaller", told)
    coded, plain = trips.bytes
    for model, value in ((OURS, plain), (CODED, coded)):
        yield Figure("compression", "an entry of one block", model, ours.key, value, "bytes", "smaller")


CASES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "passkey": _passkey,
    "babi": _babi,
    "pairs": _pairs,
    "mqar": _mqar,
    "documents": _documents,
    "domain": _domain,
    "speed": _speed,
    "compression": _compression,
}
"""Each case's figures, model by model."""

NOTES = (
    f"{OFF}: the same weights, long-term memory neither written nor read. {WINDOW}: as many active parameters, trained "
    "on the same rows.",
    "A question counts as answered where every token of the answer is the likeliest, as greedy decoding has it.",
    "kNN-LM: 256 neighbours among the document's own earlier tokens; its two settings are the best on the very text.",
)
