"""A recipe: one YAML file that says everything a training run needs. Free of torch, so a bad one fails at once.

    extends    a shipped recipe's name, or a path relative to this file; one level
    seed output tokenizer model experts data training

Every problem of a file is reported together, each with its line and the nearest right key.
"""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from cmrn.config import CMRNConfig, DataConfig, ExpertConfig, StrictModel, TokenizerConfig, TrainingConfig
from cmrn.errors import ConfigError, Problem, UsageError
from cmrn.recipe_check import check_tree, explain, in_file_order
from cmrn.strict_yaml import MAX_CHARACTERS, KeyPath, Place, Tree, parse, write_scalar

__all__ = ["Recipe", "load_recipe", "recipe_to_yaml", "shipped_recipes"]


class Recipe(StrictModel):
    """One training run: what to build, what to train it on, and how."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """Seed of every random choice."""
    output: Annotated[str, Field(min_length=1)] = "runs/recipe"
    """Folder the run is written to."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How the tokenizer comes about."""
    model: CMRNConfig
    """Shape of the model; its vocab_size is the tokenizer's unless given, its experts are the recipe's `experts`."""
    data: DataConfig
    """What to train on."""
    training: TrainingConfig = TrainingConfig()
    """How to train."""


@dataclass(frozen=True)
class _Source:
    """Where a recipe's text comes from, and how it is called in messages."""

    label: str
    file: Path | Traversable


def shipped_recipes() -> dict[str, Traversable]:
    """The recipes that come with the package, by name, in alphabetical order."""
    try:
        folder = importlib.resources.files("cmrn_recipes")
    except ModuleNotFoundError:
        return {}
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in files}


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the shipped one of that name, with `a.b=value` overrides applied.

    Raises:
        UsageError: there is no such file or shipped recipe.
        ConfigError: the recipe or an override is wrong; `problems` lists everything found.
    """
    source = _find(path_or_name)
    tree = _read(source)
    problems = [*tree.problems]
    tree, more = _extend(tree, source)
    problems += more
    for argument in overrides:
        tree, more = _override(tree, argument)
        problems += more
    recipe = None
    if tree.value is not None or not problems:
        recipe, more = _build(tree)
        problems += more
    if recipe is None or problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(count, in_file_order(problems), where=source.label)
    return recipe


def _find(path_or_name: str | Path) -> _Source:
    path, name = Path(path_or_name), str(path_or_name)
    try:
        found, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=name) from error
    if found and not folder:
        return _Source(name, path)
    shipped = shipped_recipes()
    if name in shipped:
        return _Source(f"cmrn_recipes/{name}.yaml", shipped[name])
    if folder:
        raise UsageError("this is a folder, not a recipe", where=name, hint=f"ls {path}/*.yaml")
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), shipped, 1)
    hint = f"cmrn recipe show {near[0]}" if near else "cmrn recipe ls lists the recipes that come with cmrn"
    raise UsageError("no such recipe file, nor a shipped recipe of that name", where=name, hint=hint)


def _read(source: _Source) -> Tree:
    """The file as a tree whose value is a mapping, or None with the problem that explains why."""
    try:
        with source.file.open("rb") as stream:
            content = stream.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=source.label) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = Place(source.label, content.count(b"\n", 0, error.start) + 1, 1)
        return Tree(None, {(): place}, (Problem(str(place), "(file)", "not UTF-8 text"),))
    tree = parse(text, source.label)
    if tree.value is None and not tree.problems:
        return Tree({}, tree.places)
    if tree.value is not None and not isinstance(tree.value, dict):
        problem = Problem(str(tree.place(())), "(top)", "a recipe is a mapping of keys to values")
        return Tree(None, tree.places, (*tree.problems, problem))
    return tree


def _extend(tree: Tree, source: _Source) -> tuple[Tree, list[Problem]]:
    """The tree laid over the one it extends: mappings merged, lists and single values replaced."""
    if not isinstance(tree.value, dict) or "extends" not in tree.value:
        return tree, []
    value = {key: item for key, item in tree.value.items() if key != "extends"}
    rest = Tree(value, tree.places)
    where = str(tree.place(("extends",)))
    name = tree.value["extends"]
    if not isinstance(name, str):
        return rest, [Problem(where, "extends", "should be the name of a shipped recipe, or a path")]
    shipped = shipped_recipes()
    beside = Path(str(source.file)).parent / name
    if name in shipped:
        base = _Source(f"cmrn_recipes/{name}.yaml", shipped[name])
    elif beside.is_file():
        base = _Source(str(Path(source.label).parent / name), beside)
    else:
        near = difflib.get_close_matches(name, shipped, 1)
        hint = f"did you mean {near[0]}?" if near else f"shipped recipes: {', '.join(shipped)}"
        return rest, [Problem(where, "extends", f"no shipped recipe or file {name!r}", hint)]
    below = _read(base)
    problems = [*below.problems]
    if not isinstance(below.value, dict):
        return rest, problems
    if "extends" in below.value:
        place = str(below.place(("extends",)))
        problems.append(Problem(place, "extends", "a recipe that is extended cannot extend another"))
        below = Tree({key: item for key, item in below.value.items() if key != "extends"}, below.places)
    return _merge(below, rest), problems


def _merge(below: Tree, above: Tree) -> Tree:
    """`above` laid over `below`; every place is that of the file the value came from."""
    places = {**below.places}

    def lay(low: Any, high: Any, path: KeyPath) -> Any:
        if isinstance(low, dict) and isinstance(high, dict):
            return low | {key: lay(low.get(key), item, (*path, key)) for key, item in high.items()}
        for stale in [place for place in places if place[: len(path)] == path]:
            del places[stale]
        return high

    value = lay(below.value, above.value, ())
    return Tree(value, {**places, **above.places})


def _override(tree: Tree, argument: str) -> tuple[Tree, list[Problem]]:
    """The tree with one `a.b=value` argument applied; the value is read as YAML."""
    where = f"argument {argument!r}"
    name, equals, text = argument.partition("=")
    if not equals or not name or not all(name.split(".")):
        return tree, [Problem(where, name or "(none)", "should have the form section.key=value")]
    if name == "extends":
        return tree, [Problem(where, name, "cannot be given as an argument", "write it in the recipe")]
    read = parse(text, where)
    if read.problems:
        return tree, [Problem(where, name, problem.message) for problem in read.problems]
    path, value = _place_in(tree.value, name.split("."), read.value)
    if path is None:
        return tree, [Problem(where, name, str(value))]
    kept = {place: at for place, at in tree.places.items() if place[: len(path)] != path}
    made = {path[:end]: Place(where) for end in range(1, len(path)) if path[:end] not in kept}
    return Tree(value, {**kept, **made, path: Place(where)}), []


def _place_in(container: Any, names: Sequence[str], value: Any) -> tuple[KeyPath | None, Any]:
    """A copy of `container` with `value` at `names`, and the path to it; or (None, why it cannot be)."""
    if not names:
        return (), value
    name, rest = names[0], names[1:]
    if isinstance(container, list):
        if not name.isdecimal() or int(name) >= len(container):
            return None, f"{name!r} is not an item of this list: it has 0 to {len(container) - 1}"
        key: str | int = int(name)
        below = container[int(name)]
    elif isinstance(container, dict) or container is None:
        key = name
        below = (container or {}).get(name)
    else:
        return None, f"{name!r} lies below a single value, {container!r}"
    path, changed = _place_in(below, rest, value)
    if path is None:
        return None, changed
    if isinstance(container, list):
        changed = [changed if i == key else item for i, item in enumerate(container)]
    else:
        changed = {**(container or {}), key: changed}
    return (key, *path), changed


def _build(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of a whole tree, or everything that is wrong with it."""
    problems = check_tree(tree)
    try:
        return Recipe.model_validate(_assemble(tree.value)), problems
    except ValidationError as error:
        return None, problems + explain(error, tree, problems)


