"""From a recipe to a trained model: corpus, tokenizer, data, model, trainer, and the record of what was run.

run/  recipe.resolved.yaml  run.json  tokenizer.json  metrics.jsonl  checkpoints/step-N/
"""

from __future__ import annotations

import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cmrn import __version__
from cmrn.config import CMRNConfig
from cmrn.data.corpus import check_domains, load_corpus, sample_texts
from cmrn.data.documents import Corpus
from cmrn.data.evaluation import EvaluationSet
from cmrn.data.lanes import LaneDataset
from cmrn.data.packing import PackedDataset
from cmrn.errors import UsageError
from cmrn.files import write_file, writer_lock
from cmrn.model import CMRN
from cmrn.recipe import Recipe, recipe_to_yaml
from cmrn.tokenizer import CMRNTokenizer
from cmrn.training.checkpoint import checkpoints_of, newest_whole
from cmrn.training.device import resolve_device, resolve_precision
from cmrn.training.progress import Notice, Reporter, SilentReporter
from cmrn.training.random_state import seed_all
from cmrn.training.trainer import CMRNTrainer, TrainingResult

__all__ = ["choose_run", "train_recipe"]

RESOLVED = "recipe.resolved.yaml"
RECORD = "run.json"
TOKENIZER = "tokenizer.json"
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "pydantic")


