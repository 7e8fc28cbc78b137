from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from cmrn.layers import CausalConv, Linear, Norm, project, segment_numbers, unit
from cmrn.records import Segments
from tests.tolerances import assert_close

CHANNELS = 3
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def conv_and_input(length: int, width: int = 4, batch: int = 2) -> tuple[CausalConv, Tensor]:
    torch.manual_seed(length + width)
    return CausalConv(CHANNELS, width).double(), torch.randn(batch, length, CHANNELS, dtype=torch.float64)


def naive_conv(weight_JC: Tensor, x_BTC: Tensor, start_BT: Tensor | None) -> Tensor:
    """Each token's sum over the tokens of its own document, one product at a time."""
    reach = weight_JC.shape[0] - 1
    rows = []
    for row in range(x_BTC.shape[0]):
        outputs = []
        for t in range(x_BTC.shape[1]):
            y_C = weight_JC[reach] * x_BTC[row, t]
            for lag in range(1, min(reach, t) + 1):
                if start_BT is not None and bool(start_BT[row, t - lag + 1]):
                    break
                y_C = y_C + weight_JC[reach - lag] * x_BTC[row, t - lag]
            outputs.append(y_C)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def starts_at(length: int, *places: int) -> Tensor:
    start_BT = torch.zeros(2, length, dtype=torch.bool)
    start_BT[0, [place for place in places if place < length]] = True
    return start_BT


@given(length=st.integers(1, 12), width=st.integers(2, 5), places=st.none() | st.sets(st.integers(0, 11)))
@example(length=12, width=4, places={0, 4, 6, 7})
def test_convolution_equals_its_definition(length: int, width: int, places: set[int] | None) -> None:
    conv, x_BTC = conv_and_input(length, width)
    start_BT = None if places is None else starts_at(length, *places)
    leaf = x_BTC.requires_grad_()
    upstream = torch.randn_like(x_BTC)
    results = []
    for y_BTC in (conv(leaf, None, Segments(None, start_BT))[0], naive_conv(conv.weight, leaf, start_BT)):
        results.append((y_BTC, *torch.autograd.grad((y_BTC * upstream).sum(), (leaf, conv.weight))))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@given(length=st.integers(2, 14), data=st.data(), places=st.sets(st.integers(0, 13)))
def test_any_split_convolves_alike(length: int, data: st.DataObject, places: set[int]) -> None:
    conv, x_BTC = conv_and_input(length)
    start_BT = starts_at(length, *places)
    whole, last_tail = conv(x_BTC, None, Segments(None, start_BT))
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1))))
    tail, parts = None, []
    for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
        part, tail = conv(x_BTC[:, begin:end], tail, Segments(None, start_BT[:, begin:end]))
        parts.append(part)
    assert_close(torch.cat(parts, 1), whole)
    assert_close(tail, last_tail)


def test_tail_holds_the_last_inputs_of_the_document() -> None:
    conv, x_BTC = conv_and_input(6)
    _, tail = conv(x_BTC, None, Segments(None, starts_at(6, 4)))
    assert_close(tail[0], torch.cat([torch.zeros_like(x_BTC[0, :1]), x_BTC[0, 4:]]))
    assert_close(tail[1], x_BTC[1, 3:])


def test_tail_passes_over_padding() -> None:
    conv, x_BTC = conv_and_input(6)
    real_BT = torch.tensor([[1, 1, 1, 1, 0, 0], [0] * 6], dtype=torch.bool)
    before = torch.randn(2, 3, CHANNELS, dtype=torch.float64)
    _, tail = conv(x_BTC, before, Segments(real_BT, None))
    assert_close(tail[0], x_BTC[0, 1:4])
    assert_close(tail[1], before[1])


def test_tail_carries_gradient() -> None:
    conv, x_BTC = conv_and_input(5)
    before = torch.randn(2, 3, CHANNELS, dtype=torch.float64, requires_grad=True)
    _, tail = conv(x_BTC[:, :1], before, Segments())
    y_BTC, _ = conv(x_BTC[:, 1:], tail, Segments())
    (gradient,) = torch.autograd.grad(y_BTC.sum(), before)
    assert (gradient[:, 1:] != 0).all()
    assert not gradient[:, 0].any()