def _assemble(value: Any) -> Any:
    """The file's layout as the record's: `experts` into the model, and the tokenizer's size as the model's."""
    fields = {key: item for key, item in value.items() if key != "experts"}
    model = fields.get("model", {})
    if not isinstance(model, dict):
        return fields
    model = {key: item for key, item in model.items() if key != "experts"}
    tokenizer = fields.get("tokenizer", {})
    size = tokenizer.get("vocab_size", TokenizerConfig().vocab_size) if isinstance(tokenizer, dict) else None
    if isinstance(size, int):
        model.setdefault("vocab_size", size)
    if value.get("experts") is not None:
        model["experts"] = value["experts"]
    return {**fields, "model": model}


def recipe_to_yaml(recipe: Recipe) -> str:
    """Every field of the recipe with its help as a comment above; loading it gives an equal recipe."""
    lines = ["# Every field of this recipe, as it is run."]
    for name in ("seed", "output"):
        lines += ["", f"# {_help(Recipe, name)}", f"{name}: {write_scalar(getattr(recipe, name))}"]
    sections: Mapping[str, StrictModel] = {"tokenizer": recipe.tokenizer, "model": recipe.model}
    for name, section in sections.items():
        lines += ["", f"# {_help(Recipe, name)}", f"{name}:", *_fields(section, "  ", skip="experts")]
    if recipe.model.experts is not None:
        lines += ["", f"# {_help(CMRNConfig, 'experts')}", "experts:", *_items(recipe.model.experts, "  ")]
    lines += ["", f"# {_help(Recipe, 'data')}", "data:", *_fields(recipe.data, "  ", skip="sources")]
    lines += [f"  # {_help(DataConfig, 'sources')}", "  sources:", *_items(recipe.data.sources, "    ")]
    lines += ["", f"# {_help(Recipe, 'training')}", "training:", *_fields(recipe.training, "  ")]
    return "\n".join(lines) + "\n"


def _help(model: type[BaseModel], name: str) -> str:
    return " ".join((model.model_fields[name].description or "").split())


def _fields(section: StrictModel, indent: str, skip: str = "") -> Iterator[str]:
    """The section's fields, each below its help."""
    for name in type(section).model_fields:
        if name != skip:
            yield f"{indent}# {_help(type(section), name)}"
            yield f"{indent}{name}: {_value(getattr(section, name))}"


def _items(items: Sequence[StrictModel], indent: str) -> Iterator[str]:
    """One line an item, as a flow mapping; the first is preceded by its fields' help."""
    kind: type[BaseModel] = type(items[0]) if items else ExpertConfig
    for name in kind.model_fields:
        yield f"{indent}#   {name}: {_help(kind, name)}"
    for item in items:
        pairs = (f"{name}: {_value(getattr(item, name))}" for name in kind.model_fields)
        yield f"{indent}- {{{', '.join(pairs)}}}"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return write_scalar(value)
