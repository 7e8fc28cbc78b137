"""`cmrn eval`: how well a model reads held-out text, by domain."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.model import ModelOption, load_model
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from cmrn.config import TrainingConfig
    from cmrn.data.documents import Document
    from cmrn.inference.recall_evaluation import MemoryEvaluation, StoredText
    from cmrn.model import CMRN
    from cmrn.training.metrics import Evaluation

__all__ = ["EXAMPLES", "evaluate", "measure_text", "text_to_read"]

EXAMPLES = (
    "cmrn eval",
    "cmrn eval -m runs/quickstart --json",
    "cmrn eval --data builtin://english",
    "cmrn eval --data medical.jsonl --memory memory",
)


def evaluate(
    settings: Settings,
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files, as --data.")] = None,
    model: ModelOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="A .jsonl or .txt file; by default the run's held-out text."),
    ] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", metavar="DIR", help="A store: measure again with its texts as memory.")
    ] = None,
) -> None:
    """Measure bits per byte and routing purity on held-out text, by domain."""
    from cmrn.unseen import read_unseen

    network, place = load_model(model)
    documents, training = text_to_read([*(data or ()), *(files or ())], place)
    stored = None
    if memory is not None:
        stored, documents = _without_stored(settings, network, memory, documents)
    notice(settings, f"reading {len(documents)} documents with {place}")
    began = time.perf_counter()
    result = measure_text(network, documents, training)
    seconds = time.perf_counter() - began
    remembered = None if stored is None else _measure_memory(network, documents, training, stored)
    usual = read_unseen(place)
    unseen = {name: (scores.mean, None if usual is None else scores.unseen_share(usual))
              for name, scores in result.unowned.items()}  # fmt: skip
    if settings.json:
        write_json(
            {
                "bits_per_byte": dict(result.bits_per_byte),
                "tokens": result.tokens,
                "routing_purity": dict(result.routing_purity),
                **(
                    {}
                    if stored is None or remembered is None
                    else {
                        "memory": {
                            "bits_per_byte": dict(remembered.bits_per_byte),
                            "records": len(stored.texts),
                            "seconds": remembered.seconds,
                            "seconds_without": seconds,
                        }
                    }
                ),
                "unseen": {name: {"score": score, "documents": share} for name, (score, share) in unseen.items()},
            }
        )
    elif settings.quiet:
        write_line(f"{result.bits_per_byte['mean']:.4f}")
    else:
        from cmrn_cli.figures import domain_table

        console(settings).print(domain_table(result.bits_per_byte, result.routing_purity, unseen))
        notice(settings, f"{result.tokens:,} tokens scored")
        if remembered is not None:
            _show_memory(settings, result.bits_per_byte, remembered, seconds)


def text_to_read(named: list[str], place: str) -> tuple[tuple[Document, ...], TrainingConfig]:
    """The documents of the files named, else what the run of the model in `place` held out; and how to read them."""
    return _read_files(named) if named else _held_out(Path(place))


def measure_text(network: CMRN, documents: tuple[Document, ...], training: TrainingConfig) -> Evaluation:
    """Bits per byte and routing purity of the documents, by domain.

    Raises:
        DataError: there is nothing to score.
    """
    from cmrn.data.evaluation import EvaluationSet
    from cmrn.errors import DataError
    from cmrn.inference.generate import tokenizer_of
    from cmrn.training.device import resolve_precision
    from cmrn.training.metrics import evaluate as measure

    held_out = EvaluationSet.build(
        documents,
        tokenizer_of(network),
        network.config.domains,
        sequence_length=training.sequence_length,
        batch_size=training.batch_size,
    )
    device = next(network.parameters()).device
    result = measure(network, held_out, precision=resolve_precision(training.precision, device))
    if not result.bits_per_byte:
        raise DataError("there is nothing to score", hint="a text needs at least two tokens")
    return result


def _without_stored(
    settings: Settings, network: CMRN, folder: Path, documents: tuple[Document, ...]
) -> tuple[StoredText, tuple[Document, ...]]:
    """What a store says follows what, and the documents that do not stand in it.

    Raises:
        DataError: all of them do.
    """
    from cmrn.errors import DataError
    from cmrn.inference.recall_evaluation import StoredText, unstored
    from cmrn.memory.store import MemoryStore
    from cmrn_cli.memory_shared import warn_on

    with MemoryStore.open(folder, warn=warn_on(settings)) as store:
        stored = StoredText.read(network, store)
    kept = unstored(documents, stored.texts)
    if not kept:
        raise DataError("every document stands in the memory already", where=str(folder),
                        hint="evaluate on text that the memory does not hold: cmrn eval --data FILE")  # fmt: skip
    left = len(documents) - len(kept)
    if left:
        told = "a document is" if left == 1 else f"{left} documents are"
        notice(settings, f"{told} left out: a tenth or more stands in {folder}")
    return stored, kept


def _measure_memory(
    network: CMRN, documents: tuple[Document, ...], training: TrainingConfig, stored: StoredText
) -> MemoryEvaluation:
    """Bits per byte of the documents with a store's texts as memory."""
    from cmrn.data.evaluation import EvaluationSet
    from cmrn.inference.generate import tokenizer_of
    from cmrn.inference.recall_evaluation import evaluate_with_memory
    from cmrn.training.device import resolve_precision

    held_out = EvaluationSet.build(
        documents,
        tokenizer_of(network),
        network.config.domains,
        sequence_length=training.sequence_length,
        batch_size=training.batch_size,
    )
    precision = resolve_precision(training.precision, next(network.parameters()).device)
    return evaluate_with_memory(network, held_out, stored, bfloat16=precision == "bfloat16")


