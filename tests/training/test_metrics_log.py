from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cmrn.training.metrics_log import MetricsLog


def write(path: Path, steps: int, final: bool = True) -> list[dict[str, object]]:
    log = MetricsLog(path, 0)
    for step in range(1, steps + 1):
        log.append("step", step, loss=step / 3)
        if step % 2 == 0:
            log.append("evaluation", step, final=False)
    if final:
        log.append("evaluation", steps, final=True)
    log.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(cut=st.integers(0, 60), step=st.integers(0, 6))
def test_a_reopened_log_holds_what_happened_up_to_the_step(cut: int, step: int, tmp_path_factory: object) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"  # type: ignore[attr-defined]
    lines = write(path, 6)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - cut])
    log = MetricsLog(path, step)
    log.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    expected = [line for line in lines if line["step"] <= step and not line.get("final")]
    assert kept == expected[: len(kept)]
    assert cut > 0 or kept == expected
    assert all(log.evaluated(line["step"]) == (line in kept) for line in lines if line.get("final") is False)


def test_without_a_path_nothing_is_kept() -> None:
    log = MetricsLog(None, 0)
    log.append("step", 1, loss=1.0)
    log.sync()
    log.close()
    assert not log.evaluated(1)
