"""`cmrn bench decode`: writing one token after contexts of 1 k to 1 M tokens, beside a Transformer with its cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmrn.bench.counts import active_parameters, llama_of_equal_active
from cmrn.bench.llama import Llama, LlamaConfig
from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.timing import capture, time_interleaved
from cmrn.config import CMRNConfig
from cmrn.generation import CapturedDecoder
from cmrn.model import CMRN
from cmrn.recipe import load_recipe
from cmrn.records import CMRNState, TemporalState, map_tensors
from cmrn.sampling import SamplingConfig, draw
from cmrn.training.capture import compiled
from cmrn.training.device import resolve_device

__all__ = ["DecodeOptions", "run"]

SAMPLING = SamplingConfig(temperature=1.0)
PIECE = {"cuda": 16_384, "cpu": 2048}
"""Tokens of a context that are read at once."""
CACHED_PIECE = 2048


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
    repeats: int = 11
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """One side, ready to write after a context. begin: goes back to the context's end; step: writes a token.

    bytes: of its state or filled cache; allocated: of the device's memory while it writes.
    """

    begin: Callable[[], None]
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
    weights = (active + config.vocab_size * config.d_model) * dtype.itemsize
    writers: dict[tuple[str, int], Writer] = {}
    with torch.inference_mode():
        for place, writer in _ours(model, config, contexts, device, progress):
            writers["ours", place] = writer
        for place in cached:
            progress(f"Llama after {place:,} tokens")
            writers["Llama", place] = _llama_writer(llama, place, device, dtype)
        progress("timing, in turns")
        rates = _rates(writers, tokens, options.repeats, device)
        rows = _rows(contexts, writers, rates, weights, _bandwidth(device))
    settings = {"recipe": options.recipe, "dtype": str(dtype), "active_parameters": active, "llama": vars(llama_config)}
    notes = [
        "limit: active weights read once and the state read and written, at the rate of a copy in this run",
        "weights are random: speed does not depend on what is written; ours read every token of each context",
        "both sides on a GPU: one step captured and replayed, token drawn on the device; the Transformer's blocks "
        "compiled or not, whichever is faster",
    ]
    notes += [_left_out(llama_config, place, dtype) for place in contexts if place not in cached]
    return Report("decode", describe_device(str(device)), tuple(rows), {**settings, **versions()}, tuple(notes))


def _rows(
    contexts: tuple[int, ...],
    writers: dict[tuple[str, int], Writer],
    rates: dict[tuple[str, int], list[float]],
    weights: int,
    bandwidth: float,
) -> list[Row]:
    """A row a context beside the Transformer's, then one for each later context beside the first."""
    rows = []
    for place in contexts:
        writer, peer = writers["ours", place], writers.get(("Llama", place))
        detail: dict[str, Any] = {"state_bytes": writer.bytes, "allocated_bytes": writer.allocated}
        rate, spread = _summary(rates["ours", place])
        peer_name, peer_rate = None, None
        if peer is not None:
            peer_name, (peer_rate, peer_spread) = "Llama with its cache", _summary(rates["Llama", place])
            detail |= {"peer_cache_bytes": peer.bytes, "peer_spread": peer_spread}
        limit = bandwidth / (weights + 2 * writer.bytes)
        name = f"writing after {place:,} tokens"
        rows.append(Row(name, rate, "tokens/s", peer_name, peer_rate, limit, spread, detail))
    first = rates["ours", contexts[0]]
    for place in contexts[1:]:
        # Both were timed in each turn, so the ratio of a turn is free of what slows all of it.
        ratio, spread = _summary([a / b for a, b in zip(rates["ours", place], first, strict=True)])
        name, base = f"writing after {place:,}, of after {contexts[0]:,}", _summary(first)[0]
        rows.append(Row(name, ratio * base, "tokens/s", f"after {contexts[0]:,} tokens", base, spread=spread * base))
    return rows