def _show_memory(
    settings: Settings, without: Mapping[str, float], remembered: MemoryEvaluation, seconds: float
) -> None:
    """Each domain with the memory, beside what it was without; how long both took."""
    for name, bits in remembered.bits_per_byte.items():
        change = bits / without[name] - 1 if without.get(name) else 0.0
        write_line(f"{sanitize(name, one_line=True)}: {bits:.4f} bits per byte with memory, {change:+.1%}")
    notice(settings, f"{remembered.seconds:.1f} s with memory, {seconds:.1f} s without")


def _read_files(names: list[str]) -> tuple[tuple[Document, ...], TrainingConfig]:
    """Every document of the files; paths start here, not at the data root."""
    from cmrn.config import SourceConfig, TrainingConfig
    from cmrn.data.sources import read_source
    from cmrn.errors import DataError

    documents: list[Document] = []
    for index, name in enumerate(names):
        before = len(documents)
        documents.extend(read_source(SourceConfig(path=name), index, Path.cwd()))
        if len(documents) == before:
            raise DataError("the file holds no text", where=name)
    return tuple(documents), TrainingConfig()


def _held_out(checkpoint: Path) -> tuple[tuple[Document, ...], TrainingConfig]:
    """What the run held out, by reading its data again as its recipe says.

    Raises:
        UsageError: the model is not in a run's folder, or nothing was held out.
    """
    from cmrn.data.corpus import load_corpus
    from cmrn.errors import UsageError
    from cmrn.recipe import load_recipe

    resolved = checkpoint.resolve().parent.parent / "recipe.resolved.yaml"
    if not resolved.is_file():
        raise UsageError("this model lies in no run, so its held-out text is unknown", where=str(checkpoint),
                         hint="name text to read: cmrn eval --data FILE")  # fmt: skip
    recipe = load_recipe(resolved)
    documents = load_corpus(recipe.data, None, recipe.seed).validation
    if not documents:
        raise UsageError("the run held nothing out", where=str(resolved), hint="cmrn eval --data FILE")
    return documents, recipe.training
