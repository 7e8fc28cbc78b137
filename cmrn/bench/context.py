"""`cmrn bench context`: training steps by sequence length beside a Transformer, and what reading a token costs.

Both sides train with the project's own step, optimizer and loss, on the same batches of random tokens; a Llama is as
wide as ours and has as many active parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmrn.bench.counts import active_parameters, llama_of_equal_active
from cmrn.bench.llama import Llama
from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.timing import Timing, time_interleaved
from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.data.packing import Batch
from cmrn.model import CMRN
from cmrn.recipe import load_recipe
from cmrn.records import CMRNState
from cmrn.training.device import Precision, autocast, keep_freed_memory, resolve_device, resolve_precision
from cmrn.training.optim import OptimizerSet, parameter_groups
from cmrn.training.step import TrainingStep, training_step

__all__ = ["ContextOptions", "matmul_rate", "run"]

DOCUMENT = 1000
"""Tokens of a document on average; ours starts afresh with each, the Llama attends across, as usual with packing."""
BETWEEN = {"cuda": 8, "cpu": 1}
"""Steps in one timing: on a GPU the host runs ahead, as in training, and the last one is waited for."""
CHUNK = 1024
WARM = 2
"""Further steps before the precisions are compared: a CPU's first ones touch fresh memory, which is slow."""


@dataclass(frozen=True)
class ContextOptions:
    """recipe: whose model is measured. lengths: sequence lengths of the training steps, tokens: those of a step.

    readings: lengths of the texts read. The device decides about what is left out.
    """

    device: str | None = None
    recipe: str = "small"
    lengths: tuple[int, ...] = ()
    tokens: int | None = None
    readings: tuple[int, ...] = (1024, 4096, 16_384, 65_536)
    repeats: int = 7
    overrides: tuple[str, ...] = ()


def run(options: ContextOptions, progress: Progress) -> Report:
    """Training tokens/s at each length, then microseconds a token of reading, as a report."""
    device = resolve_device(options.device)
    recipe = load_recipe(options.recipe, options.overrides)
    gpu = device.type == "cuda"
    keep_freed_memory(device)
    lengths = options.lengths or ((2048, 8192, 16_384) if gpu else (512, 4096))
    tokens = options.tokens or (32_768 if gpu else 4096)
    rate = matmul_rate(device)
    rows = [
        _training_row(recipe.model, recipe.training, length, tokens, device, rate, options.repeats, progress)
        for length in lengths
    ]
    rows += _reading_rows(recipe.model, options.readings, device, options.repeats, progress)
    with torch.device("meta"):
        active = active_parameters(CMRN(recipe.model))
    llama = llama_of_equal_active(recipe.model, active)
    settings = {"recipe": options.recipe, "tokens_a_step": tokens, "active_parameters": active, "llama": vars(llama)}
    notes = (
        "limit: the step's weight products (6 FLOPs a parameter and token, head included) at the rate of one large "
        f"product measured in this run, {rate / 1e12:.1f} TFLOP/s; mixing, attention and the optimizer are left out",
        "weights and tokens are random; both sides take whole steps: loss, gradient, clipping, optimizer",
    )
    return Report("context", describe_device(str(device)), tuple(rows), {**settings, **versions()}, notes)


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of one large bfloat16 product, the best of a few."""
    size = 8192 if device.type == "cuda" else 2048
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    timing = time_interleaved({"": lambda: x @ x}, str(device), repeats=5)[""]
    return 2 * size**3 / timing.median


def _training_row(
    config: CMRNConfig,
    training: TrainingConfig,
    length: int,
    tokens: int,
    device: torch.device,
    rate: float,
    repeats: int,
    progress: Progress,
) -> Row:
    batch = random_batch(config, max(1, tokens // length), length)
    # The same seed: both sides begin with the same embedding.
    torch.manual_seed(0)
    ours = CMRN(config.model_copy(update={"gradient_checkpointing": False}))
    active = active_parameters(ours)
    torch.manual_seed(0)
    llama = Llama(llama_of_equal_active(config, active))
    sides = {"ours": ours, "Llama": llama}
    steps: dict[str, TrainingStep] = {}
    detail: dict[str, object] = {}
    for name, model in sides.items():
        progress(f"training at {length}: preparing {name}")
        steps[name], detail[name] = _fastest_step(model, training, batch, device)
    progress(f"training at {length}: timing")
    many = BETWEEN[device.type]
    timings = time_interleaved(
        {name: _taking(steps[name], batch, many) for name in sides}, str(device), repeats=repeats, warmup=1
    )
    flops = 6 * (active + config.vocab_size * config.d_model)
    value, spread = _rate(timings["ours"], many * batch.input_ids_BT.numel())
    peer, peer_spread = _rate(timings["Llama"], many * batch.input_ids_BT.numel())
    detail["peer_spread"] = peer_spread
    return Row(
        f"training, length {length:,}", value, "tokens/s", "Llama of equal active parameters", peer, rate / flops,
        spread, detail,
    )  # fmt: skip


def random_batch(config: CMRNConfig, rows: int, length: int) -> Batch:
    """Rows of random tokens in documents of random lengths, each row of one domain."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, config.vocab_size, (rows, length), generator=draw)
    documents = (torch.rand(rows, length, generator=draw) < 1 / DOCUMENT).cumsum(1)
    domains = torch.randint(max(1, len(config.domains)), (rows, 1), generator=draw).expand(rows, length)
    return Batch(ids, documents, domains.contiguous(), ids.clone())


