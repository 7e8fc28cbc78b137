from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cmrn.bench.store_case import StoreOptions
from cmrn.bench.store_embed import _ranks, embed
from cmrn.errors import UsageError


def test_a_rank_counts_better_rows_and_earlier_equal_ones() -> None:
    scores_QN = np.array([[0.5, 0.9, 0.5, 0.1], [0.2, 0.2, 0.2, 0.3]], np.float32)
    assert _ranks(scores_QN, np.array([2, 0])).tolist() == [2, 1]


def test_without_the_passages_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wikipedia_abstracts"):
        embed(StoreOptions(data_root=tmp_path), lambda text: None)


@pytest.mark.slow
def test_every_figure_is_there(tmp_path: Path) -> None:
    facts = [{"id": str(i), "title": f"Fact {i}", "text": f"The number {i} is followed by {i + 1}."} for i in range(70)]
    asked = [{"question": f"What follows the number {i}?", "passage_id": str(i)} for i in range(5)]
    for name, lines in {"wikipedia_abstracts": facts, "wikipedia_questions_dev": asked}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = embed(StoreOptions(rounds=1, data_root=tmp_path), lambda text: None)
    assert found.rows[0].name == "encoder"
    assert {"populate", "recall@1", "recall@5", "recall@10"} <= {row.name for row in found.rows}
