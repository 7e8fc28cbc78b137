"""Every shipped recipe, found by glob, is valid and trains."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cmrn.recipe import Recipe, load_recipe, recipe_to_yaml, shipped_recipes
from cmrn.training.run import train_recipe

FOLDER = Path(__file__).resolve().parent.parent.parent / "recipes"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LARGE = {"base"}
"""Recipes whose checkpoint alone takes a minute to write."""
DOCUMENTS = 6
WORDS = ("river", "stone", "ladder", "window", "engine", "garden")
each_recipe = pytest.mark.parametrize("name", SHIPPED)


def few_documents(recipe: Recipe) -> list[str]:
    """Overrides that make two steps of a recipe quick without touching its model."""
    limits = [f"data.sources.{i}.limit={DOCUMENTS}" for i in range(len(recipe.data.sources))]
    short = ["training.max_steps=2", "training.batch_size=2", "training.sequence_length=64"]
    if recipe.training.memory_reach:
        short += ["training.memory_reach=64", "training.memory_top_from=1"]
    return [*limits, *short, "training.micro_batch_size=2", "data.validation_fraction=0.2", "tokenizer.vocab_size=400"]


def test_the_installed_package_has_them_all() -> None:
    assert sorted(shipped_recipes()) == SHIPPED
    assert "quickstart" in SHIPPED


@each_recipe
def test_it_begins_with_what_it_is(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text("utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@each_recipe
def test_it_survives_being_resolved(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert load_recipe(FOLDER / f"{name}.yaml") == recipe
    (tmp_path / "resolved.yaml").write_text(recipe_to_yaml(recipe), "utf-8")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def write_sources(recipe: Recipe, root: Path) -> None:
    """A few short documents in every file that the recipe reads under its data root."""
    for source in recipe.data.sources:
        if not source.path.startswith(("builtin://", "hf://", "quiz://")):
            path = root / source.path
            path.parent.mkdir(parents=True)
            lines = [json.dumps({"text": f"{word} {source.domain} {i} " * 5}) for i, word in enumerate(WORDS)]
            path.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in SHIPPED]
)
def test_it_trains_two_steps(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    write_sources(recipe, tmp_path)
    result = train_recipe(load_recipe(name, few_documents(recipe)), run_dir=tmp_path / "run", data_root=tmp_path)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-2"
    assert set(recipe.model.domains) <= set(result.bits_per_byte)
