"""All experts in one call against one after the other in float64; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cmrn.config import CMRNConfig, ExpertConfig, ExpertType
from cmrn.experts import ExpertPool
from cmrn.records import Routing, Segments
from cmrn.routing import choose_experts
from tests.tolerances import assert_close

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from cmrn.experts.mixture_triton import Units, mixture  # noqa: E402
from cmrn.experts.units_triton import Kinds  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL: tuple[ExpertType, ...] = ("general", "pattern", "generative", "symbolic", "symbolic")
CASES: list[tuple[tuple[ExpertType, ...], int, int, int, int]] = [
    (("general",) * 4, 2, 24, 20, 11),
    (("general",) * 3, 1, 20, 12, 90),
    (("general", "pattern"), 1, 16, 16, 9),
    (("generative", "general", "generative"), 2, 16, 20, 11),
    (("symbolic", "general"), 1, 16, 48, 7),
    (("symbolic",), 1, 8, 12, 70),
    (ALL, 2, 24, 24, 13),
    (ALL, 5, 16, 20, 5),
]


def make_pool(types: tuple[ExpertType, ...], k: int, width: int, hidden: int) -> ExpertPool:
    torch.manual_seed(6)
    experts = [ExpertConfig(name=f"{kind}_{i}", type=kind) for i, kind in enumerate(types)]
    fields = {"vocab_size": 9, "d_model": width, "experts": experts, "expert_hidden": hidden, "dropout": 0.0}
    return ExpertPool(CMRNConfig.model_validate(fields | {"routing_k": k, "memory_dim": 8})).to(DEVICE)


def in_float64(pool: ExpertPool, types: tuple[ExpertType, ...], k: int, width: int, hidden: int) -> ExpertPool:
    twin = make_pool(types, k, width, hidden).double()
    twin.load_state_dict(pool.state_dict())
    return twin.train(pool.training)


def results(pool: ExpertPool, x_BTD: Tensor, logits_BTE: Tensor, k: int, real_BT: Tensor | None) -> dict[str, Tensor]:
    """Output, divergence and every gradient, of the routed part alone."""
    wide = next(pool.parameters()).dtype
    x_BTD, logits_BTE = (each.clone().to(wide).requires_grad_() for each in (x_BTD, logits_BTE))
    segments, zeros = Segments(real_BT, None), torch.zeros(logits_BTE.shape[-1], device=DEVICE, dtype=wide)
    routing = choose_experts(logits_BTE, zeros, torch.ones((), device=DEVICE, dtype=wide), k, noisy=False)
    context = None if pool.ngram is None else pool.ngram(x_BTD, None, segments)[0]
    run = pool._one_by_one if wide == torch.float64 else pool._together
    y_ND, latent = run(x_BTD, context, routing, segments)
    weights = torch.linspace(-1.0, 2.0, y_ND.numel(), device=DEVICE, dtype=torch.float64).view_as(y_ND).to(wide)
    ((y_ND.square() * weights).sum() + 30 * latent).backward()
    gradients = {name: each.grad for name, each in pool.named_parameters() if each.grad is not None}
    assert x_BTD.grad is not None
    assert logits_BTE.grad is not None
    return {"y": y_ND, "latent": latent, "x": x_BTD.grad, "logits": logits_BTE.grad, **gradients}


def stream(batch: int, length: int, width: int, experts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x_BTD, logits_BTE = (torch.randn(batch, length, size, generator=random) for size in (width, experts))
    return x_BTD.to(DEVICE), logits_BTE.to(DEVICE)


@pytest.mark.parametrize(("types", "k", "width", "hidden", "length"), CASES)
def test_value_and_every_gradient(types: tuple[ExpertType, ...], k: int, width: int, hidden: int, length: int) -> None:
    pool = make_pool(types, k, width, hidden).eval()
    x_BTD, logits_BTE = stream(2, length, width, len(types))
    real_BT = torch.arange(length, device=DEVICE) < torch.tensor([[length - 3], [length]], device=DEVICE)
    expected = results(in_float64(pool, types, k, width, hidden), x_BTD, logits_BTE, k, real_BT)
    actual = results(pool, x_BTD, logits_BTE, k, real_BT)
    assert set(actual) == set(expected)
    for name in expected:
        scale = expected[name].norm().clamp(min=1e-3)
        assert_close(actual[name] / scale, expected[name] / scale, torch.float32)


def test_with_a_stream_the_sum_is_added_to_it() -> None:
    pool = make_pool(ALL, 2, 16, 20).eval()
    u_BTD, logits_BTE = stream(2, 9, 16, len(ALL))
    x_BTD, weights_BTD = stream(2, 9, 16, 16, seed=1)
    zeros, one = torch.zeros(len(ALL), device=DEVICE), torch.ones((), device=DEVICE)
    found = []
    for added in (True, False):
        u, x, logits = (each.clone().requires_grad_() for each in (u_BTD, x_BTD, logits_BTE))
        routing = choose_experts(logits, zeros, one, 2, noisy=False)
        y_ND, _ = pool._together(u, 2 * u, routing, Segments(), x if added else None)
        y_BTD = y_ND.view_as(x) if added else x + y_ND.view_as(x)
        found.append((y_BTD, *torch.autograd.grad((y_BTD.square() * weights_BTD).sum(), (u, x, logits))))
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected)


def test_frozen_experts_get_no_gradient_and_the_others_the_same() -> None:
    pool = make_pool(ALL, 2, 16, 20).eval()
    x_BTD, logits_BTE = stream(2, 9, 16, len(ALL))
    whole = results(pool, x_BTD, logits_BTE, 2, None)
    pool.zero_grad()
    for name in ("pattern_1", "generative_2", "symbolic_4"):
        pool.experts[name].requires_grad_(False)
    part = results(pool, x_BTD, logits_BTE, 2, None)
    assert {name.split(".")[1] for name in set(whole) - set(part)} == {"pattern_1", "generative_2", "symbolic_4"}
    for name in part:
        assert torch.equal(part[name], whole[name]), name


def test_frozen_experts_cost_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmrn.experts import mixture_triton

    asked = []
    plain = mixture_triton.weight_gradient

    def counted(*arguments: object) -> None:
        asked.append(len(arguments[-1]))
        plain(*arguments)

    monkeypatch.setattr(mixture_triton, "weight_gradient", counted)
    pool = make_pool(("general",) * 4, 2, 16, 20)
    for name in ("general_0", "general_2"):
        pool.experts[name].requires_grad_(False)
    pool.experts["general_3"].down.requires_grad_(False)
    results(pool, *stream(1, 9, 16, 4), 2, None)
    assert asked == [1, 2]


@triton.jit
def draw(seed_ptr, out_ptr, count, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(out_ptr + place, tl.randn(tl.load(seed_ptr), place), place < count)


def test_latent_noise_is_normal_the_same_backward_and_follows_the_seed() -> None:
    width, hidden, tokens = 8, 12, 37
    random = torch.Generator().manual_seed(3)
    shapes = ((tokens, width), (2 * hidden, width), (width, hidden), (1, hidden), (tokens, 1))
    leaves = [torch.randn(shape, generator=random).to(DEVICE).requires_grad_() for shape in shapes]
    seed = torch.tensor([11], device=DEVICE)
    table_2E = torch.tensor([[2], [0]], device=DEVICE, dtype=torch.int32)
    indices_NK = torch.zeros(tokens, 1, dtype=torch.int64, device=DEVICE)

    def fused(x: Tensor, up: Tensor, down: Tensor, log_sigma: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        units = Units([up], [down], table_2E, Kinds(False, True, False), log_sigma)
        return mixture(x, None, indices_NK, gates, units, None, seed)

    noise = torch.empty(tokens * hidden, device=DEVICE)
    draw[(1,)](seed, noise, noise.numel(), triton.next_power_of_2(noise.numel()))
    assert abs(float(noise.mean())) < 0.2
    assert float(noise.std()) == pytest.approx(1.0, abs=0.15)

    def plain(x: Tensor, up: Tensor, down: Tensor, log_sigma: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (x @ up.T).chunk(2, -1)
        h = F.silu(a) * (b + log_sigma.exp() * noise.view(tokens, hidden).to(b))
        divergence = 0.5 * (b.square() + (2 * log_sigma).exp() - 1) - log_sigma
        return gates * (h @ down.T), divergence.mean()

    compared = []
    for run, wide in ((fused, torch.float32), (plain, torch.float64)):
        own = [leaf.detach().to(wide).requires_grad_() for leaf in leaves]
        y_ND, latent = run(*own)
        compared.append((y_ND, latent, *torch.autograd.grad(y_ND.square().sum() + 5 * latent, own)))
    for actual, expected in zip(*compared, strict=True):
        assert_close(actual, expected)
    other = mixture(
        leaves[0], None, indices_NK, leaves[4], Units([leaves[1]], [leaves[2]], table_2E, Kinds(False, True, False),
        leaves[3]), None, seed + 1,
    )  # fmt: skip
    assert not torch.equal(other[0], compared[0][0])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_a_few_tokens_take_two_launches(tokens: int, shared: bool) -> None:
    types: tuple[ExpertType, ...] = ("general", "pattern", "general")
    pool = make_pool(types, 2, 140, 20)
    pool.shared = pool.shared if shared else None
    x_BTD, logits_BTE = stream(1, tokens, 140, 3)
    routing = choose_experts(logits_BTE, torch.zeros(3, device=DEVICE), torch.ones((), device=DEVICE), 2, noisy=False)
    with torch.no_grad():
        few = pool._few(x_BTD, x_BTD * 2, routing)
        expected, _ = pool._together(x_BTD, x_BTD * 2, routing, Segments())
        if pool.shared is not None:
            expected = expected + pool.shared(x_BTD.flatten(0, 1))[0]
    assert_close(few, expected)


def test_a_compiler_sees_one_graph() -> None:
    pool = make_pool(ALL, 2, 16, 20).eval()
    x_BTD, logits_BTE = stream(2, 9, 16, len(ALL))
    with torch.no_grad():
        gates, indices = logits_BTE.softmax(-1).topk(2)

    def loss(x: Tensor) -> Tensor:
        routing = Routing(logits_BTE, indices, gates, None)
        y_ND, latent = pool._together(x, x * 2, routing, Segments())
        return y_ND.square().sum() + latent

    compared = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        pool.zero_grad()
        leaf = x_BTD.clone().requires_grad_()
        run(leaf).backward()
        compared.append([leaf.grad, *(each.grad for each in pool.experts.parameters())])
    for actual, expected in zip(*compared, strict=True):
        assert torch.equal(actual, expected)


@contextmanager
def no_waiting() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual.double() - expected).norm() / expected.norm().clamp(min=1e-9)).detach())


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("types", "k", "width", "hidden", "length"),
    [
        (("general",) * 16, 2, 1024, 1408, 1500),
        (ALL, 2, 384, 512, 2048),
        (("general",) * 8, 3, 512, 704, 4099),
        (ALL, 1, 72, 88, 300),
        (ALL, 2, 384, 512, 1),
    ],
)
def test_bfloat16_at_real_sizes(types: tuple[ExpertType, ...], k: int, width: int, hidden: int, length: int) -> None:
    pool = make_pool(types, k, width, hidden).eval()
    x_BTD, logits_BTE = stream(2, length, width, len(types))
    x_BTD = x_BTD.bfloat16()
    expected = results(in_float64(pool, types, k, width, hidden), x_BTD, logits_BTE, k, None)
    leaf = x_BTD.clone().requires_grad_()
    logits_BTE = logits_BTE.requires_grad_()
    zeros, one = torch.zeros(len(types), device=DEVICE), torch.ones((), device=DEVICE)
    with no_waiting():
        routing = choose_experts(logits_BTE, zeros, one, k, noisy=False)
        context = None if pool.ngram is None else pool.ngram(leaf, None, Segments())[0]
        y_ND, latent = pool._together(leaf, context, routing, Segments())
        weights = torch.linspace(-1.0, 2.0, y_ND.numel(), device=DEVICE).view_as(y_ND)
        ((y_ND.float().square() * weights).sum() + 30 * latent).backward()
    assert error(y_ND, expected["y"]) < 1e-2
    assert error(latent, expected["latent"]) < 1e-2
    assert leaf.grad is not None
    assert error(leaf.grad, expected["x"]) < 2e-2
    assert error(logits_BTE.grad, expected["logits"]) < 3e-2
    for name, each in pool.named_parameters():
        if name in expected:
            assert each.grad is not None
            assert error(each.grad, expected[name]) < 2e-2, name


@pytest.mark.gpu
def test_a_captured_call_gives_the_same_and_takes_new_choices() -> None:
    pool = make_pool(ALL, 2, 128, 192).eval()
    x_BTD, logits_BTE = stream(2, 500, 128, len(ALL))
    zeros, one = torch.zeros(len(ALL), device=DEVICE), torch.ones((), device=DEVICE)

    def run() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            routing = choose_experts(logits_BTE, zeros, one, 2, noisy=False)
            return pool(x_BTD, routing, None, Segments())[0]

    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run()
        for seed in (1, 2):
            x_new, logits_new = stream(2, 500, 128, len(ALL), seed)
            x_BTD.copy_(x_new)
            logits_BTE.copy_(logits_new)
            graph.replay()
            assert torch.equal(captured, run())
