"""Multi-query associative recall: key-value pairs, then queries for their values among random tokens.

Own generator after the definition of Zoology (Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient
Language Models", section 4 and appendix): keys from the first half of the vocabulary, values from the second, pairs
side by side at the start; each key is asked for once, at a gap drawn from a power law, and the answer is its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.bench.measure import with_mean
from cmrn.bench.report import Progress, Report, Row
from cmrn.bench.runs import Result, Results, RunSpec
from cmrn.bench.settings import apply_overrides
from cmrn.bench.table import gather, spread
from cmrn.bench.train import make_result, train_steps
from cmrn.bench.variants import build_model, cmrn_spec, llama_spec
from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.data.packing import Batch
from cmrn.model import CMRN
from cmrn.training.device import autocast, resolve_precision
from cmrn.training.random_state import seed_all

if TYPE_CHECKING:
    from cmrn.bench.quality import QualityOptions

__all__ = ["Recall", "accuracy", "examples", "recall_specs", "run", "state_bytes", "train_run"]

VOCABULARY = 8192
POWER = 0.01
ROW = 256
IGNORED = -100
TESTS, TESTS_ON_CPU = 1000, 20
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recall:
    """The size of one task: `pairs` key-value pairs in texts of `length` tokens."""

    pairs: int
    length: int


TRAINED = (Recall(4, 64), Recall(8, 128), Recall(16, 256), Recall(32, 256), Recall(64, 256))
TESTED = (Recall(4, 64), Recall(8, 64), Recall(16, 64), Recall(32, 128), Recall(64, 256), Recall(128, 512),
          Recall(256, 1024))  # fmt: skip


def examples(task: Recall, count: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """(ids, labels), both (count, length). Labels hold the value at the place after its key, −100 elsewhere.

    The token at that place is random, so that no answer stands in the text; a model predicts it from the key before.
    """
    half = VOCABULARY // 2
    keys = _distinct(generator, count, half - 1, task.pairs) + 1
    values = _distinct(generator, count, half, task.pairs) + half
    start = 2 * task.pairs
    places = (task.length - start) // 2
    weights = POWER * np.arange(1, places + 1, dtype=np.float64) ** (POWER - 1)
    # The largest of log w + Gumbel noise are a draw without replacement with chances in proportion to w.
    noisy = np.log(weights) + generator.gumbel(size=(count, places))
    gaps = np.argpartition(-noisy, task.pairs - 1, axis=1)[:, : task.pairs]
    ids = generator.integers(0, VOCABULARY, (count, task.length))
    labels = np.full((count, task.length), IGNORED, dtype=np.int64)
    ids[:, 0:start:2], ids[:, 1:start:2] = keys, values
    np.put_along_axis(ids, start + 2 * gaps, keys, 1)
    np.put_along_axis(labels, start + 2 * gaps + 1, values, 1)
    return ids, labels


def _distinct(generator: np.random.Generator, rows: int, below: int, count: int) -> Integers:
    """(rows, count) numbers below `below`, distinct within a row, in random order: Floyd's algorithm, all rows at once.

    A draw among the first j + 1 numbers that is taken already is replaced by j, which cannot be.
    """
    chosen = np.empty((rows, count), dtype=np.int64)
    for place, last in enumerate(range(below - count, below)):
        drawn = generator.integers(0, last + 1, rows)
        taken = (chosen[:, :place] == drawn[:, None]).any(1)
        chosen[:, place] = np.where(taken, last, drawn)
    return generator.permuted(chosen, axis=1)


def batches(seed: int, rows: int) -> Iterator[Batch]:
    """Rows of 256 tokens: texts of one size a batch, several to a row where they are short, each a document."""
    generator = np.random.default_rng(seed)
    while True:
        for task in TRAINED:
            each = ROW // task.length
            ids, labels = (part.reshape(rows, ROW) for part in examples(task, rows * each, generator))
            documents = np.repeat(np.arange(each), task.length)[None].repeat(rows, 0)
            parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in (ids, documents, labels)]
            yield Batch(parts[0], parts[1], torch.full_like(parts[0], -1), parts[2])


@torch.inference_mode()
def accuracy(model: CMRN | Llama, count: int, precision: Any) -> dict[str, float]:
    """Share of the queries answered, by number of pairs; `count` texts of each size that training never saw."""
    device = next(model.parameters()).device
    model.eval()
    figures = {}
    for task in TESTED:
        ids, labels = (torch.from_numpy(part) for part in examples(task, count, np.random.default_rng(2**31)))
        right = asked = 0
        rows = max(1, 16_384 // task.length)
        for ids_BT, labels_BT in zip(ids.split(rows), labels.split(rows), strict=True):
            with autocast(device, precision):
                answers_BT = model(ids_BT.to(device)).logits.argmax(-1)[:, :-1].cpu()
            scored_BT = labels_BT[:, 1:] != IGNORED
            right += int((answers_BT == labels_BT[:, 1:])[scored_BT].sum())
            asked += int(scored_BT.sum())
        figures[str(task.pairs)] = right / asked
    return with_mean(figures)


def train_run(spec: RunSpec, device: torch.device, progress: Progress) -> Result:
    """Train one model on texts of up to 64 pairs and test it on up to 256."""
    config = TrainingConfig.model_validate(spec.training)
    precision = resolve_precision(config.precision, device)
    seed_all(spec.seed)
    model = build_model(spec.model).to(device)
    rows = config.batch_size
    seconds, curve = train_steps(model, config, precision, batches(spec.seed, rows), progress)
    figures = accuracy(model, TESTS if device.type == "cuda" else TESTS_ON_CPU, precision)
    result = make_result(spec, config, device, seconds, curve, figures)
    result.sizes["state_bytes"] = state_bytes(spec.model, TESTED[-1].length)
    return result


def state_bytes(model: dict[str, Any], length: int) -> int:
    """Bytes carried from token to token after `length` tokens of one text: bfloat16 caches, float32 states."""
    if model["kind"] == "llama":
        config = LlamaConfig(**{**model["config"], "full_layers": tuple(model["config"]["full_layers"])})
        windows = (config.window_of(layer) or length for layer in range(config.layers))
        return sum(2 * 2 * config.d_model * min(window, length) for window in windows)
    ours = CMRNConfig.model_validate(model["config"])
    mixers = ours.num_blocks * ours.temporal_layers * ours.num_heads * ours.head_dim**2 * 4
    return mixers + len(ours.reading_blocks) * min(ours.working_memory, length) * 2 * 2 * ours.memory_dim


def recall_specs(width: int, training: dict[str, Any]) -> dict[str, RunSpec]:
    """Two-layer models by name. The windowed attention's cache is as large as the delta rule's state."""
    ours = CMRNConfig.model_validate(
        {"vocab_size": VOCABULARY, "d_model": width, "num_blocks": 2, "temporal_layers": 1, "num_experts": 4,
         "expert_types": ["general"], "expert_hidden": width, "memory_dim": width, "memory_heads": width // 64,
         "memory_blocks": [1], "head_dim": min(128, width), "dropout": 0.0, "gradient_checkpointing": False}
    )  # fmt: skip
    delta = cmrn_spec(ours, ["dense"], working_memory=0, routing_strategy="hash")
    llama = LlamaConfig(VOCABULARY, width, 2, 3 * width, mask_documents=True)
    window = max(1, state_bytes(delta, 1024) // (2 * 2 * 2 * width))
    models = {
        "attention": llama_spec(llama),
        f"attention, window {window}": llama_spec(LlamaConfig(**{**vars(llama), "window": window})),
        "delta rule alone": delta,
        **{f"ours, W = {each}": cmrn_spec(ours, working_memory=each) for each in (0, 256, 1024)},
    }
    return {name: RunSpec("mqar", name, 1, model, training, f"mqar-{width}", "mqar") for name, model in models.items()}


def run(options: QualityOptions, progress: Progress) -> Report:
    """Do what runs are missing, then one row for each variant and number of pairs."""
    from cmrn.bench.quality import choose, fill, seeds_of

    fields: dict[str, Any] = {"sequence_length": ROW, "batch_size": 64, "max_steps": 6000, "warmup_steps": 200,
                              "learning_rate": 3e-3, "optimizer": "muon", "weight_decay": 0.1}  # fmt: skip
    model: dict[str, Any] = {"d_model": 128}
    apply_overrides({"training": fields, "model": model}, options.overrides)
    training = TrainingConfig.model_validate(fields).model_dump(mode="json")
    specs = choose(recall_specs(model["d_model"], training), options)
    results = Results(options.results)
    trained, failed = fill(specs, options, results, None, progress, largest=True)
    rows = []
    for name, spec in trained.items():
        found = gather(spec, results, seeds_of(options))
        for figure in next(iter(found.values())).figures if found else ():
            values = [result.figures[figure] for result in found.values()]
            first = next(iter(found.values()))
            detail = {"learning_rate": spec.rate, "seeds": len(values), **first.sizes}
            label = f"{name}, mean" if figure == "mean" else f"{name}, {figure} pairs"
            mean = sum(values) / len(values)
            rows.append(Row(label, mean, "accuracy", None, None, 1.0, spread(values), detail))
    notes = (
        f"Two layers, width {model['d_model']}; trained on up to 64 pairs in 256 tokens, tested on 256 in 1,024.",
        "state_bytes: what one text of 1,024 tokens leaves to be carried, bfloat16 caches and float32 states.",
        *(f"failed: {spec.variant}, seed {spec.seed}" for spec in failed),
    )
    some = next((each for spec in trained.values() for each in gather(spec, results, seeds_of(options)).values()), None)
    device = some.where["device"] if some else "none"
    return Report("quality", device, tuple(rows), {"task": "mqar", "model": model, "training": training}, notes)
