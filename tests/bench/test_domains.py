from __future__ import annotations

from pathlib import Path

import pytest

from cmrn.bench.domains import DomainsOptions, run
from cmrn.bench.domains_text import prepare_without, read_domains
from cmrn.bench.text import DOMAINS
from cmrn.errors import UsageError
from tests.bench.tiny_text import TINY, VOCABULARY, write_corpora


def quiet(text: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpora(tmp_path_factory.mktemp("domains"))


def options(root: Path, tmp_path: Path, **changes: object) -> DomainsOptions:
    own = ("num_experts", "max_steps", "batch_size", "sequence_length")
    small = tuple(each for each in TINY if not any(name in each for name in own))
    fields = {
        "device": "cpu", "data_root": root, "cache": tmp_path, "fractions": (4.0,), "experts": 2,
        "overrides": (*small, "training.max_steps=6", "training.precision=float32", "training.batch_size=16",
                      "training.sequence_length=64"),
    }  # fmt: skip
    return DomainsOptions(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_vocabulary_has_not_read_the_domain_and_texts_need_not_travel(root: Path, tmp_path: Path) -> None:
    path = prepare_without(root, tmp_path, VOCABULARY, "legal", quiet)
    text = read_domains(path)
    bytes_a_token = {name: float(text.byte_lengths[text.train[name][0]].mean()) for name in DOMAINS}
    assert bytes_a_token["legal"] < min(size for name, size in bytes_a_token.items() if name != "legal")
    assert prepare_without(tmp_path / "nowhere", tmp_path, VOCABULARY, "legal", quiet) == path
    with pytest.raises(UsageError, match="no such file"):
        prepare_without(tmp_path / "nowhere", tmp_path, VOCABULARY, "medical", quiet)
    with pytest.raises(UsageError, match="no domain"):
        prepare_without(root, tmp_path, VOCABULARY, "law", quiet)
    sample = text.sample(("math", "code"), ("math",), 16, 2, 30)
    assert all(30 <= tokens < 400 for tokens in sample.tokens.values())


@pytest.mark.slow
def test_every_way_is_measured_and_only_ours_leaves_the_rest_as_it_was(root: Path, tmp_path: Path) -> None:
    report = run(options(root, tmp_path), quiet)
    rows = {row.name.split(",")[0].split(":")[0]: row for row in report.rows if "bits per byte" in row.name}
    ways = {"full retrain", "2 experts added", "fine-tuning of everything", "LoRA of equal parameters"}
    assert ways | {"branch of a dense model"} <= set(rows)
    ours = rows["2 experts added"].detail
    assert ours["unchanged_sha256"] is True
    assert ours["masked_logits_differ"] == 0
    assert ours["experts"] == ["medical", "medical_2"]
    assert set(ours["forgetting"]) == set(DOMAINS) - {"medical"}
    costs = [row for row in report.rows if row.name.startswith("2 experts") and "gain" in row.name]
    assert costs[0].value is not None
    assert 1 < float(costs[0].name.split("% of the FLOPs")[0].split()[-1]) <= 400
    assert rows["full retrain"].detail["forgetting"]
    gain = next(row for row in report.rows if row.name.startswith("full retrain") and "gain" in row.name)
    assert gain.value == 1.0


def test_a_case_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no case"):
        run(options(tmp_path, tmp_path, case=("magic",)), quiet)
