"""`cmrn eval`: how well a model reads held-out text, by domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, write_line
from cmrn_cli.model import ModelOption, load_model
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from cmrn.config import TrainingConfig
    from cmrn.data.documents import Document
    from cmrn.model import CMRN
    from cmrn.training.metrics import Evaluation

__all__ = ["EXAMPLES", "evaluate", "measure_text", "text_to_read"]

EXAMPLES = (
    "cmrn eval",
    "cmrn eval -m runs/quickstart --json",
    "cmrn eval --data builtin://english",
)


def evaluate(
    settings: Settings,
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files, as --data.")] = None,
    model: ModelOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="A .jsonl or .txt file; by default the run's held-out text."),
    ] = None,
) -> None:
    """Measure bits per byte and routing purity on held-out text, by domain."""
    network, place = load_model(model)
    documents, training = text_to_read([*(data or ()), *(files or ())], place)
    notice(settings, f"reading {len(documents)} documents with {place}")
    result = measure_text(network, documents, training)
    if settings.json:
        write_json(
            {
                "bits_per_byte": dict(result.bits_per_byte),
                "tokens": result.tokens,
                "routing_purity": dict(result.routing_purity),
            }
        )
    elif settings.quiet:
        write_line(f"{result.bits_per_byte['mean']:.4f}")
    else:
        from cmrn_cli.figures import domain_table

        console(settings).print(domain_table(result.bits_per_byte, result.routing_purity))
        notice(settings, f"{result.tokens:,} tokens scored")


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
