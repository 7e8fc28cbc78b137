"""The models of the memory cases: ours, ours without its long-term tier, and a windowed Transformer of its size.

Each is trained once, on the same text in the same order for as many steps, and kept in the cache by what it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cmrn.bench.counts import llama_of_equal_active
from cmrn.bench.llama import Llama
from cmrn.bench.memory_data import Material, training_set
from cmrn.bench.report import Progress
from cmrn.bench.runs import RunSpec
from cmrn.bench.train import train_steps
from cmrn.bench.variants import build_model, cmrn_spec, llama_spec, sizes
from cmrn.config import TrainingConfig
from cmrn.data.packing import Batch
from cmrn.errors import CheckpointError
from cmrn.model import CMRN
from cmrn.recipe import Recipe
from cmrn.training.device import Precision, resolve_precision
from cmrn.training.random_state import seed_all

__all__ = ["MODELS", "Subject", "model_specs", "subject"]

OURS, WITHOUT, WINDOW = "ours", "ours, trained without", "windowed Transformer"
MODELS = (OURS, WITHOUT, WINDOW)
WINDOWED = 1024


@dataclass(frozen=True)
class Subject:
    """A trained model under its name. memory: whether it has a long-term one."""

    name: str
    key: str
    model: CMRN | Llama
    memory: bool
    precision: Precision


def model_specs(recipe: Recipe, data: str, seed: int, window: int = WINDOWED) -> dict[str, RunSpec]:
    """The runs by name. data: the fingerprint of the text; the recipe's mixture of it counts too.

    window: of the Transformer, in every layer, which keeps documents apart as ours does.
    """
    data = f"{data}-{hashlib.sha256(recipe.data.model_dump_json().encode()).hexdigest()[:12]}"
    training = recipe.training.model_dump(mode="json")
    plain = {**training, "memory_reach": 0, "memory_top_from": None}
    ours = cmrn_spec(recipe.model)
    without = cmrn_spec(recipe.model, episodic_memory=0)
    active = sizes(without)["active"]
    llama = llama_of_equal_active(
        recipe.model, active, window=window, mask_documents=True, dropout=recipe.model.dropout
    )
    models = {OURS: (ours, training), WITHOUT: (without, plain), WINDOW: (llama_spec(llama), plain)}
    return {name: RunSpec("long", name, seed, model, fields, data) for name, (model, fields) in models.items()}


def subject(
    spec: RunSpec,
    recipe: Recipe,
    material: Material,
    cache: Path,
    device: torch.device,
    progress: Progress,
    without: Sequence[str] = (),
) -> Subject:
    """The model of a run, from the cache or trained now. without: domains that it never sees.

    Raises:
        CheckpointError: the cached weights are not those of such a model.
    """
    config = TrainingConfig.model_validate(spec.training)
    precision = resolve_precision(config.precision, device)
    seed_all(spec.seed)
    model = build_model(spec.model).to(device)
    key = "-".join((spec.key, *without))
    path = cache / f"memory-{key}.safetensors"
    if path.is_file():
        _load(model, path)
    else:
        progress(f"{spec.variant}: making quizzes")
        fitting = recipe.model_copy(update={"training": config})
        dataset = training_set(fitting, material, spec.seed, without)

        def batches() -> Iterator[Batch]:
            cursor = dataset.start()
            while True:
                batch, cursor = dataset.batch(cursor, config.batch_size)
                yield batch

        seconds, curve = train_steps(model, config, precision, batches(), progress)
        progress(f"{spec.variant}: {seconds:.0f} s of training, loss {curve[-1]:.3f}")
        cache.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    memory = isinstance(model, CMRN) and model.config.episodic_memory > 0
    return Subject(spec.variant, key, model.eval(), memory, precision)


def _load(model: CMRN | Llama, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path, device=str(next(model.parameters()).device)))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"not the weights of this model: {error}", where=str(path)) from error
