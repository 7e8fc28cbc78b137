"""The kernels of the gated delta rule against its definition: on a GPU, or in Triton's interpreter where none is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

triton = pytest.importorskip("triton", reason="the kernels need Triton")

from cmrn.temporal import reference  # noqa: E402
from cmrn.temporal import triton as kernels  # noqa: E402
from tests.temporal.test_delta_rule import NAMES, rule_inputs  # noqa: E402

Rule = Callable[..., tuple[Tensor, Tensor, Tensor]]
RESULTS = ("o", "last", "surprise")
ALLOWED = {torch.float32: (1e-5, 5e-5), torch.float16: (1e-3, 4e-3), torch.bfloat16: (1e-2, 2.5e-2)}
"""Largest relative error by type: with random keys, and with keys near one direction and β near 1."""

pytestmark = pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning")
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without CUDA")


def narrowed(inputs: list[Tensor], dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """q, k and v in `dtype`, the rest in float32."""
    return [x.to(device, dtype if i < 3 else torch.float32) for i, x in enumerate(inputs)]


def run_with_gradients(rule: Rule, inputs: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Output, last state and surprise, and the gradient of every input; incoming gradients are exact in bfloat16."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    o, state, surprise = rule(*leaves)
    random = torch.Generator(o.device).manual_seed(7)
    arriving = [
        torch.randn(x.shape, generator=random, device=x.device).to(torch.bfloat16).to(x.dtype) for x in (o, state)
    ]
    gradients = torch.autograd.grad([o, state], leaves, arriving)
    return [o, state, surprise], dict(zip(NAMES, gradients, strict=True))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm().clamp(min=1e-30))


def errors(inputs: list[Tensor]) -> dict[str, float]:
    """The relative error of every result and gradient to the definition in float64."""
    expected, expected_gradients = run_with_gradients(reference.gated_delta_rule, [x.double() for x in inputs])
    actual, gradients = run_with_gradients(kernels.gated_delta_rule, inputs)
    found = {name: relative_error(a, e) for name, a, e in zip(RESULTS, actual, expected, strict=True)}
    found |= {f"d{name}": relative_error(gradients[name], expected_gradients[name]) for name in NAMES}
    assert not gradients["g"][inputs[3].isneginf()].any()
    return found


def assert_small(found: dict[str, float], dtype: torch.dtype, correlated: bool) -> None:
    allowed = ALLOWED[dtype][correlated]
    assert all(error <= allowed for error in found.values()), found


@interpreted
@pytest.mark.parametrize(
    ("rows", "length", "width", "starts", "correlated", "dtype"),
    [
        (1, 1, (16, 16), (), False, torch.float32),
        (2, 70, (5, 3), (), False, torch.float32),
        (1, 70, (16, 32), (), True, torch.float32),
        (1, 129, (16, 16), (0, 63, 64, 70), True, torch.float32),
        (1, 131, (20, 16), (5, 70, 71), True, torch.float16),
    ],
)
def test_kernels_equal_the_definition(
    rows: int, length: int, width: tuple[int, int], starts: tuple[int, ...], correlated: bool, dtype: torch.dtype
) -> None:
    inputs = rule_inputs(length, width=width, starts=starts, correlated=correlated)
    inputs = narrowed([x[:rows] for x in inputs], dtype)
    assert_small(errors(inputs), dtype, correlated)


@interpreted
@pytest.mark.parametrize(
    ("length", "width", "starts", "segment"), [(150, (16, 80), (), 1), (200, (70, 16), (5, 130), 3)]
)
def test_segments_equal_the_definition(
    length: int, width: tuple[int, int], starts: tuple[int, ...], segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of one chunk or more, the last one shorter, with and without a document's start within."""
    inputs = narrowed([x[:1] for x in rule_inputs(length, width=width, starts=starts)], torch.float32)
    chosen = kernels._Walk(64, -(-length // kernels.CHUNK // segment), segment)
    monkeypatch.setattr(kernels, "_walk", lambda *_: chosen)
    assert_small(errors(inputs), torch.float32, correlated=False)


@pytest.mark.parametrize("chunks", [1, 15, 24, 100, 256, 2048])
@pytest.mark.parametrize("rows", [1, 8, 32, 64])
def test_segments_cover_all_chunks_where_programs_are_few(rows: int, chunks: int) -> None:
    k = torch.empty(1, 1, rows, 128, dtype=torch.bfloat16)
    walk = kernels._walk(k, kernels._shapes(k, k), rows, chunks)
    assert walk.segments * walk.length >= chunks > (walk.segments - 1) * walk.length
    assert (walk.segments > 1) == (rows <= 32 and chunks >= 24)
    assert walk.segments * rows <= kernels.PROCESSORS or walk.segments == 1
    assert walk.segments == 1 or walk.length >= 8
    assert kernels._walk(k.float(), kernels._shapes(k, k), rows, chunks).segments == 1


@interpreted
@pytest.mark.parametrize("keep", ["o", "state"])
def test_gradient_through_one_result_alone(keep: str) -> None:
    inputs = narrowed([x[:1] for x in rule_inputs(66, width=(16, 16))], torch.float32)
    gradients = []
    for rule in (kernels.gated_delta_rule, reference.gated_delta_rule):
        leaves = [x.clone().requires_grad_() for x in inputs]
        o, state, _ = rule(*leaves)
        result = o if keep == "o" else state
        gradients.append(torch.autograd.grad(result.square().sum(), leaves, materialize_grads=True))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@interpreted
def test_slices_of_one_tensor_need_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, *rest = narrowed([x[:1] for x in rule_inputs(66, width=(16, 16))], torch.float32)
    views = torch.cat([q, k, v], 2).split(q.shape[2], 2)
    with torch.no_grad():
        expected = kernels.gated_delta_rule(q, k, v, *rest)
        copied = kernels.gated_delta_rule(*(x.mT.contiguous().mT for x in (q, k, v)), *rest)
        monkeypatch.setattr(Tensor, "contiguous", lambda x: x if x.is_contiguous() else pytest.fail("copied"))
        actual = kernels.gated_delta_rule(*views, *rest)
    for a, c, e in zip(actual, copied, expected, strict=True):
        assert torch.equal(a, e)
        assert torch.equal(c, e)


@interpreted
def test_surprise_carries_no_gradient_and_the_rest_does() -> None:
    o, state, surprise = kernels.gated_delta_rule(
        *(x.requires_grad_() for x in narrowed(rule_inputs(3, width=(16, 16)), torch.float32))
    )
    assert (o.requires_grad, state.requires_grad, surprise.requires_grad) == (True, True, False)


@interpreted
def test_compile_sees_one_operator() -> None:
    inputs = narrowed([x[:1] for x in rule_inputs(66, width=(16, 16))], torch.float32)

    def loss(*leaves: Tensor) -> Tensor:
        o, state, surprise = kernels.gated_delta_rule(*leaves)
        return o.square().sum() + state.square().sum() + surprise.sum()

    gradients = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        gradients.append(torch.autograd.grad(function(*leaves), leaves))
    for actual, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(actual, expected)


@interpreted
def test_the_shapes_promised_to_the_compiler_are_true() -> None:
    inputs = narrowed([x[:1] for x in rule_inputs(3, width=(5, 3))], torch.float32)
    torch.library.opcheck(kernels._forward, tuple(inputs), test_utils=("test_schema", "test_faketensor"))
    _, last, _, *saved = kernels._forward(*inputs)
    q, k, v, *_ = inputs
    arguments = (torch.ones_like(v), last, q, k, v, *saved)
    torch.library.opcheck(kernels._backward, arguments, test_utils=("test_schema", "test_faketensor"))


def device_inputs(batch: int, length: int, heads: int, width: tuple[int, int], seed: int) -> list[Tensor]:
    """q, k, v, g, beta and a state in float64 on the GPU, with a document starting every 50 tokens or so."""
    random = torch.Generator("cuda").manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, *size, dtype=torch.float64, device="cuda", generator=random)

    q, k = (F.normalize(normal(length, heads, width[0]), dim=-1) for _ in range(2))
    g, beta = -F.softplus(normal(length, heads) - 2.0), normal(length, heads).sigmoid()
    begins = torch.rand(batch, length, 1, device="cuda", generator=random) < 0.02
    return [q, k, normal(length, heads, width[1]), g.masked_fill(begins, -torch.inf), beta, normal(heads, *width)]


def correlate(inputs: list[Tensor]) -> list[Tensor]:
    """The same with keys near one direction, β near 1 and little decay."""
    q, k, v, g, beta, state = inputs
    return [q, F.normalize(k + 4.0 * k[:, :1], dim=-1), v, 0.1 * g, 1.0 - 0.01 * beta, state]


WIDTHS = ((128, 128), (64, 64), (128, 64), (64, 128), (32, 32), (16, 128), (100, 36), (256, 256), (192, 256))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_every_gradient_on_the_gpu(width: tuple[int, int], dtype: torch.dtype) -> None:
    if dtype == torch.float32 and max(width) > 128:
        pytest.skip("float32 heads wider than 128 take the chunked form")
    for seed, length in enumerate((1, 63, 64, 65, 130, 257)):
        inputs = device_inputs(8, length, 1 + seed % 3, width, seed)
        for correlated in (False, True):
            narrow = narrowed(correlate(inputs) if correlated else inputs, dtype, "cuda")
            assert_small(errors(narrow), dtype, correlated)


@pytest.mark.gpu
@pytest.mark.parametrize("correlated", [False, True], ids=["random", "correlated"])
@pytest.mark.parametrize(("length", "width"), [(1543, (128, 128)), (2048, (128, 64)), (1600, (64, 100))], ids=str)
def test_segments_on_the_gpu(length: int, width: tuple[int, int], correlated: bool) -> None:
    inputs = device_inputs(2, length, 2, width, length)
    narrow = narrowed(correlate(inputs) if correlated else inputs, torch.bfloat16, "cuda")
    shapes = kernels._shapes(narrow[1], narrow[2])
    assert kernels._walk(narrow[1], shapes, 4, -(-length // kernels.CHUNK)).segments >= 3
    assert_small(errors(narrow), torch.bfloat16, correlated)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(2))
def test_no_chunk_is_wrong_and_every_run_is_the_same(seed: int) -> None:
    """Many programs at once: what a compiler's race corrupts, it corrupts in some chunks and some runs."""
    inputs = narrowed(device_inputs(4, 1024, 8, (128, 128), seed), torch.bfloat16, "cuda")
    expected, expected_gradients = run_with_gradients(reference.gated_delta_rule, [x.double() for x in inputs])
    first: list[Tensor] = []
    for _ in range(10):
        actual, gradients = run_with_gradients(kernels.gated_delta_rule, inputs)
        found = [*actual, *gradients.values()]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
    for a, e in zip(first, [*expected, *expected_gradients.values()], strict=True):
        if a.shape[1] == 1024:
            difference, size = (x.unflatten(1, (-1, 64)).flatten(3).norm(dim=(2, 3)) for x in (a.double() - e, e))
            assert (difference <= 0.05 * size + 1e-3 * size.mean()).all()


@pytest.mark.gpu
@pytest.mark.parametrize("length", [130, 1600])
def test_a_graph_replays_forward_and_backward(length: int) -> None:
    """On one stream throughout: a gradient is collected on the stream its leaf was first used on."""
    inputs = narrowed(device_inputs(2, length, 3, (128, 128), 0), torch.bfloat16, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    def call() -> list[Tensor]:
        o, state, surprise = kernels.gated_delta_rule(*leaves)
        gradients = torch.autograd.grad([o, state], leaves, [inputs[2], inputs[5]])
        return [x.detach() for x in (o, state, surprise, *gradients)]

    with torch.cuda.stream(stream):
        leaves = [x.clone().requires_grad_() for x in inputs]
        expected = call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = call()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, e) for a, e in zip(captured, expected, strict=True))


@pytest.mark.gpu
def test_compiled_on_the_gpu() -> None:
    inputs = narrowed(device_inputs(2, 130, 3, (64, 64), 0), torch.bfloat16, "cuda")

    def scaled(*leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        o, state, surprise = kernels.gated_delta_rule(*leaves)
        return 2.0 * o, state, surprise

    rules: tuple[Rule, ...] = (scaled, torch.compile(scaled, fullgraph=True))
    (actual, gradients), (expected, expected_gradients) = (run_with_gradients(rule, inputs) for rule in rules)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in NAMES)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_nothing_waits_for_the_device() -> None:
    inputs = narrowed(device_inputs(2, 130, 3, (128, 128), 0), torch.bfloat16, "cuda")
    leaves = [x.requires_grad_() for x in inputs]
    weight = torch.ones_like(inputs[2])
    torch.autograd.grad(kernels.gated_delta_rule(*leaves)[0], leaves, weight)
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Raises where the host waits.
        gradients = torch.autograd.grad(kernels.gated_delta_rule(*leaves)[0], leaves, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
