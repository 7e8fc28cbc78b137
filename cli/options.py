"""The options every command accepts, before or after its name, and how a command joins the application."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from cmrn.errors import InterruptedRunError
from cmrn_cli.console import Settings

__all__ = ["add_command", "examples", "settings_of", "takes_globals"]

_PANEL = "Options of every command"
_GLOBALS: dict[str, Any] = {
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Say more.", rich_help_panel=_PANEL)],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Print the bare result.", rich_help_panel=_PANEL)],
    "json": Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=_PANEL)],
    "no_color": Annotated[
        bool, typer.Option("--no-color", help="No colour and no live display.", rich_help_panel=_PANEL)
    ],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=_PANEL)],
    "seed": Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, max=2**63 - 1, metavar="N", help="Seed of every random choice.", rich_help_panel=_PANEL
        ),
    ],
}


def settings_of(context: typer.Context) -> Settings:
    """What the options before the command's name said."""
    return context.obj if isinstance(context.obj, Settings) else Settings()


def takes_globals(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter, `settings`, is filled from the options given before and after its name."""
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]

    @functools.wraps(function)
    def command(context: typer.Context, **values: Any) -> None:
        given = {name: values.pop(name) for name in _GLOBALS}
        before = settings_of(context)
        settings = Settings(**{name: value or getattr(before, name) for name, value in given.items() if name != "seed"},
                            seed=before.seed if given["seed"] is None else given["seed"])  # fmt: skip
        context.obj = settings
        try:
            function(settings, **values)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted", signal_number=signal.SIGINT) from None

    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword, default=None if name == "seed" else False, annotation=annotation)
        for name, annotation in _GLOBALS.items()
    ]
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush meets no closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def examples(*lines: str) -> str:
    """A help page's last part."""
    return "\n\n".join(["Examples:", *(f"  {line}".replace("[", r"\[") for line in lines)])


def add_command(
    app: typer.Typer, name: str, function: Callable[..., None], lines: tuple[str, ...], **more: Any
) -> None:
    """Register a command under a name, with runnable examples at the end of its help."""
    app.command(name, epilog=examples(*lines), **more)(takes_globals(function))
