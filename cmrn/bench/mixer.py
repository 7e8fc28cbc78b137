"""`cmrn bench mixer`: the gated delta rule beside causal attention and fla's kernels, on the same tensors.

The limit of a figure is what the hardware must spend on it, whichever of two is longer. Bytes, at 4.3 TB/s: q, k, v, g
and β read and o written; backward the same read again with o's gradient, and five gradients written. Products, at 790
TFLOP/s, of a chunk of C = 64 tokens and a head of D x D: forward, K Kᵀ, Q Kᵀ, the inverse applied to K and to V, and
P U cost 2 C² D each, W S, Q S and Kᵀ U 2 C D² each; backward, eight of the first and six of the second kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.timing import capture, time_interleaved
from cmrn.temporal import chunked
from cmrn.temporal.rule import gated_delta_rule

__all__ = ["MixerOptions", "limit_seconds", "run"]

Shape = tuple[int, int]
Call = Callable[[], object]
CHUNK = 64
BYTES_PER_SECOND, FLOP_PER_SECOND = 4.3e12, 790e12
ALLOWED_ERROR = 1e-2
ON_CUDA: tuple[Shape, ...] = ((16, 2_048), (4, 8_192), (1, 32_768))
FORWARD_ON_CUDA: tuple[Shape, ...] = ((1, 131_072),)
ON_CPU: tuple[Shape, ...] = ((16, 512), (4, 2_048), (1, 8_192))
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@dataclass(frozen=True)
class MixerOptions:
    """What to time. shapes: batch x tokens, forward and backward; forward_shapes: forward alone.

    Left at None, shapes, heads, head_dim and dtype are what the device is used for: on CUDA 8 heads of 128 in bfloat16,
    on a CPU 4 of 64 in float32. fla: measure its kernels too, where it is installed; it first tries about 35 settings
    of them, which takes a minute.
    """

    device: str = "cpu"
    shapes: tuple[Shape, ...] | None = None
    forward_shapes: tuple[Shape, ...] | None = None
    heads: int | None = None
    head_dim: int | None = None
    dtype: torch.dtype | None = None
    repeats: int = 10
    fla: bool = False

    def resolved(self) -> MixerOptions:
        """These options with nothing left at None."""
        cuda = self.device.startswith("cuda")
        given = self.shapes is not None
        return MixerOptions(
            self.device,
            self.shapes if self.shapes is not None else (ON_CUDA if cuda else ON_CPU),
            self.forward_shapes if self.forward_shapes is not None else (FORWARD_ON_CUDA if cuda and not given else ()),
            self.heads or (8 if cuda else 4),
            self.head_dim or (128 if cuda else 64),
            self.dtype or (torch.bfloat16 if cuda else torch.float32),
            self.repeats,
            self.fla,
        )


def run(options: MixerOptions, progress: Progress) -> Report:
    """Milliseconds beside each peer's and the limit, then the errors against the rule in float64."""
    options = options.resolved()
    assert options.shapes is not None
    assert options.forward_shapes is not None
    rows: list[Row] = []
    notes: list[str] = []
    for shape in options.shapes:
        rows += _timed(options, shape, False, progress, notes)
        rows += _timed(options, shape, True, progress, notes)
    for shape in options.forward_shapes:
        rows += _timed(options, shape, False, progress, notes)
    progress("errors")
    rows += _errors(options)
    settings = {"heads": options.heads, "head_dim": options.head_dim, "dtype": str(options.dtype)[6:], **versions()}
    return Report("mixer", describe_device(options.device), tuple(rows), settings, tuple(dict.fromkeys(notes)))


def limit_seconds(shape: Shape, heads: int, width: int, item_bytes: int, backward: bool) -> float:
    """The least time that bytes and products take on an H200, by the formulae above."""
    tokens = shape[0] * shape[1] * heads
    wide, rates = tokens * width * item_bytes, tokens * 4 * 2
    moved = 4 * wide + rates
    flop = (5 * 2 * CHUNK * width + 3 * 2 * width**2) * tokens
    if backward:
        moved += 4 * wide + rates + 3 * wide + rates
        flop += (8 * 2 * CHUNK * width + 6 * 2 * width**2) * tokens
    return max(moved / BYTES_PER_SECOND, flop / FLOP_PER_SECOND)


