from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmrn.config import DataConfig, SourceConfig, TokenizerConfig
from cmrn.errors import CheckpointError, UsageError
from cmrn.model import CMRN
from cmrn.recipe import Recipe, load_recipe
from cmrn.tokenizer import CMRNTokenizer
from cmrn.training.checkpoint import find_checkpoint
from cmrn.training.run import train_recipe
from tests.training.small_run import Recorder, documents, model_config, training_config
from tests.training.test_kill import weights


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a file of text for each domain."""
    monkeypatch.chdir(tmp_path)
    for domain in ("animals", "numbers"):
        texts = [document.text for document in documents(0, 40) if document.domain == domain]
        lines = [
            json.dumps({"text": f"{text} {index**3} {texts[index * 7 % 40][:40]}"}) for index, text in enumerate(texts)
        ]
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def recipe(**changes: object) -> Recipe:
    sources = tuple(SourceConfig(path=f"{domain}.jsonl", domain=domain) for domain in ("animals", "numbers"))
    training = {"max_steps": 4, "precision": "auto", **changes}
    return Recipe(
        output="runs/small",
        tokenizer=TokenizerConfig(vocab_size=280),
        model=model_config(),
        data=DataConfig(sources=sources, validation_fraction=0.2, deduplicate=False),
        training=training_config(**training),
    )


def test_a_recipe_becomes_a_run_that_says_what_it_was(place: Path) -> None:
    told = Recorder()
    result = train_recipe(recipe(), device="cpu", reporter=told)
    run = Path("runs/small")
    assert result.run == run
    assert result.bits_per_byte.keys() == {"animals", "numbers", "mean"}
    assert result.routing_purity.keys() == {"animals", "numbers", "mean"}
    assert result.seconds > 0
    assert {path.name for path in run.iterdir()} == {"LOCK", "checkpoints", "metrics.jsonl", "recipe.resolved.yaml",
                                                     "run.json", "tokenizer.json"}  # fmt: skip
    resolved = load_recipe(run / "recipe.resolved.yaml")
    assert resolved.training.precision in ("float32", "bfloat16")
    assert resolved.output == "runs/small"
    record = json.loads((run / "run.json").read_text())
    assert record["precision"] == resolved.training.precision
    assert record["threads"] == 1
    assert record["versions"]["torch"]
    model = CMRN.from_pretrained(find_checkpoint(None))
    assert model.tokenizer is not None
    assert model.tokenizer.to_json() == (run / "tokenizer.json").read_text()
    assert any("animals" in notice.message for notice in told.notices)


def test_the_resolved_recipe_trains_to_the_same_weights(place: Path) -> None:
    train_recipe(recipe(), device="cpu")
    again = load_recipe("runs/small/recipe.resolved.yaml")
    assert train_recipe(again, run_dir=Path("again"), device="cpu").run == Path("again")
    assert weights(Path("runs/small")) == weights(Path("again"))


def test_a_second_run_goes_beside_the_first_and_resuming_takes_the_newest(place: Path) -> None:
    train_recipe(recipe(), device="cpu")
    told = Recorder()
    assert train_recipe(recipe(), device="cpu", reporter=told).run == Path("runs/small-2")
    assert any("runs/small-2" in notice.message for notice in told.notices)
    assert weights(Path("runs/small")) == weights(Path("runs/small-2"))
    assert train_recipe(recipe(), device="cpu", resume=True).run == Path("runs/small-2")
    assert not Path("runs/small-3").exists()


def test_a_folder_asked_for_that_holds_a_run_is_left_alone(place: Path) -> None:
    train_recipe(recipe(), device="cpu", run_dir=Path("mine"))
    before = weights(Path("mine"))
    with pytest.raises(UsageError, match="holds a run already"):
        train_recipe(recipe(), device="cpu", run_dir=Path("mine"))
    assert weights(Path("mine")) == before
    with pytest.raises(UsageError, match="is a file"):
        train_recipe(recipe(), device="cpu", run_dir=Path("animals.jsonl"))


def test_resuming_where_there_is_nothing_starts_afresh(place: Path) -> None:
    told = Recorder()
    train_recipe(recipe(), device="cpu", resume=True, reporter=told)
    assert any("starting afresh" in notice.message for notice in told.notices)
    assert Path("runs/small/run.json").exists()


def test_changed_data_is_refused_on_resuming_with_its_difference(place: Path) -> None:
    train_recipe(recipe(), device="cpu")
    text = Path("runs/small/recipe.resolved.yaml").read_text()
    with pytest.raises(UsageError, match=r"training.learning_rate: 0.01 -> 0.5") as caught:
        train_recipe(recipe(learning_rate=0.5), device="cpu", resume=True)
    assert "recipe.resolved.yaml --resume" in str(caught.value.hint)
    with open("animals.jsonl", "a") as file:
        file.write(json.dumps({"text": "a zebra that was not there before, " * 9}) + "\n")
    with pytest.raises(UsageError, match="data_fingerprint"):
        train_recipe(recipe(), device="cpu", resume=True)
    assert Path("runs/small/recipe.resolved.yaml").read_text() == text


def test_a_domain_that_is_not_in_the_data_writes_nothing(place: Path) -> None:
    whole = recipe()
    data = whole.data.model_copy(update={"sources": whole.data.sources[:1]})
    with pytest.raises(UsageError, match="numbers"):
        train_recipe(whole.model_copy(update={"data": data}), device="cpu")
    with pytest.raises(UsageError):
        train_recipe(whole, device="cpu", data_root=Path("nowhere"))
    assert not Path("runs").exists()


def test_a_loaded_tokenizer_sets_the_vocabulary_unless_the_recipe_does(place: Path) -> None:
    CMRNTokenizer.train(["some text of few words"], 270).save_pretrained(place / "words")
    whole = recipe()
    loaded = whole.model_copy(update={"tokenizer": TokenizerConfig(vocab_size=280, path="words")})
    result = train_recipe(loaded, device="cpu")
    assert result.checkpoint is not None
    words = CMRNTokenizer.from_pretrained(place / "words")
    assert CMRN.from_pretrained(result.checkpoint).config.vocab_size == words.vocab_size
    small = loaded.model_copy(update={"model": model_config(vocab_size=words.vocab_size - 1)})
    with pytest.raises(UsageError, match="vocab_size"):
        train_recipe(small, device="cpu")
    absent = whole.model_copy(update={"tokenizer": TokenizerConfig(path="nowhere")})
    with pytest.raises((UsageError, CheckpointError)):
        train_recipe(absent, device="cpu")
    assert not Path("runs/small-2").exists()
