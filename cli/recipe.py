"""`cmrn recipe`: list, show, copy and validate recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write, write_line
from cmrn_cli.options import add_command, examples, takes_globals
from cmrn_cli.output import write_json

__all__ = ["EXAMPLES", "build_app"]

_NAME = typer.Argument(metavar="NAME", help="A shipped recipe; `cmrn recipe ls` lists them.")


EXAMPLES = {
    "": ("cmrn recipe ls", "cmrn recipe show quickstart", "cmrn recipe validate quickstart"),
    "ls": ("cmrn recipe ls", "cmrn recipe ls -q", "cmrn recipe ls --json"),
    "show": (
        "cmrn recipe show quickstart",
        "cmrn recipe show quickstart > my.yaml",
        "cmrn recipe show quickstart --json",
    ),
    "cp": (
        "cmrn recipe cp quickstart my.yaml",
        "cmrn recipe cp quickstart my.yaml --force",
        "cmrn recipe cp quickstart .",
    ),
    "validate": (
        "cmrn recipe validate quickstart",
        "cmrn recipe validate quickstart training.max_steps=50",
        "cmrn recipe validate quickstart -v",
    ),
}


def build_app() -> typer.Typer:
    """The group of recipe commands."""
    app = typer.Typer(rich_markup_mode="rich")
    app.callback(epilog=examples(*EXAMPLES[""]))(takes_globals(_group))
    for name, function in (("ls", ls), ("show", show), ("cp", copy), ("validate", validate)):
        add_command(app, name, function, EXAMPLES[name])
    return app


def _group(settings: Settings) -> None:
    """List, show, copy and check recipes."""


def ls(settings: Settings) -> None:
    """List the recipes that come with cmrn."""
    from cmrn.recipe import shipped_recipes

    found = {name: _summary(file.read_text("utf-8")) for name, file in shipped_recipes().items()}
    if settings.json:
        write_json({"recipes": [{"name": name, "summary": summary} for name, summary in found.items()]})
    elif settings.quiet:
        for name in found:
            write_line(name)
    else:
        from rich.table import Table

        table = Table("recipe", "what it is", box=None, pad_edge=False)
        for name, summary in found.items():
            table.add_row(sanitize(name), sanitize(summary))
        console(settings).print(table)


def _summary(text: str) -> str:
    """The comment at the top of a recipe, as one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def show(settings: Settings, name: Annotated[str, _NAME]) -> None:
    """Print a shipped recipe as it is written."""
    text = _shipped(name)
    if settings.json:
        write_json({"name": name, "text": text})
    else:
        write(text)


def _shipped(name: str) -> str:
    from cmrn.errors import UsageError
    from cmrn.recipe import shipped_recipes

    recipes = shipped_recipes()
    if name not in recipes:
        raise UsageError("no shipped recipe of that name", where=name, hint=f"there are: {', '.join(recipes)}")
    return recipes[name].read_text("utf-8")


def copy(
    settings: Settings,
    name: Annotated[str, _NAME],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file, or a folder to copy into.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Copy a shipped recipe to a file of yours."""
    from cmrn.errors import UsageError

    text = _shipped(name)
    target = destination / f"{name}.yaml" if destination.is_dir() else destination
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError("the file is there already", where=str(target), hint="add --force to replace it") from error
    if settings.json:
        write_json({"path": str(target)})
    else:
        write_line(str(target))
        notice(settings, f"next: edit it, then cmrn train {target}")


def validate(
    settings: Settings,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as seed=2.")
    ] = None,
) -> None:
    """Check a recipe: every problem at once, each with its line and the nearest right key."""
    from cmrn.recipe import load_recipe, recipe_to_yaml

    resolved = load_recipe(recipe, overrides or ())
    if settings.json:
        write_json({"ok": True, "recipe": resolved.model_dump(mode="json")})
    elif settings.verbose:
        write(recipe_to_yaml(resolved))
    elif not settings.quiet:
        experts = ", ".join(expert.name for expert in resolved.model.named_experts)
        write_line(f"{recipe}: ok")
        write_line(f"  experts   {experts}; {resolved.model.routing_k} read each token")
        write_line(f"  sources   {', '.join(source.path for source in resolved.data.sources)}")
        write_line(f"  training  {resolved.training.max_steps} steps, into {resolved.output}")
