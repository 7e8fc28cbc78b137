"""`cmrn trace`: which expert handled which token."""

from __future__ import annotations

from typing import Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.model import ModelOption, load_model, read_text
from cmrn_cli.output import write_json

__all__ = ["EXAMPLES", "trace"]

EXAMPLES = (
    'cmrn trace "integral"',
    'cmrn trace "def __init__(self):" -v',
    'echo "warranty of merchantability" | cmrn trace - --json',
)


def trace(
    settings: Settings,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The text to read; - reads stdin.")],
    model: ModelOption = None,
) -> None:
    """Show each token's experts by routing weight, its surprise, and where events begin."""
    content = read_text(text)
    network, place = load_model(model)

    from cmrn.inference import trace_text

    result = trace_text(network, content)
    if settings.json:
        write_json(result.to_json())
        return
    if settings.quiet:
        for expert in result.experts:
            write_line(f"{sanitize(expert.name, one_line=True)}\t{expert.weight:.4f}")
        return
    from cmrn_cli.trace_view import view

    screen = console(settings)
    for part in view(result, content, verbose=settings.verbose, colour=screen.color_system is not None,
                     encoding=screen.encoding):  # fmt: skip
        screen.print(part)
    notice(settings, f"weights are routing weights, not explanations; model {place}")