def train_recipe(
    recipe: Recipe,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    data_root: Path | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train what the recipe describes and return where it is and what it is worth.

    run_dir: by default the recipe's `output`, or the next free `output-2`, `output-3`, … where it holds a run; with
    `resume`, the newest of these. Nothing is written before the data has been read and checked.

    Raises:
        UsageError: a file or a domain is missing, run_dir holds a run, or the recipe is not the one to resume.
        DataError: the text cannot be used.
        CMRNError: as `CMRNTrainer.train`.
    """
    reporter = reporter or SilentReporter()
    place = resolve_device(device)
    precision = resolve_precision(recipe.training.precision, place)
    run = choose_run(Path(recipe.output), run_dir, resume, reporter)
    corpus = load_corpus(recipe.data, data_root, recipe.seed)
    check_domains(recipe.model.domains, corpus)
    reporter.notice(Notice(_describe(corpus)))
    for domain in corpus.report.unvalidated:
        message = f"too little text to hold any out: {domain or 'unlabelled'} will not be evaluated"
        reporter.notice(Notice(message, "warning"))
    begun = resume and newest_whole(run)[0] is not None
    tokenizer = _tokenizer(recipe, corpus, run if begun else None)
    config = _fit_vocabulary(recipe, tokenizer)
    length, batch = recipe.training.sequence_length, recipe.training.batch_size
    packing = LaneDataset if recipe.training.carry_states else PackedDataset
    train = packing.build(
        corpus.train, tokenizer, config.domains, length, corpus.weights, recipe.seed, recipe.data.phrase_share
    )
    held_out = EvaluationSet.build(corpus.validation, tokenizer, config.domains, length, batch)
    seed_all(recipe.seed)
    model = CMRN(config, tokenizer)
    trainer = CMRNTrainer(
        model,
        recipe.training,
        run_dir=run,
        seed=recipe.seed,
        reporter=reporter,
        device=device,
        provenance={"data": recipe.data.model_dump(mode="json"), "tokenizer": recipe.tokenizer.model_dump(mode="json")},
        resume_hint=f"cmrn train {run / RESOLVED} --resume",
    )
    if not begun:
        training = recipe.training.model_copy(update={"precision": precision})
        resolved = recipe.model_copy(update={"output": str(run), "model": config, "training": training})
        _write_record(run, resolved, model, place)
    size = sum(parameter.numel() for parameter in model.parameters())
    threads = f", {torch.get_num_threads()} threads" if place.type == "cpu" else ""
    reporter.notice(Notice(f"{size / 1e6:.1f} M parameters on {place.type}{threads}, {precision}, in {run}"))
    return trainer.train(train, held_out, resume)


def choose_run(output: Path, run_dir: Path | None, resume: bool, reporter: Reporter) -> Path:
    """The folder to train in.

    Raises:
        UsageError: run_dir holds a run and is not to be resumed, or a file is in the way.
    """
    chosen = run_dir if run_dir is not None else _of_family(output, resume)
    if chosen.exists() and not chosen.is_dir():
        raise UsageError("is a file, not a folder", where=str(chosen), hint="--out another folder")
    if run_dir is not None and not resume and _holds_run(run_dir):
        raise UsageError("holds a run already", where=str(run_dir), hint="--resume goes on with it; or --out another")
    if run_dir is None and chosen != output and not resume:
        reporter.notice(Notice(f"{output} holds a run already: this one goes to {chosen}"))
    return chosen


def _of_family(output: Path, resume: bool) -> Path:
    """Of `output`, `output-2`, …: the last that holds a run where one is to be resumed, else the first free one."""
    number = 1
    while _holds_run(_member(output, number)):
        number += 1
    if not resume:
        return _member(output, number)
    pattern = re.compile(re.escape(output.name) + r"-([1-9]\d{0,8})")
    siblings = output.parent.iterdir() if output.parent.is_dir() else iter(())
    numbers = [int(name[1]) for path in siblings if (name := pattern.fullmatch(path.name)) and _holds_run(path)]
    return _member(output, max(numbers, default=1))


def _member(output: Path, number: int) -> Path:
    return output if number == 1 else output.with_name(f"{output.name}-{number}")


def _holds_run(folder: Path) -> bool:
    return (folder / RECORD).exists() or bool(checkpoints_of(folder))


def _tokenizer(recipe: Recipe, corpus: Corpus, begun: Path | None) -> CMRNTokenizer:
    """The run's own tokenizer where it has begun, else the one the recipe names, else one trained on its text."""
    if begun is not None and (begun / TOKENIZER).is_file():
        return CMRNTokenizer.from_pretrained(begun / TOKENIZER)
    if recipe.tokenizer.path is not None:
        return CMRNTokenizer.from_pretrained(recipe.tokenizer.path)
    return CMRNTokenizer.train(sample_texts(corpus.train), recipe.tokenizer.vocab_size)


def _fit_vocabulary(recipe: Recipe, tokenizer: CMRNTokenizer) -> CMRNConfig:
    """The model's configuration with a vocabulary that the tokenizer fits in.

    A vocabulary that the recipe did not state apart from the tokenizer's follows a loaded tokenizer.
    """
    model = recipe.model
    if recipe.tokenizer.path is not None and model.vocab_size == recipe.tokenizer.vocab_size:
        return model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    if tokenizer.vocab_size > model.vocab_size:
        raise UsageError(
            f"model.vocab_size is {model.vocab_size}, but the tokenizer has {tokenizer.vocab_size} tokens",
            hint=f"model.vocab_size={tokenizer.vocab_size}",
        )
    return model


def _write_record(run: Path, recipe: Recipe, model: CMRN, device: torch.device) -> None:
    """Write what identifies the run: the resolved recipe, the tokenizer, and where and with what it runs."""
    record = {
        "seed": recipe.seed,
        "precision": recipe.training.precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {"cmrn": __version__, **{name: _version(name) for name in PACKAGES}},
    }
    with writer_lock(run):
        write_file(run / RESOLVED, recipe_to_yaml(recipe).encode())
        if model.tokenizer is not None:
            write_file(run / TOKENIZER, model.tokenizer.to_json().encode())
        write_file(run / RECORD, json.dumps(record, indent=1).encode() + b"\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(corpus: Corpus) -> str:
    """One line: how much text of each domain there is to train on, and how many duplicates were left out."""
    parts = [
        f"{row.domain or 'unlabelled'} {row.train_bytes / 1e6:.1f} MB in {row.train_documents} documents"
        for row in corpus.report.domains
    ]
    removed = corpus.report.duplicates
    return f"text: {', '.join(parts)}" + (f"; {removed} near-duplicates left out" if removed else "")
