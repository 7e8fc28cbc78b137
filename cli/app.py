"""The command tree. Nothing here loads more than the option parser: each command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cmrn_cli import add_expert, bench, doctor, evaluate, expert, generate, memory, reason, recipe, trace, train
from cmrn_cli.console import Settings, write_line
from cmrn_cli.options import add_command, examples, takes_globals

__all__ = ["build_app"]

_HELP = {"help_option_names": ["-h", "--help"]}
_ALIASES = "Other names"
EXAMPLES = ("cmrn train quickstart", 'cmrn trace "integral"', "cmrn recipe ls")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        write_line(f"cmrn {version('cmrn')}")
        raise typer.Exit()


def _root(
    settings: Settings,
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, read and question language models of named experts."""


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(context_settings=_HELP, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.callback(epilog=examples(*EXAMPLES))(takes_globals(_root))
    add_command(app, "train", train.train, train.EXAMPLES)
    add_command(app, "generate", generate.generate, generate.EXAMPLES, cls=generate.GenerateCommand)
    add_command(app, "reason", reason.reason, reason.EXAMPLES)
    add_command(app, "trace", trace.trace, trace.EXAMPLES)
    add_command(app, "eval", evaluate.evaluate, evaluate.EXAMPLES)
    add_command(app, "add-expert", add_expert.add_expert, add_expert.EXAMPLES)
    app.add_typer(expert.build_app(), name="expert")
    app.add_typer(memory.build_app(), name="memory")
    app.add_typer(recipe.build_app(), name="recipe")
    app.add_typer(bench.build_app(), name="bench")
    add_command(app, "doctor", doctor.doctor, doctor.EXAMPLES)
    add_command(app, "populate-memory", memory.populate, memory.EXAMPLES["populate"], rich_help_panel=_ALIASES)
    add_command(app, "trace-routing", trace.trace, trace.EXAMPLES, rich_help_panel=_ALIASES)
    return app
