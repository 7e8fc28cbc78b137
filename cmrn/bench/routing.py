"""What it costs to choose experts for a token, from a few to very many: one matrix product, product keys, a tree."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cmrn.bench.report import Progress, Row
from cmrn.bench.timing import Timing, capture, time_interleaved
from cmrn.routing.product_key import product_key_choice, tree_choice

__all__ = ["COUNTS", "crossover", "routing_rows"]

COUNTS = (16, 64, 256, 1024, 4096, 16_384, 65_536)
WIDTH = 64
CHOSEN = 2
FLAT = "one matrix product, top-k"
Choice = tuple[Tensor, Tensor]


def routing_rows(
    device: str, repeats: int, progress: Progress, counts: tuple[int, ...] = COUNTS
) -> tuple[list[Row], list[str]]:
    """(rows, notes): microseconds a token by number of experts, for one token at a time and for many.

    Tags are 64 wide and 2 experts are chosen, in float32; product keys give the exact top-k of their own scores, the
    tree a greedy one. On CUDA every call is captured in a graph.
    """
    rows, notes = [], []
    for tokens in (1, 4096 if device.startswith("cuda") else 256):
        flat: dict[int, float] = {}
        others: dict[str, dict[int, float]] = {"product keys": {}, "tree": {}}
        for count in counts:
            progress(f"routing {tokens} token{'s' if tokens > 1 else ''} among {count:,} experts")
            timings = _time(device, tokens, count, repeats)
            flat[count] = 1e6 * timings[FLAT].median / tokens
            for name, values in others.items():
                values[count] = 1e6 * timings[name].median / tokens
                spread = 1e6 * timings[name].spread / tokens
                title = f"{name}, {count:,} experts, {tokens} token{'s' if tokens > 1 else ''}"
                rows.append(Row(title, values[count], "µs a token", FLAT, flat[count], spread=spread))
        notes += [crossover(name, tokens, flat, values) for name, values in others.items()]
    return rows, notes


def crossover(name: str, tokens: int, flat: dict[int, float], other: dict[int, float]) -> str:
    """From how many experts on `other` stays cheaper than `flat`, in a sentence."""
    least = None
    for count in sorted(flat, reverse=True):
        if other[count] >= flat[count]:
            break
        least = count
    together = "a token at a time" if tokens == 1 else f"{tokens:,} tokens together"
    if least is None:
        return f"Routing {together}: {name} never overtake one matrix product up to {max(flat):,} experts."
    return f"Routing {together}: {name} cost less than one matrix product from {least:,} experts on."


def _time(device: str, tokens: int, count: int, repeats: int) -> dict[str, Timing]:
    random = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) / math.sqrt(WIDTH)).to(device)

    tags_NR, weight_ER = normal(tokens, WIDTH), normal(count, WIDTH)
    keys_2SR, nodes_VR = normal(2, math.isqrt(count), WIDTH // 2), normal(2 * count - 1, WIDTH)
    calls: dict[str, Callable[[], object]] = {
        FLAT: lambda: (tags_NR @ weight_ER.T).topk(CHOSEN, -1),
        "product keys": lambda: product_key_choice(tags_NR, keys_2SR, CHOSEN),
        "tree": lambda: tree_choice(tags_NR, nodes_VR, CHOSEN),
    }
    with torch.no_grad():
        if device.startswith("cuda"):
            calls = {name: capture(call) for name, call in calls.items()}
        return time_interleaved(calls, device, repeats=repeats)
