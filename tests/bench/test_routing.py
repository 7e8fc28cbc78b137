from __future__ import annotations

from cmrn.bench.routing import crossover, routing_rows


def test_rows_and_notes() -> None:
    rows, notes = routing_rows("cpu", 2, lambda _: None, counts=(16, 64))
    assert len(rows) == 2 * 2 * 2
    assert len(notes) == 4
    assert {row.peer for row in rows} == {"one matrix product, top-k"}
    assert all(row.value and row.ratio for row in rows)


def test_crossover_is_where_it_stays_cheaper() -> None:
    flat = {16: 1.0, 64: 3.0, 256: 2.0, 1024: 9.0}
    assert "from 1,024 experts on" in crossover("x", 1, flat, {16: 2.0, 64: 2.0, 256: 2.0, 1024: 2.0})
    assert "from 16 experts on" in crossover("x", 8, flat, dict.fromkeys(flat, 0.5))
    assert "never" in crossover("x", 1, flat, dict.fromkeys(flat, 9.0))
