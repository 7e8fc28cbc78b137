from __future__ import annotations

import pytest

from cmrn.bench.decode import DecodeOptions, run
from tests.bench.test_context import TINY


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_times_writing_after_each_context_beside_a_llama(device: str) -> None:
    options = DecodeOptions(
        device, "quickstart", contexts=(16, 40, 2100), cached=(16, 40), tokens=3, repeats=3, overrides=TINY
    )
    report = run(options, lambda line: None)
    rows = {row.name: row for row in report.rows}
    assert [row.unit for row in report.rows] == ["tokens/s"] * 5
    assert all(row.value for row in report.rows)
    first, last = rows["writing after 16 tokens"], rows["writing after 2,100 tokens"]
    assert first.detail["state_bytes"] == last.detail["state_bytes"]
    assert first.peer_value
    assert last.peer_value is None
    assert rows["writing after 40 tokens"].detail["peer_cache_bytes"] == 2.5 * first.detail["peer_cache_bytes"]
    assert rows["writing after 2,100, of after 16"].peer_value == first.value
