"""The cases fail where a safeguard is taken out of a copy of the package."""

from __future__ import annotations

import shutil

import pytest

from cmrn.bench.faults.mutations import MUTATIONS, Mutation, noticed
from cmrn.bench.store_case import StoreOptions

QUICK = ("the sync at each commit", "the checksum", "the writer's lock")
each = [
    pytest.param(mutation, marks=() if mutation.name in QUICK else pytest.mark.slow, id=mutation.name)
    for mutation in MUTATIONS
]


@pytest.mark.parametrize("mutation", each)
def test_a_missing_safeguard_is_noticed(mutation: Mutation) -> None:
    if shutil.which("cc") is None and mutation.case.__name__ in ("every_call", "power"):
        pytest.skip("needs a C compiler")
    assert noticed(mutation, StoreOptions())


def test_the_quick_ones_are_there() -> None:
    assert set(QUICK) <= {mutation.name for mutation in MUTATIONS}
