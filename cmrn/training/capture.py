"""A training step on CUDA as one graph: compiled blocks, gradient, norm, optimizers and balance, replayed whole."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.nn.utils import get_total_norm

from cmrn.data.packing import Batch
from cmrn.training.accumulate import accumulate
from cmrn.training.carry import Carried
from cmrn.training.device import Precision
from cmrn.training.optim import OptimizerSet
from cmrn.training.random_state import restore_random, save_random
from cmrn.training.step import StepResult

__all__ = ["CapturedStep", "compiled", "without_advice"]

WARM_UP = 2
BUILDS = 64
"""Most codes that may be compiled of one function in a process."""


class CapturedStep:
    """The step of `PlainStep` without a word from the host between its first kernel and its last.

    At the first batch, and where a batch's shape or the long-term reading changes, blocks are compiled (one code for
    all blocks of one build) and the whole step is recorded as a CUDA graph; after that a step is four copies from
    pinned memory and one launch.
    Whether loss and norm are finite is decided on the device: the optimizers read it as `found_inf`, and the clipping
    as `grad_scale`, both as torch's gradient scaler would set them. Differs from `PlainStep` in rounding only.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: OptimizerSet,
        gradient_clip: float,
        precision: Precision,
        *,
        carry: bool = False,
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.gradient_clip, self.precision = gradient_clip, precision
        self.carried = Carried(carry)
        device = next(model.parameters()).device
        self._grad_scale, self._found_inf, self._skip = (torch.zeros((), device=device) for _ in range(3))
        optimizers.guard(self._grad_scale, self._found_inf)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._key: tuple[object, ...] = ()
        self._batch: Batch | None = None
        self._told = torch.zeros(0, device=device)

    def __call__(self, batch: Batch, micro_batch: int, share: float) -> Callable[[], StepResult]:
        """Launch the step; the call returned waits for it."""
        trained = tuple(parameter.requires_grad for parameter in self.model.parameters())
        key = (tuple(batch.input_ids_BT.shape), micro_batch, trained, getattr(self.model, "long_reading", None))
        if key != self._key or self._graph is None:
            self._record(batch, micro_batch)
            self._key = key
        assert self._graph is not None
        self._fill(batch)
        self.optimizers.set_share(share)
        self._graph.replay()
        told = torch.empty(self._told.shape, pin_memory=True)
        told.copy_(self._told, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return lambda: _result(told, done)

    def _fill(self, batch: Batch) -> None:
        assert self._batch is not None
        for name, value in vars(batch).items():
            getattr(self._batch, name).copy_(value.pin_memory(), non_blocking=True)

    def _record(self, batch: Batch, micro_batch: int) -> None:
        """Warm up and capture, leaving weights, optimizers and random generators as they were."""
        device = self._skip.device
        self._graph, self._batch = None, Batch(**{name: value.to(device) for name, value in vars(batch).items()})
        self.carried.begin(self.model, self._batch, self.precision)
        document, tensors = save_random()
        self._skip.fill_(1.0)
        try:
            try:
                with compiled(self.model):
                    self._graph = self._capture(self._batch, micro_batch)
            except (InductorError, TorchDynamoException) as error:
                warnings.warn(f"the blocks run as they are, as torch could not compile them: {error}", stacklevel=2)
                self._graph = self._capture(self._batch, micro_batch)
        finally:
            self.model.zero_grad(set_to_none=True)
            self._skip.zero_()
            restore_random(document, tensors)

    def _capture(self, batch: Batch, micro_batch: int) -> torch.cuda.CUDAGraph:
        from cmrn.training.ahead_triton import only_compiled

        device = self._skip.device
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            with only_compiled():
                self._step(batch, micro_batch)
            for _ in range(WARM_UP):
                self._step(batch, micro_batch)
        torch.cuda.current_stream(device).wait_stream(side)
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        # Another thread may prepare batches meanwhile: what it does must not end the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._told = self._step(batch, micro_batch)
        return graph

    def _step(self, batch: Batch, micro_batch: int) -> Tensor:
        """(loss, norm, load of each expert), float32."""
        gradient = accumulate(self.model, batch, micro_batch, self.precision, self.carried.states)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients)
        finite = (gradient.loss.isfinite() & norm.isfinite()).float() * (1 - self._skip)
        self._found_inf.copy_(1 - finite)
        self._grad_scale.copy_(((norm + 1e-6) / self.gradient_clip).clamp(min=1.0))
        self.optimizers.move()
        self.carried.keep(gradient.states, finite)
        parts = [torch.stack([gradient.loss.float(), norm.float()])]
        if gradient.loads:
            loads_LE = torch.stack(gradient.loads)
            # Loads of zero are all equal to their mean, and leave the balance where it is.
            self.model.update_balance(tuple(loads_LE * finite))  # type: ignore[operator]
            parts.append(loads_LE.mean(0).float())
        return torch.cat(parts)


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Within it the model's blocks run compiled, one code for those that are built alike, and its last norm.

    The model is otherwise as it was: names of parameters, and what it does afterwards.
    """
    # A process may meet many shapes and models; none of their codes is needed once its graph is recorded.
    limit = torch._dynamo.config.patch(recompile_limit=BUILDS)
    others = (getattr(model, name, None) for name in ("final_norm", "router_losses"))
    regions: list[nn.Module] = [*model.blocks, *(other for other in others if other is not None)]  # type: ignore[misc]
    for region in regions:
        region.compile(fullgraph=True, dynamic=False)
    try:
        with limit, without_advice():
            yield
    finally:
        for region in regions:
            region._compiled_call_impl = None


@contextmanager
def without_advice() -> Iterator[None]:
    """Within it torch's compiler keeps two pieces of advice to itself: both name what is meant to be so.

    That products of float32 could be rounded to TF32: what is float32 here, routing logits above all, is to stay so.
    That a long softmax is made in two passes, which is a matter of its speed alone.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        warnings.filterwarnings("ignore", r"\s*Online softmax is disabled", UserWarning)
        yield


def _result(told: Tensor, done: torch.cuda.Event) -> StepResult:
    done.synchronize()
    loss, norm, *load = told.tolist()
    return StepResult(loss, norm, tuple(load), bool(told[:2].isfinite().all()))
