"""`cmrn generate`: continue a text, with what a memory or a document holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from cmrn_cli.console import Settings, notice, sanitize, write, write_line
from cmrn_cli.memory_shared import warn_on
from cmrn_cli.model import ModelOption, load_model, read_text
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from cmrn.inference import Generation
    from cmrn.model import CMRN
    from cmrn.records import CMRNState

__all__ = ["EXAMPLES", "GenerateCommand", "generate"]

EXAMPLES = (
    'cmrn generate "The integral of "',
    'cmrn generate "What is scurvy?" --memory memory --show-memory',
    'cmrn generate --document book.txt --question "What is the pass key?" --temperature 0',
    'echo "Permission is hereby" | cmrn generate - --stop "." --json',
)
DEFAULT_SEED = 1
DEFAULT_STORE = "memory"
SHOWN_CHARACTERS = 200
MOST_SHOWN = 3
LINE_EVERY_SECONDS = 10.0


class GenerateCommand(TyperCommand):
    """`--memory` alone, at the end or before another option, means the store in ./memory."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give each bare `--memory` its folder."""
        given: list[str] = []
        for word, after in zip(args, [*args[1:], "--"], strict=True):
            given.append(word)
            if word == "--memory" and "--" not in given and after.startswith("-") and after != "-":
                given.append(DEFAULT_STORE)
        rest: list[str] = super().parse_args(ctx, given)
        return rest


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
    memory: Annotated[
        Path | None,
        typer.Option("--memory", metavar="[DIR]", help="Recall passages of this store first; alone: of ./memory."),
    ] = None,
    show_memory: Annotated[
        bool, typer.Option("--show-memory", help="Say what was recalled, and which of it each token read.")
    ] = False,
    document: Annotated[
        Path | None, typer.Option("--document", metavar="FILE", help="Read this text first, of any length.")
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="Q", help="What to ask about the document; it is the prompt.")
    ] = None,
) -> None:
    """Continue a text; the text goes to stdout as it is written, figures to stderr."""
    text = _prompt(prompt, question, document, memory, show_memory)
    network, place = load_model(model)
    seed = DEFAULT_SEED if settings.seed is None else settings.seed
    streams = not (no_stream or settings.json)

    from contextlib import ExitStack

    from cmrn.inference import generate_text

    with ExitStack() as stack:
        if memory is not None:
            from cmrn.memory.passages import Passages

            network.memory_system = stack.enter_context(Passages(memory, warn=warn_on(settings)))
        states = None if document is None else _read(settings, network, document)
        if streams and not settings.quiet:
            write(text)
        result = generate_text(
            network,
            text if document is None else f"\n\n{text}",
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
            stream=write if streams else None,
            use_memory=True if memory is not None else None,
            states=states,
            show_reads=show_memory,
        )
    if settings.json:
        write_json(_document(result, show_memory))
        return
    if streams:
        write_line()
    else:
        write_line(result.text if settings.quiet else text + result.text)
    if show_memory:
        _show_memory(result)
    notice(
        settings,
        f"{result.prompt_tokens} tokens read, {result.new_tokens} written, {result.tokens_per_second:.1f} tok/s, "
        f"seed {seed}, {place}",
    )


def _prompt(prompt: str, question: str | None, document: Path | None, memory: Path | None, show_memory: bool) -> str:
    """The text to continue.

    Raises:
        UsageError: options that do not go together.
    """
    from cmrn.errors import UsageError

    if question is not None and prompt:
        raise UsageError("a prompt and a question are two prompts", hint="leave one out")
    if question is not None and document is None:
        raise UsageError("--question asks about a document", hint='--document FILE --question "…"')
    if show_memory and memory is None:
        raise UsageError("--show-memory shows what --memory recalled", hint="--memory DIR --show-memory")
    if document is not None and (document.is_dir() or not document.exists()):
        told = "is a folder" if document.is_dir() else "no such file"
        raise UsageError(told, where=str(document), hint="--document names a text file in UTF-8")
    return read_text(prompt if question is None else question)


def _read(settings: Settings, network: CMRN, path: Path) -> CMRNState:
    from cmrn.errors import DataError
    from cmrn.inference.document import read_document, text_of

    try:
        reading = read_document(network, text_of(path), progress=_counting(settings, path.name))
    except DataError as error:
        raise error if error.where else DataError(error.message, where=str(path)) from error
    kept = "" if network.episodic is None else f", {len(network.episodic):,} entries kept"
    notice(settings, f"{path.name}: {reading.tokens:,} tokens, {reading.tokens / reading.seconds:,.0f} tok/s{kept}")
    return reading.states


def _counting(settings: Settings, name: str) -> Callable[[int], None]:
    """Says how many tokens have been read, every ten seconds."""
    spoke_at = time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal spoke_at
        if time.monotonic() - spoke_at >= LINE_EVERY_SECONDS:
            spoke_at = time.monotonic()
            notice(settings, f"{name}: {tokens:,} tokens read")

    return tell


def _document(result: Generation, show_memory: bool) -> dict[str, Any]:
    """The result as JSON shows it."""
    found: dict[str, Any] = {
        "text": result.text,
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "tokens_per_s": result.tokens_per_second,
        "memory_hits": [
            {
                "id": hit.record.id,
                "record": hit.record.record,
                "score": hit.score,
                "text": hit.record.text,
                "namespace": hit.record.namespace,
                "source": hit.record.source,
            }
            for hit in result.memory_hits
        ],
    }
    if show_memory:
        found["tokens"] = [
            {"text": read.text, "records": [{"record": record, "weight": weight} for record, weight in read.records]}
            for read in result.reads
        ]
    return found


def _show_memory(result: Generation) -> None:
    """The passages recalled, then the tokens that read one, with the records they read most."""
    write_line()
    for hit in result.memory_hits:
        record = hit.record
        name = " · ".join(part for part in (f"record:{record.record}", record.id or "", record.source) if part)
        write_line(f"{hit.score:.3f} {sanitize(name, one_line=True)}")
        write_line(f"  {sanitize(record.text[:SHOWN_CHARACTERS], one_line=True)}")
    if not result.memory_hits:
        write_line("nothing was recalled")
    for read in result.reads:
        if read.records:
            named = ", ".join(f"record:{record} {share:.0%}" for record, share in read.records[:MOST_SHOWN])
            write_line(f"{sanitize(read.text, one_line=True)!r}: {named}")