def _fastest_step(
    model: nn.Module, training: TrainingConfig, batch: Batch, device: torch.device
) -> tuple[TrainingStep, dict[str, object]]:
    """The step, warm, in the faster precision: on a CPU both are tried."""
    model.to(device).train()
    optimizers = OptimizerSet(parameter_groups(model, training))
    precisions: list[Precision] = [resolve_precision("auto", device)]
    if device.type == "cpu" and precisions == ["bfloat16"]:
        precisions.append("float32")
    best: tuple[float, TrainingStep, dict[str, object]] | None = None
    for precision in precisions:
        step = training_step(model, optimizers, training.gradient_clip, precision)
        began = time.perf_counter()
        _taking(step, batch, 1)()
        first = time.perf_counter() - began
        if len(precisions) > 1:
            _taking(step, batch, WARM)()
        began = time.perf_counter()
        if len(precisions) > 1:
            _taking(step, batch, 1)()
        seconds = time.perf_counter() - began
        if best is None or seconds < best[0]:
            best = seconds, step, {"precision": precision, "first_step_s": round(first, 2)}
    assert best is not None
    return best[1], best[2]


def _taking(step: TrainingStep, batch: Batch, many: int) -> Callable[[], None]:
    """A call that takes `many` steps and waits for the last."""
    rows = len(batch.input_ids_BT)

    def take() -> None:
        for _ in range(many - 1):
            step(batch, rows, 1e-3)
        step(batch, rows, 1e-3)()

    return take


def _rate(timing: Timing, tokens: int) -> tuple[float, float]:
    """(tokens/s, its spread)."""
    return tokens / timing.median, tokens / timing.median * timing.spread / timing.median


def _reading_rows(
    config: CMRNConfig, readings: tuple[int, ...], device: torch.device, repeats: int, progress: Progress
) -> list[Row]:
    """Microseconds a token of reading texts, in chunks with carried states and in one call, beside the shortest's."""
    torch.manual_seed(0)
    model = CMRN(config).to(device).eval()
    precision = resolve_precision("auto", device)
    rows: list[Row] = []
    for name, chunk in ((f"chunks of {CHUNK:,}", CHUNK), ("one call", max(readings))):
        progress(f"reading texts in {name}")
        calls: dict[str, Callable[[], object]] = {
            str(n): _reading(model, _text(config, n, device), chunk, precision) for n in readings
        }
        # Long texts take long: they need fewer repeats for the same spread.
        timings = time_interleaved(calls, str(device), repeats=repeats, warmup=1)
        costs = {n: timings[str(n)].median / n * 1e6 for n in readings}
        for n in readings:
            spread = timings[str(n)].spread / n * 1e6
            peer = f"at {readings[0]:,} tokens"
            rows.append(
                Row(f"reading {n:,} tokens in {name}", costs[n], "µs a token", peer, costs[readings[0]], spread=spread)
            )
    return rows


def _text(config: CMRNConfig, length: int, device: torch.device) -> Tensor:
    return torch.randint(2, config.vocab_size, (1, length), generator=torch.Generator().manual_seed(1)).to(device)


def _reading(model: CMRN, ids_BT: Tensor, chunk: int, precision: Precision) -> Callable[[], None]:
    @torch.inference_mode()
    def read() -> None:
        states: CMRNState | None = None
        for piece in ids_BT.split(chunk, 1):
            with autocast(ids_BT.device, precision):
                states = model(piece, states=states).states

    return read
