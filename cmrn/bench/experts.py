"""Routed experts, router included, beside a dense layer of equal FLOPs and other ways to run the same mixture."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.bench.report import Progress, Report, Row, describe_device, versions
from cmrn.bench.routing import routing_rows
from cmrn.bench.timing import Timing, capture, time_interleaved
from cmrn.routing.dispatch import combine, dispatch, gather_rows
from cmrn.routing.gating import choose_experts
from cmrn.training.capture import without_advice
from cmrn.training.device import resolve_precision

__all__ = ["ExpertsOptions", "Layer", "run"]

TYPES = ("general", "symbolic", "pattern", "generative")
OURS = "ours"


@dataclass(frozen=True)
class ExpertsOptions:
    """What to measure. Sizes left at None are those of the headline figure on CUDA, smaller ones elsewhere.

    routing: whether to measure as well what a choice among 16 to 65,536 experts costs.
    """

    device: str = "cpu"
    tokens: int | None = None
    width: int | None = None
    inner: int | None = None
    experts: int | None = None
    chosen: int = 2
    repeats: int = 20
    routing: bool = True


class Layer:
    """The tensors of one mixture and of the dense layer of equal FLOPs, and the ways to run them.

    Weights are in the type that products run in, so no way pays for a cast.
    """

    def __init__(self, sizes: tuple[int, int, int, int, int], device: str, dtype: torch.dtype) -> None:
        self.tokens, self.width, self.inner, self.experts, self.k = sizes
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int, fan_in: int) -> Tensor:
            drawn = torch.randn(shape, generator=random) / math.sqrt(fan_in)
            return drawn.to(device, dtype).requires_grad_()

        self.x_ND = normal(self.tokens, self.width, fan_in=1)
        self.router_ED = normal(self.experts, self.width, fan_in=self.width)
        self.up_EFD = normal(self.experts, 2 * self.inner, self.width, fan_in=self.width)
        self.down_EDF = normal(self.experts, self.width, self.inner, fan_in=self.inner)
        self.ups, self.downs = (
            [each.detach().clone().requires_grad_() for each in stack] for stack in (self.up_EFD, self.down_EDF)
        )
        self.wide_up = normal(2 * self.inner * self.k, self.width, fan_in=self.width)
        self.wide_down = normal(self.width, self.inner * self.k, fan_in=self.inner * self.k)
        self.bias_E, self.one = torch.zeros(self.experts, device=device), torch.ones((), device=device)
        self.dy_ND = normal(self.tokens, self.width, fan_in=1).detach()
        table = [[0] * self.experts, list(range(self.experts))]
        self.table_2E = torch.tensor(table, dtype=torch.int32, device=device)

    @property
    def flops(self) -> float:
        """Of the experts' products in a forward pass; a backward pass takes twice as many."""
        return 6.0 * self.tokens * self.k * self.width * self.inner

    def ours(self) -> Tensor:
        """Router, dispatch, experts and combine, as the model runs them."""
        logits_NE = (self.x_ND @ self.router_ED.T).float()
        routing = choose_experts(logits_NE[None], self.bias_E, self.one, self.k, noisy=False)
        indices_NK, gates_NK = routing.indices_BTK[0], routing.gates_BTK[0]
        if self.x_ND.is_cuda:
            from cmrn.experts.mixture_triton import Units, mixture
            from cmrn.experts.units_triton import Kinds

            units = Units(self.ups, self.downs, self.table_2E, Kinds(False, False, False))
            return mixture(self.x_ND, None, indices_NK, gates_NK, units, None, None)[0]
        plan = dispatch(indices_NK, self.experts)
        rows = gather_rows(self.x_ND, plan).split(plan.sizes_E)
        outputs = [_swiglu(*each) for each in zip(rows, self.ups, self.downs, strict=True)]
        return combine(torch.cat(outputs), plan, gates_NK)

    def dense(self) -> Tensor:
        """SwiGLU over every token, as wide as the k experts that read it."""
        return _swiglu(self.x_ND, self.wide_up, self.wide_down)

    def grouped(self) -> Tensor:
        """`F.grouped_mm` between a sort of the choices and its inverse, in plain PyTorch, without host syncs."""
        gates_NK, indices_NK = self._choice()
        flat = indices_NK.flatten()
        order = flat.argsort(stable=True)
        last_E = torch.arange(self.experts, device=flat.device)
        ends_E = torch.searchsorted(flat[order], last_E, right=True).int()
        ab_MF = F.grouped_mm(self.x_ND[order // self.k], self.up_EFD.transpose(1, 2), offs=ends_E)
        a_MF, b_MF = ab_MF.chunk(2, -1)
        y_MD = F.grouped_mm(F.silu(a_MF) * b_MF, self.down_EDF.transpose(1, 2), offs=ends_E)
        y_NKD = y_MD[order.argsort()].unflatten(0, (self.tokens, self.k))
        y_ND: Tensor = (y_NKD * gates_NK[..., None].to(y_NKD.dtype)).sum(1)
        return y_ND

    def loop(self) -> Tensor:
        """Each expert in turn on the tokens that chose it."""
        gates_NK, indices_NK = self._choice()
        y_ND = torch.zeros_like(self.x_ND)
        for expert in range(self.experts):
            token, choice = (indices_NK == expert).nonzero(as_tuple=True)
            y_MD = _swiglu(self.x_ND[token], self.up_EFD[expert], self.down_EDF[expert])
            y_ND = y_ND.index_add(0, token, y_MD * gates_NK[token, choice, None].to(y_MD.dtype))
        return y_ND

    def _choice(self) -> tuple[Tensor, Tensor]:
        best_NK, indices_NK = (self.x_ND @ self.router_ED.T).float().topk(self.k, -1)
        return best_NK.softmax(-1), indices_NK

    def leaves(self, way: str) -> list[Tensor]:
        """What a way's backward pass gives gradients of."""
        if way.startswith("dense"):
            return [self.x_ND, self.wide_up, self.wide_down]
        if way.startswith(OURS):
            return [self.x_ND, self.router_ED, *self.ups, *self.downs]
        return [self.x_ND, self.router_ED, self.up_EFD, self.down_EDF]

    def step(self, way: str, forward: Callable[[], Tensor]) -> object:
        """Forward and backward."""
        return torch.autograd.grad(forward(), self.leaves(way), self.dy_ND)


def _swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    a, b = (x @ up.T).chunk(2, -1)
    return (F.silu(a) * b) @ down.T


def run(options: ExpertsOptions, progress: Progress) -> Report:
    """TFLOP/s of every way; all run the same tokens and, but for the dense layer, the same weights."""
    device = options.device
    cuda = device.startswith("cuda")
    default = (16_384, 1024, 1408, 16) if cuda else (1024, 256, 384, 8)
    asked = (options.tokens, options.width, options.inner, options.experts)
    tokens, width, inner, experts = (
        small if value is None else value for value, small in zip(asked, default, strict=True)
    )
    dtype = torch.float32 if resolve_precision("auto", torch.device(device)) == "float32" else torch.bfloat16
    layer = Layer((tokens, width, inner, experts, options.chosen), device, dtype)
    limit = _matmul_rate(device, dtype)
    rows, notes = [], ["FLOPs are those of the experts' products alone; the router's time counts, its FLOPs do not."]
    with without_advice():
        for captured in (False, True) if cuda else (False,):
            rows += _beside_peers(layer, device, options.repeats, limit, captured, progress)
    if cuda:
        rows.append(_waits(layer))
        rows += _as_trained(layer, options.repeats, limit, progress)
    else:
        notes.append("No CUDA here: F.grouped_mm, captured graphs and host synchronisations were not measured.")
    if options.routing:
        routed, said = routing_rows(device, options.repeats, progress)
        rows, notes = rows + routed, notes + said
    settings = {"tokens": tokens, "width": width, "inner": inner, "experts": experts, "chosen": options.chosen,
                "dtype": str(dtype)[6:], **versions()}  # fmt: skip
    return Report("experts", describe_device(device), tuple(rows), settings, tuple(notes))


def _beside_peers(
    layer: Layer, device: str, repeats: int, limit: float, captured: bool, progress: Progress
) -> list[Row]:
    """Ours beside each peer, forward and forward with backward."""
    ways: dict[str, Callable[[], Tensor]] = {OURS: layer.ours, "dense layer of equal FLOPs": layer.dense}
    if layer.x_ND.is_cuda:
        ways["dense layer, compiled"] = torch.compile(layer.dense)
        ways["F.grouped_mm"] = layer.grouped
        ways["F.grouped_mm, compiled"] = torch.compile(layer.grouped)
    if not captured:
        ways["loop over experts"] = layer.loop
    rows = []
    for mode, times in (("forward", 1), ("forward and backward", 3)):
        how = f"{mode}, captured" if captured else mode
        progress(f"experts: {how}")
        calls: dict[str, Callable[[], object]] = {}
        for name, way in ways.items():
            call = partial(_without_gradient, way) if times == 1 else partial(layer.step, name, way)
            calls[name] = capture(call) if captured else call
        timings = time_interleaved(calls, device, repeats=repeats)
        rows += _compare(how, timings, times * layer.flops, limit)
    return rows


def _compare(how: str, timings: dict[str, Timing], flops: float, limit: float) -> list[Row]:
    own = timings[OURS]
    rate = flops / own.median / 1e12
    return [
        Row(how, rate, "TFLOP/s", peer, flops / timing.median / 1e12, limit, rate * own.spread / own.median)
        for peer, timing in timings.items()
        if peer != OURS
    ]


def _without_gradient(way: Callable[[], Tensor]) -> Tensor:
    with torch.no_grad():
        return way()


def _waits(layer: Layer) -> Row:
    """How often the host waits for the device in a forward and backward pass, of ours and of the loop."""
    counts = []
    for name, way in ((OURS, layer.ours), ("loop", layer.loop)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                layer.step(name, way)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("called a synchronizing" in str(warning.message) for warning in caught))
    return Row("host waits for the device", counts[0], "waits", "loop over experts", counts[1], 0.0)


def _as_trained(layer: Layer, repeats: int, limit: float, progress: Progress) -> list[Row]:
    """The model's own pool, from float32 parameters under autocast: of general experts, and of all four types."""
    from cmrn.config import CMRNConfig, ExpertConfig
    from cmrn.experts import ExpertPool
    from cmrn.layers import Linear
    from cmrn.records import Segments

    x_BTD, bias_E = layer.x_ND.detach()[None].requires_grad_(), layer.bias_E
    router = Linear(layer.width, layer.experts).cuda()

    def pool_step(types: tuple[str, ...]) -> Callable[[], object]:
        experts = [ExpertConfig.model_validate({"name": f"e{i}", "type": types[i % len(types)]})
                   for i in range(layer.experts)]  # fmt: skip
        config = CMRNConfig(
            d_model=layer.width, experts=tuple(experts), expert_hidden=layer.inner, shared_expert=False, dropout=0.0
        )
        pool = ExpertPool(config).cuda()
        leaves = [x_BTD, *router.parameters(), *pool.parameters()]

        def call() -> object:
            with torch.autocast("cuda", torch.bfloat16):
                routing = choose_experts(router(x_BTD).float(), bias_E, layer.one, layer.k, noisy=False)
                y_BTD, _, latent = pool(x_BTD, routing, None, Segments())
            return torch.autograd.grad((y_BTD[0] * layer.dy_ND).sum() + latent, leaves, allow_unused=True)

        return capture(call)

    wide = [each.detach().float().requires_grad_() for each in (layer.wide_up, layer.wide_down)]

    def dense() -> object:
        with torch.autocast("cuda", torch.bfloat16):
            y_ND = x_BTD[0] + _swiglu(F.layer_norm(x_BTD[0], (layer.width,)), *wide)
        return torch.autograd.grad((y_ND * layer.dy_ND).sum(), [x_BTD, *wide])

    progress("experts: from float32 parameters, all types")
    calls = {"general": pool_step(("general",)), "four types": pool_step(TYPES), "dense": capture(dense)}
    timings = time_interleaved(calls, "cuda", repeats=repeats)
    rates = {name: 3e-12 * layer.flops / timing.median for name, timing in timings.items()}
    how = "forward and backward, captured, norm and residual, float32 parameters"
    dense_name = "dense layer of equal FLOPs, the same way"
    return [
        Row(f"{how}, general", rates["general"], "TFLOP/s", dense_name, rates["dense"], limit),
        Row(f"{how}, four types in one call", rates["four types"], "TFLOP/s", "general alone", rates["general"], limit),
    ]


def _matmul_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product, measured now."""
    size = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = time_interleaved({"": lambda: a @ b}, device, repeats=10)[""].median
    return 2e-12 * size**3 / seconds
