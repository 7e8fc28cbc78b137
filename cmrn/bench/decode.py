"""`cmrn bench decode`: writing one token after contexts of 1 k to 1 M tokens, beside a Transformer with its cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmrn.bench.counts import active_parameters, llama_of_equal_active
from cmrn.bench.llama import Llama
from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.timing import capture, time_interleaved
from cmrn.config import CMRNConfig
from cmrn.generation import CapturedDecoder, read_prompt
from cmrn.model import CMRN
from cmrn.recipe import load_recipe
from cmrn.records import CMRNState, TemporalState, map_tensors
from cmrn.sampling import SamplingConfig, draw
from cmrn.training.capture import compiled
from cmrn.training.device import resolve_device

__all__ = ["DecodeOptions", "run"]

SAMPLING = SamplingConfig(temperature=1.0)
PIECE = 2048


@dataclass(frozen=True)
class DecodeOptions:
    """recipe: whose model writes. contexts: tokens before the first written one, which are really read by ours.

    cached: the contexts at which the Transformer is measured too. tokens: written in one timing. The device decides
    about what is left out.
    """

    device: str | None = None
    recipe: str = "small"
    contexts: tuple[int, ...] = ()
    cached: tuple[int, ...] = ()
    tokens: int | None = None
    repeats: int = 7
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """One side, ready to write after a context. step: writes a token; bytes: of its state or filled cache."""

    step: Callable[[], object]
    bytes: int
    allocated: int


def run(options: DecodeOptions, progress: Progress) -> Report:
    """Tokens/s of writing one text after each context, and the memory that the context takes, as a report."""
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    config = load_recipe(options.recipe, options.overrides).model
    contexts = options.contexts or ((1024, 32_768, 1_048_576) if gpu else (1024, 8192, 32_768))
    cached = options.cached or contexts[:2]
    tokens = options.tokens or (256 if gpu else 16)
    dtype = torch.bfloat16 if gpu else torch.float32
    torch.manual_seed(0)
    model = CMRN(config).to(device, dtype).eval()
    active = active_parameters(model)
    llama_config = llama_of_equal_active(config, active)
    llama = Llama(llama_config).to(device, dtype).eval()
    rates, bytes_read = {}, 2 * (active + config.vocab_size * config.d_model) * (1 if gpu else 2)
    bandwidth = _bandwidth(device)
    with torch.inference_mode():
        for place, writer in _ours(model, config, contexts, device, progress):
            rates["ours", place] = _time(writer, tokens, options.repeats, device), writer
        for place in cached:
            progress(f"Llama after {place:,} tokens")
            writer = _llama_writer(llama, place, device, dtype)
            rates["Llama", place] = _time(writer, tokens, options.repeats, device), writer
    rows = []
    for place in contexts:
        (rate, spread), writer = rates["ours", place]
        peer = rates.get(("Llama", place))
        detail: dict[str, Any] = {"state_bytes": writer.bytes, "allocated_bytes": writer.allocated}
        if peer is not None:
            detail |= {"peer_cache_bytes": peer[1].bytes, "peer_spread": peer[0][1]}
        limit = bandwidth / (bytes_read + 2 * writer.bytes)
        rows.append(
            Row(
                f"writing after {place:,} tokens", rate, "tokens/s", peer and "Llama with its cache",
                peer and peer[0][0], limit, spread, detail,
            )
        )  # fmt: skip
    first = rates["ours", contexts[0]][0][0]
    for place in contexts[1:]:
        name = f"writing after {place:,}, of after {contexts[0]:,}"
        rows.append(Row(name, rates["ours", place][0][0], "tokens/s", f"after {contexts[0]:,} tokens", first))
    settings = {"recipe": options.recipe, "dtype": str(dtype), "active_parameters": active, "llama": vars(llama_config)}
    notes = (
        f"limit: active weights read once and the state read and written, at {bandwidth / 1e9:,.0f} GB/s, measured by "
        "a copy in this run",
        "weights are random: speed does not depend on what is written; ours read every token of each context",
        "both sides on a GPU: blocks compiled, one step captured and replayed, token drawn on the device",
    )
    return Report("decode", describe_device(str(device)), tuple(rows), {**settings, **versions()}, notes)


def _bandwidth(device: torch.device) -> float:
    """Bytes read and written by a copy, a second."""
    size = 1 << (30 if device.type == "cuda" else 27)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = time_interleaved({"": lambda: target.copy_(source)}, str(device), repeats=5)[""]
    return 2 * size / timing.median


def _ours(
    model: CMRN, config: CMRNConfig, contexts: tuple[int, ...], device: torch.device, progress: Progress
) -> Iterator[tuple[int, Writer]]:
    """A writer after each context in turn."""
    decoder: CapturedDecoder | None = None
    for place in contexts:
        progress(f"ours after {place:,} tokens")
        logits_BV, states = _read(model, config, place, device)
        if device.type == "cuda":
            if decoder is None:
                decoder = CapturedDecoder(model, logits_BV, states, SAMPLING, None, compiled=True)
            decoder.reset(logits_BV, states)
            step: Callable[[], object] = decoder.step
        else:
            step = _plain_step(model, logits_BV, states)
        size = _state_bytes(states)
        del logits_BV, states
        yield place, Writer(step, size, _allocated(device))


def _read(model: CMRN, config: CMRNConfig, place: int, device: torch.device) -> tuple[Tensor, CMRNState]:
    """Read `place` random tokens, in pieces, and say where that leaves the model."""
    prompt_BT = torch.randint(2, config.vocab_size, (1, place), generator=torch.Generator().manual_seed(place))
    return read_prompt(model, prompt_BT.to(device))


def _plain_step(model: CMRN, logits_BV: Tensor, states: CMRNState) -> Callable[[], None]:
    def step() -> None:
        nonlocal logits_BV, states
        output = model(draw(logits_BV, SAMPLING, None)[:, None], states=states)
        logits_BV, states = output.logits[:, -1], output.states

    return step


def _state_bytes(states: CMRNState) -> int:
    """Size of what is carried; surprise, which only reports on the chunk just read, is left out."""
    sizes: list[int] = []
    map_tensors(states, lambda tensor: sizes.append(tensor.nbytes) or tensor)  # type: ignore[func-returns-value]
    layers = [layer for block in states.blocks for layer in block.temporal if isinstance(layer, TemporalState)]
    return sum(sizes) - sum(layer.surprise_BT.nbytes for layer in layers)


def _llama_writer(llama: Llama, place: int, device: torch.device, dtype: torch.dtype) -> Writer:
    """The Transformer after `place` tokens: read on a GPU, a filled cache on a CPU, where reading would take minutes.

    A timing writes every token at the same place, so that its cache is as long as the context says throughout.
    """
    cache = llama.empty_cache(1, place + 1, dtype)
    if device.type == "cuda":
        prompt_BT = torch.randint(
            2, llama.config.vocab_size, (1, place), generator=torch.Generator().manual_seed(place)
        )
        for piece in prompt_BT.to(device).split(PIECE, 1):
            cache = llama(piece, states=cache).states
    else:
        for each in (*cache.keys, *cache.values):
            each.normal_()
        cache = replace(cache, length=place)
    logits_BV = torch.zeros(1, llama.config.vocab_size, device=device, dtype=torch.float32)

    def step() -> None:
        ids_B = draw(logits_BV, SAMPLING, None)
        logits_BV.copy_(llama(ids_B[:, None], states=cache).logits[:, -1])

    if device.type == "cpu":
        return Writer(step, cache.bytes, 0)
    return Writer(_fastest(llama, step, device), cache.bytes, _allocated(device))


def _fastest(llama: Llama, step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """The step as a graph, with its blocks compiled or not, whichever is faster."""
    found: dict[str, Callable[[], object]] = {"plain": capture(step)}
    with compiled(llama):
        found["compiled"] = capture(step)
    timings = time_interleaved(found, str(device), repeats=5)
    return found[min(found, key=lambda name: timings[name].median)]


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _time(writer: Writer, tokens: int, repeats: int, device: torch.device) -> tuple[float, float]:
    """(tokens/s, spread) of writing `tokens` in a row."""
    rates = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        for _ in range(tokens):
            writer.step()
        _wait(device)
        rates.append(tokens / (time.perf_counter() - began))
    ordered = sorted(rates[1:])
    quarter = len(ordered) // 4
    return ordered[len(ordered) // 2], (ordered[-1 - quarter] - ordered[quarter]) / 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
