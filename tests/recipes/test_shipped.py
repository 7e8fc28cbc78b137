"""Every shipped recipe, found by glob, is valid and trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmrn.recipe import Recipe, load_recipe, recipe_to_yaml, shipped_recipes
from cmrn.training.run import train_recipe

FOLDER = Path(__file__).resolve().parent.parent.parent / "recipes"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DOCUMENTS = 6
each_recipe = pytest.mark.parametrize("name", SHIPPED)


def few_documents(recipe: Recipe) -> list[str]:
    """Overrides that make two steps of a recipe quick without touching its model."""
    limits = [f"data.sources.{i}.limit={DOCUMENTS}" for i in range(len(recipe.data.sources))]
    return [*limits, "training.max_steps=2", "training.batch_size=2", "data.validation_fraction=0.2"]


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


@each_recipe
def test_it_trains_two_steps(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe = load_recipe(name)
    local = [s.path for s in recipe.data.sources if not s.path.startswith(("builtin://", "hf://"))]
    root = request.getfixturevalue("data_root") if local else None
    result = train_recipe(load_recipe(name, few_documents(recipe)), run_dir=tmp_path / "run", data_root=root)
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-2"
    assert set(recipe.model.domains) <= set(result.bits_per_byte)
