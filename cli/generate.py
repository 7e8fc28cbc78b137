"""`cmrn generate`: continue a text."""

from __future__ import annotations

from typing import Annotated

import typer

from cmrn_cli.console import Settings, notice, write, write_line
from cmrn_cli.model import ModelOption, load_model, read_text
from cmrn_cli.output import write_json

__all__ = ["EXAMPLES", "generate"]

EXAMPLES = (
    'cmrn generate "The integral of "',
    'cmrn generate "def main" --temperature 0 --max-new-tokens 40',
    'echo "Permission is hereby" | cmrn generate - --stop "." --json',
)
DEFAULT_SEED = 1


def generate(
    settings: Settings,
    prompt: Annotated[str, typer.Argument(metavar="[PROMPT|-]", help="The text to continue; - reads stdin.")] = "",
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Choose among the k likeliest.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Choose among the likeliest that sum to p.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the text once it is whole.")] = False,
) -> None:
    """Continue a text; the text goes to stdout as it is written, figures to stderr."""
    text = read_text(prompt)
    network, place = load_model(model)

    from cmrn.inference import generate_text

    seed = DEFAULT_SEED if settings.seed is None else settings.seed
    streams = not (no_stream or settings.json)
    if streams and not settings.quiet:
        write(text)
    result = generate_text(
        network,
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        stream=write if streams else None,
    )
    if settings.json:
        write_json(
            {
                "text": result.text,
                "prompt_tokens": result.prompt_tokens,
                "new_tokens": result.new_tokens,
                "tokens_per_s": result.tokens_per_second,
                "memory_hits": [],
            }
        )
        return
    if streams:
        write_line()
    else:
        write_line(result.text if settings.quiet else text + result.text)
    notice(
        settings,
        f"{result.prompt_tokens} tokens read, {result.new_tokens} written, {result.tokens_per_second:.1f} tok/s, "
        f"seed {seed}, {place}",
    )
