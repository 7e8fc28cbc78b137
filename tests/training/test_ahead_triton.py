from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.gpu


@triton.jit
def add(x_ptr, out_ptr, value, size: tl.constexpr):
    at = tl.arange(0, size)
    tl.store(out_ptr + at, tl.load(x_ptr + at) + value)


class Added(torch.autograd.Function):
    """x + 1, with a gradient twice as large, by kernels of two types."""

    @staticmethod
    def forward(_ctx: object, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        add[(1,)](x, out, 1.0, 64)
        return out

    @staticmethod
    def backward(_ctx: object, grad: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(grad, dtype=torch.float64)
        add[(1,)](grad.contiguous(), out, 1.0, 64)
        return out.float()


def test_kernels_are_compiled_but_not_launched_then_launched_as_ever() -> None:
    from cmrn.training.ahead_triton import only_compiled

    x = torch.ones(64, device="cuda", requires_grad=True)
    out = torch.zeros(64, device="cuda")
    caches = add.device_caches[torch.cuda.current_device()]
    with only_compiled():
        add[(1,)](x, out, 2.0, 64)
        y = Added.apply(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert not out.any()
    assert not y.any()
    assert not gradient.any()
    ready = list(caches[0].values())
    assert len(ready) == 2
    assert all(kernel.module is not None for kernel in ready)
    add[(1,)](x, out, 2.0, 64)
    (gradient,) = torch.autograd.grad(Added.apply(x).sum(), x)
    assert bool((out == 3).all())
    assert bool((gradient == 2).all())
    assert len(caches[0]) == 2


def test_an_error_within_it_leaves_kernels_as_they_were() -> None:
    from cmrn.training.ahead_triton import only_compiled

    run = triton.runtime.jit.JITFunction.run
    with pytest.raises(ZeroDivisionError), only_compiled():
        raise ZeroDivisionError
    assert triton.runtime.jit.JITFunction.run is run
