"""What every test runs under: poisoned memory, one thread, no network, and the shared data where there is any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

from tests.interpreter import repair

repair()

CHECKOUT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "cmrn",
    deadline=None,
    max_examples=25,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cmrn")


def poison(make: Any) -> Any:
    """`make`, but with NaN in place of what memory happened to hold, so that reading it cannot go unnoticed."""

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = make(*args, **kwargs)
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return poisoned


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every new floating tensor of torch.empty and its kin with NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poison(torch.empty))
        patch.setattr(torch, "empty_like", poison(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Compute on one thread, whatever the test before did: sums are then added in one order."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of shared data, named by CMRN_DATA or beside the checkout; a test that needs it skips without."""
    named = os.environ.get("CMRN_DATA")
    folder = Path(named) if named else CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data: set CMRN_DATA to its folder")
    return folder
