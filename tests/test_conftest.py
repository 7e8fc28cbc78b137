from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tolerances import TOLERANCES, assert_close


def test_unwritten_memory_is_nan() -> None:
    assert torch.empty(3, 2).isnan().all()
    assert torch.empty_like(torch.zeros(3)).isnan().all()
    assert torch.zeros(3).new_empty(2).isnan().all()
    assert torch.empty(2, dtype=torch.int64).dtype == torch.int64


def test_poisoned_leaf_still_requires_gradient() -> None:
    assert torch.empty(2, requires_grad=True).is_leaf


def test_tests_run_on_one_thread() -> None:
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_tolerance_refuses_more_than_it_allows(dtype: torch.dtype) -> None:
    one = torch.ones(3, dtype=dtype)
    assert_close(one, one.clone())
    with pytest.raises(AssertionError):
        assert_close(one + 10 * (TOLERANCES[dtype].rtol + TOLERANCES[dtype].atol), one)
    with pytest.raises(AssertionError):
        assert_close(one * float("nan"), one)


def test_data_root_holds_the_corpora(data_root: Path) -> None:
    assert (data_root / "corpora").is_dir()