def _inputs(options: MixerOptions, shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """q and k of unit length, v, g, β and a state of zeros, drawn anew from one seed; leaves that want gradient."""
    heads, width = options.heads or 0, options.head_dim or 0
    random = torch.Generator(options.device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*shape, heads, *size, generator=random, device=options.device)

    q, k = F.normalize(normal(width), dim=-1), F.normalize(normal(width), dim=-1)
    v, g, beta = normal(width), -F.softplus(normal() - 2.0), normal().sigmoid()
    state = torch.zeros(shape[0], heads, width, width, device=options.device)
    return [x.detach().requires_grad_() for x in (*(x.to(dtype) for x in (q, k, v)), g, beta, state)]


def _timed(options: MixerOptions, shape: Shape, backward: bool, progress: Progress, notes: list[str]) -> Iterator[Row]:
    """Our row beside each peer that runs here."""
    what = f"forward{' + backward' if backward else ''} {shape[0]} x {shape[1]:,}"
    progress(what)
    assert options.dtype is not None
    cuda = options.device.startswith("cuda")
    inputs = _inputs(options, shape, options.dtype)
    grad_o = torch.randn_like(inputs[2]) if backward else None
    name, attention = _fastest_attention(inputs, grad_o, options.device)
    calls = {"ours": _call(lambda *given: gated_delta_rule(*given)[0], inputs, grad_o), name: attention}
    if options.fla and cuda:
        call = _call(_fla, inputs, grad_o)
        try:
            call()
            calls["fla"] = call
        except (RuntimeError, ImportError) as error:
            notes.append(f"fla has no {what.rsplit(' ', 3)[0]} here: {_first_line(error)}")
    elif cuda:
        notes.append("fla's kernels are left out: it tunes them for a minute first (MixerOptions.fla measures them)")
    if cuda:
        calls = {name: capture(call) for name, call in calls.items()}
    timings = time_interleaved(calls, options.device, repeats=options.repeats)
    ours, limit = timings.pop("ours"), None
    if cuda:
        limit = limit_seconds(shape, options.heads or 0, options.head_dim or 0, options.dtype.itemsize, backward) * 1e3
    for peer, timing in timings.items():
        detail = {"samples": ours.samples, "peer_spread": timing.spread * 1e3}
        yield Row(what, ours.median * 1e3, "ms", peer, timing.median * 1e3, limit, ours.spread * 1e3, detail)


def _fastest_attention(inputs: list[Tensor], grad_o: Tensor | None, device: str) -> tuple[str, Call]:
    """Causal attention by the backend that is fastest here, named after it; a CPU chooses by itself."""
    if not device.startswith("cuda"):
        return "SDPA", _call(_attention(None), inputs, grad_o)
    calls = {}
    for backend in BACKENDS:
        call = _call(_attention(backend), inputs, grad_o)
        try:
            call()
            calls[f"SDPA {backend.name.split('_')[0].lower()}"] = call
        except RuntimeError:
            continue
    timings = time_interleaved(calls, device, repeats=2, warmup=1)
    fastest = min(timings, key=lambda name: timings[name].median)
    return fastest, calls[fastest]


def _attention(backend: SDPBackend | None) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        with sdpa_kernel(backend) if backend else nullcontext():
            return F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )

    return attend


def _fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    rule = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    result: Tensor = rule(q, k, v, g, beta, scale=1.0, initial_state=state)[0]
    return result


def _call(rule: Callable[..., Any], inputs: list[Tensor], grad_o: Tensor | None) -> Call:
    """One forward without gradient, or one forward with the backward of q, k, v and, where they are used, g and β."""

    def forward() -> None:
        with torch.no_grad():
            rule(*inputs)

    def both() -> None:
        o = rule(*inputs)
        grad = grad_o if o.shape == inputs[2].shape else grad_o.transpose(1, 2)  # type: ignore[union-attr]
        torch.autograd.grad(o, inputs[:5], grad, allow_unused=True)

    return forward if grad_o is None else both


def _errors(options: MixerOptions) -> Iterator[Row]:
    """‖ours − exact‖ / ‖exact‖ at 1 x 512, where exact is the chunked rule in float64, for o and each gradient."""
    assert options.dtype is not None
    narrow = _inputs(options, (1, 512), options.dtype)
    grad_o = torch.randn_like(narrow[2])
    wide = [x.detach().double().requires_grad_() for x in narrow]
    results = {}
    for name, rule, inputs in (("ours", gated_delta_rule, narrow), ("exact", chunked.gated_delta_rule, wide)):
        o = rule(*inputs)[0]
        results[name] = (o, *torch.autograd.grad(o, inputs, grad_o.to(o.dtype)))
    for name, ours, exact in zip(("o", "q", "k", "v", "g", "beta", "state"), *results.values(), strict=True):
        error = float((ours.detach().double() - exact.detach()).norm() / exact.detach().norm())
        label = "error of o" if name == "o" else f"error of the gradient of {name}"
        yield Row(f"{label} 1 x 512", error, "of its norm", limit=ALLOWED_ERROR)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