def test_convolution_gradcheck() -> None:
    conv, x_BTC = conv_and_input(7)
    tail = torch.randn(2, 3, CHANNELS, dtype=torch.float64, requires_grad=True)
    start_BT = starts_at(7, 0, 3, 4)

    def convolve(x_BTC: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        y_BTC, last = torch.func.functional_call(conv, {"weight": weight}, (x_BTC, tail, Segments(None, start_BT)))
        return y_BTC, last

    assert torch.autograd.gradcheck(convolve, (x_BTC.requires_grad_(), tail, conv.weight))


def test_convolution_keeps_the_type_of_its_input() -> None:
    conv, x_BTC = CausalConv(CHANNELS), torch.randn(2, 9, CHANNELS)
    expected, _ = conv(x_BTC, None, Segments(None, starts_at(9, 5)))
    y_BTC, tail = conv(x_BTC.bfloat16(), None, Segments(None, starts_at(9, 5)))
    assert y_BTC.dtype == tail.dtype == torch.bfloat16
    assert_close(y_BTC, expected)
    y_BTC.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_unit_has_length_one_and_the_right_gradient() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert_close(unit(x), torch.nn.functional.normalize(x, dim=-1))
    assert torch.autograd.gradcheck(unit, x)


def test_unit_of_almost_nothing_is_zero() -> None:
    x = torch.tensor([[0.0, 0.0], [3e-7, 4e-7], [3.0, 4.0]], requires_grad=True)
    y = unit(x)
    assert_close(y, torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not gradient[:2].any()
    assert gradient[2].isfinite().all()


def test_unit_in_bfloat16_is_one_to_its_precision() -> None:
    y = unit(torch.randn(50, 64).bfloat16())
    assert y.dtype == torch.bfloat16
    assert ((y.float().norm(dim=-1) - 1).abs() < 1e-2).all()


def test_norm_has_mean_zero_and_variance_one() -> None:
    norm = Norm(16, 1e-5).double()
    x = 5 + 3 * torch.randn(4, 16, dtype=torch.float64)
    y = norm(x)
    assert_close(y.mean(-1), torch.zeros(4, dtype=torch.float64))
    variance = x.var(-1, unbiased=False)
    assert_close(y.var(-1, unbiased=False), variance / (variance + 1e-5))
    with torch.no_grad():
        norm.weight.mul_(2.0)
    assert_close(norm(x), 2 * y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_gives_the_type_that_products_run_in(dtype: torch.dtype) -> None:
    norm = Norm(8, 1e-5)
    assert norm(torch.randn(2, 8, dtype=dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(2, 8, dtype=dtype)).dtype == torch.bfloat16


def test_linear_draws_by_fan_in() -> None:
    torch.manual_seed(1)
    weight = Linear(400, 300, scale=0.5).weight
    assert float(weight.detach().std()) == pytest.approx(0.5 / 20, rel=0.05)
    assert Linear(4, 3).bias is None


def test_documents_are_counted_from_the_carried_one() -> None:
    numbers = segment_numbers(Segments(None, starts_at(5, 1, 3)), 2, 5, torch.device("cpu"))
    assert numbers.tolist() == [[0, 1, 1, 2, 2], [0] * 5]
    assert not segment_numbers(Segments(), 2, 5, torch.device("cpu")).any()


def test_heads_are_the_convolution_cut_and_brought_to_length_one() -> None:
    torch.manual_seed(3)
    conv, x_BTC = CausalConv(12).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    segments = Segments(None, starts_at(9, 5))
    mixed, last = conv(x_BTC, None, segments)
    (q, k, v), tail = conv.heads(x_BTC, None, segments, 2, parts=3, units=2, silu=True)
    streams = torch.nn.functional.silu(mixed).unflatten(-1, (3, 2, 2)).unbind(2)
    for actual, expected in zip((q, k, v), (unit(streams[0]), unit(streams[1]), streams[2]), strict=True):
        assert_close(actual, expected)
    assert torch.equal(tail, last)
    (whole,), _ = conv.heads(x_BTC, None, segments, 4)
    assert_close(whole, unit(mixed.unflatten(-1, (3, 4))))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [3, 300])
def test_projections_side_by_side_are_the_layers_own(device: str, length: int) -> None:
    torch.manual_seed(4)
    layers = [Linear(16, outputs).double().to(device) for outputs in (8, 8, 3, 2)]
    x_BTD = torch.randn(1, length, 16, dtype=torch.float64, device=device)
    pair, third, fourth = project(x_BTD, (layers[0], layers[1]), (layers[2],), (layers[3],))
    expected = [layer(x_BTD) for layer in layers]
    for actual, wanted in zip((*pair.split(8, -1), third, fourth), expected, strict=True):
        assert_close(actual, wanted)
    gradients = torch.autograd.grad(fourth.square().sum() + pair.square().sum(), [layer.weight for layer in layers[:2]])
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.gpu
def test_unit_has_the_same_gradient_on_both_devices() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    x[0] = 1e-8
    gradients = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad(unit(leaf)[..., 0].sum(), leaf)
        gradients.append(gradient.cpu())
    assert_close(gradients[1], gradients[0])
