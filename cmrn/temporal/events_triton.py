"""The events of one token a row on CUDA, in one launch: the tracker's many sums are a few numbers a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["track_one"]


def track_one(
    surprises: list[Tensor], carried: list[Tensor], start_N: Tensor | None, threshold: float, longest: int
) -> list[Tensor]:
    """[surprise_N, begins_N, *state] after one token, as `EventChainTracker.update` defines them; no gradient.

    surprises: (N,) float32, one a layer. carried: the fields of an `EventState`, in their order.
    """
    result: list[Tensor] = torch.ops.cmrn.track_one(surprises, carried, start_N, threshold, longest)
    return result


@torch.library.custom_op("cmrn::track_one", mutates_args=())
def _track_one(
    surprises: list[Tensor], carried: list[Tensor], start_N: Tensor | None, threshold: float, longest: int
) -> list[Tensor]:
    outputs: list[Tensor] = _empty_events(surprises, carried, start_N, threshold, longest)
    rows = surprises[0].shape[0]
    _track_kernel[(1,)](
        tuple(surprise.contiguous() for surprise in surprises), *(each.contiguous() for each in carried),
        None if start_N is None else start_N.contiguous(), *outputs, rows, LAYERS=len(surprises), THRESHOLD=threshold,
        LONGEST=longest, ROWS=triton.next_power_of_2(rows), num_warps=1,
    )  # fmt: skip
    return outputs


@_track_one.register_fake
def _empty_events(
    surprises: list[Tensor], carried: list[Tensor], start_N: Tensor | None, threshold: float, longest: int
) -> list[Tensor]:
    surprise_N = surprises[0].new_empty(surprises[0].shape)
    begins_N = surprise_N.new_empty(surprise_N.shape, dtype=torch.bool)
    return [surprise_N, begins_N, *(each.new_empty(each.shape) for each in carried)]


@triton.jit
def _track_kernel(surprises, count_ptr, sum_ptr, square_ptr, above_ptr, since_ptr, start_ptr, surprise_out, begins_out,
                  count_out, sum_out, square_out, above_out, since_out, rows, LAYERS: tl.constexpr,
                  THRESHOLD: tl.constexpr, LONGEST: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.arange(0, ROWS)
    here = row < rows
    surprise = tl.load(surprises[0] + row, here, 0.0)
    for i in tl.static_range(1, LAYERS):
        surprise += tl.load(surprises[i] + row, here, 0.0)
    surprise /= LAYERS
    joined = here
    if start_ptr is not None:
        joined = here & (tl.load(start_ptr + row, here, 0) == 0)
    s = surprise.to(tl.float64)
    count = tl.load(count_ptr + row, joined, 0)
    total = tl.load(sum_ptr + row, joined, 0.0)
    squares = tl.load(square_ptr + row, joined, 0.0)
    earlier = tl.maximum(count, 1).to(tl.float64)
    mean = total / earlier
    deviation = tl.sqrt(tl.maximum(squares / earlier - mean * mean, 0.0))
    above = (count > 1) & (s > mean + THRESHOLD * deviation)
    opens = count == 0
    followed = tl.load(above_ptr + row, here, 0) != 0
    natural = opens | (above & (followed == 0))
    since = tl.where(natural, 0, tl.load(since_ptr + row, here, 0))
    tl.store(surprise_out + row, surprise, here)
    tl.store(begins_out + row, since % LONGEST == 0, here)
    tl.store(count_out + row, count + 1, here)
    tl.store(sum_out + row, total + s, here)
    tl.store(square_out + row, squares + s * s, here)
    tl.store(above_out + row, above, here)
    tl.store(since_out + row, since + 1, here)
