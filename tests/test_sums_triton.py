from __future__ import annotations

import pytest
import torch

from tests.tolerances import assert_close

pytest.importorskip("triton", reason="the kernel needs Triton")
from cmrn.sums_triton import sum_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [(1, 1), (70, 5), (600, 3), (65, 40)])
def test_rows_are_summed(shape: tuple[int, int]) -> None:
    partial_RC = torch.randn(shape, device=DEVICE)
    assert_close(sum_rows(partial_RC, torch.float32), partial_RC.double().sum(0))
    assert sum_rows(partial_RC, torch.bfloat16).dtype == torch.bfloat16