def _left_out(config: LlamaConfig, place: int, dtype: torch.dtype) -> str:
    size = 2 * config.layers * config.d_model * place * dtype.itemsize / 1e9
    return f"the Transformer is not measured after {place:,} tokens, where its cache takes {size:,.1f} GB"


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
    """A writer after each context in turn; on a GPU all are one graph, which begins where it is told to."""
    decoder: CapturedDecoder | None = None
    for place, logits_BV, states in _read(model, config, contexts, device, progress):
        size = _state_bytes(states)
        if device.type != "cuda":
            yield place, _plain_writer(model, logits_BV, states, size)
            continue
        if decoder is None:
            progress("capturing a step")
            decoder = CapturedDecoder(model, logits_BV, states, SAMPLING, None)
        # What waits for its turn waits on the host, so that the device holds one state whatever is measured.
        begin = _resetting(decoder, logits_BV.cpu(), map_tensors(states, Tensor.cpu), device)
        del logits_BV, states
        yield place, Writer(begin, decoder.step, size, torch.cuda.memory_allocated(device))


def _read(
    model: CMRN, config: CMRNConfig, contexts: tuple[int, ...], device: torch.device, progress: Progress
) -> Iterator[tuple[int, Tensor, CMRNState]]:
    """(place, logits_BV, states) after each context; all are beginnings of one text of random tokens, read once."""
    text_BT = torch.randint(2, config.vocab_size, (1, max(contexts)), generator=torch.Generator().manual_seed(0))
    states: CMRNState | None = None
    read = 0
    for place in sorted(contexts):
        progress(f"reading {place:,} tokens")
        for piece in text_BT[:, read:place].split(PIECE[device.type], 1):
            output = model(piece.to(device), states=states)
            logits_BV, states = output.logits[:, -1].clone(), output.states
            del output
        read = place
        assert states is not None
        # Copies: what is carried are views of what the last piece computed, which would be held whole.
        states = map_tensors(states, torch.clone)
        yield place, logits_BV, states


def _resetting(
    decoder: CapturedDecoder, logits_BV: Tensor, states: CMRNState, device: torch.device
) -> Callable[[], None]:
    def begin() -> None:
        decoder.reset(logits_BV.to(device), map_tensors(states, lambda tensor: tensor.to(device)))

    return begin


def _plain_writer(model: CMRN, logits_BV: Tensor, states: CMRNState, size: int) -> Writer:
    now = [(logits_BV, states)]

    def begin() -> None:
        now[0] = logits_BV, states

    def step() -> None:
        logits, carried = now[0]
        output = model(draw(logits, SAMPLING, None)[:, None], states=carried)
        now[0] = output.logits[:, -1], output.states

    return Writer(begin, step, size, 0)


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
        for piece in prompt_BT.to(device).split(CACHED_PIECE, 1):
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
        return Writer(lambda: None, step, cache.bytes, 0)
    fastest = _fastest(llama, step, device)
    return Writer(lambda: None, fastest, cache.bytes, torch.cuda.memory_allocated(device))


def _fastest(llama: Llama, step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """The step as a graph, with its blocks compiled or not, whichever is faster."""
    found: dict[str, Callable[[], object]] = {"plain": capture(step)}
    with compiled(llama):
        found["compiled"] = capture(step)
    timings = time_interleaved(found, str(device), repeats=5)
    return found[min(found, key=lambda name: timings[name].median)]


def _rates(
    writers: dict[tuple[str, int], Writer], tokens: int, repeats: int, device: torch.device
) -> dict[tuple[str, int], list[float]]:
    """Tokens/s of writing `tokens` in a row, in `repeats` turns after one that warms up; all write in every turn."""
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in writers}
    for turn in range(repeats + 1):
        for key, writer in writers.items():
            writer.begin()
            _wait(device)
            began = time.perf_counter()
            for _ in range(tokens):
                writer.step()
            _wait(device)
            if turn:
                rates[key].append(tokens / (time.perf_counter() - began))
    return rates


def _summary(values: list[float]) -> tuple[float, float]:
    """(median, half the distance between the quartiles)."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return statistics.median(ordered), (ordered[-1 - quarter] - ordered[quarter]) / 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
