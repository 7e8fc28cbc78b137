"""`cmrn add-expert`: a new domain for a trained model, and proof that nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.output import write_json_line
from cmrn_cli.progress import watch

if TYPE_CHECKING:
    from rich.table import Table

    from cmrn.training.addition import Addition

__all__ = ["EXAMPLES", "add_expert"]

EXAMPLES = (
    "cmrn add-expert medical --to runs/small --data medical.jsonl --out models/with-medical",
    "cmrn add-expert poetry --to runs/quickstart --data poems.txt --out models/poetry --init-from english --steps 100",
    "cmrn add-expert law --to models/base --data law.jsonl --replay old.jsonl --out models/law --experts 3 --json",
)


def add_expert(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new expert.")],
    to: Annotated[str, typer.Option("--to", metavar="CKPT", help="The model to add it to; it stays as it is.")],
    data: Annotated[list[str], typer.Option("--data", metavar="FILE", help="Text of the domain: .jsonl or .txt.")],
    out: Annotated[Path, typer.Option("--out", metavar="CKPT2", help="Folder of the model with it.")],
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files, as --data.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", metavar="T", help="general (the default), symbolic, pattern or generative.")
    ] = None,
    domain: Annotated[str | None, typer.Option("--domain", metavar="D", help="Its domain; by default NAME.")] = None,
    init_from: Annotated[
        str | None, typer.Option("--init-from", metavar="EXPERT", help="Begin with this expert's weights.")
    ] = None,
    experts: Annotated[
        int,
        typer.Option(
            "--experts",
            min=1,
            metavar="N",
            help="How many own the domain together: NAME_1 ..., copies of those that read most of its text.",
        ),
    ] = 1,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Steps to train.")] = None,
    fraction: Annotated[
        float | None,
        typer.Option("--fraction", min=0.0, metavar="F", help="Share of a full retrain's FLOPs to spend (0.15)."),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option("--replay", metavar="FILE", help="Text of the old domains; by default that of the run."),
    ] = None,
    keep_threshold: Annotated[
        float, typer.Option("--keep-threshold", min=0.0, metavar="X", help="Most an old domain may lose, relative.")
    ] = 0.003,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1 ...")] = None,
) -> None:
    """Add an expert for a domain to a model and train it alone; every other weight stays as it is, to the bit."""
    from typing import get_args

    from cmrn.config import ExpertConfig, ExpertType
    from cmrn.errors import UsageError

    if steps is not None and fraction is not None:
        raise UsageError("--steps and --fraction both say how long to train", hint="give one of them")
    if experts > 1 and (type_ is not None or init_from is not None):
        raise UsageError("several experts are copies of those that read most of the text, and of their types",
                         where=f"--experts {experts}", hint="give it without --type and --init-from")  # fmt: skip
    type_ = type_ or "general"
    if type_ not in get_args(ExpertType):
        raise UsageError(f"no expert type {type_!r}", where="--type", hint=", ".join(get_args(ExpertType)))
    try:
        expert = ExpertConfig.model_validate({"name": name, "type": type_, "domains": (domain or name,)})
    except ValueError as error:
        raise UsageError("names are letters, digits, - and _, at most 64", where=f"{name} {domain or ''}") from error

    from cmrn.training.addition import Request, add_domain
    from cmrn_cli.model import load_model

    model, place = load_model(to)
    request = Request(
        expert, domain or name, (*data, *(files or ())), tuple(replay or ()), init_from, experts, steps, fraction,
        keep_threshold, 1 if settings.seed is None else settings.seed,
    )  # fmt: skip
    with watch(settings) as reporter:
        addition = add_domain(model, place, request, out, reporter, device)
    if settings.json:
        write_json_line(_document(addition))
    elif settings.quiet:
        write_line(str(addition.checkpoint or ""))
    else:
        _show(settings, addition)
    addition.require_kept()


def _document(addition: Addition) -> dict[str, object]:
    result = addition.result
    return {
        "event": "done",
        "experts": list(result.experts),
        "checkpoint": None if addition.checkpoint is None else str(addition.checkpoint),
        "bits_per_byte": {
            "before": dict(addition.before.bits_per_byte),
            "after": dict(addition.after.bits_per_byte),
        },
        "routing_purity": {
            "before": dict(addition.before.routing_purity),
            "after": dict(addition.after.routing_purity),
        },
        "unchanged_sha256": result.sha256 is not None,
        "sha256": result.sha256,
        "flops_ratio": addition.flops_ratio,
        "margin": None if result.margin is None else result.margin.value,
        "trained_tokens": result.trained_tokens,
        "seconds": result.seconds,
    }


def _show(settings: Settings, addition: Addition) -> None:
    """Every domain before and after, what stayed, what it cost, and what to type next."""
    result = addition.result
    notice(settings, "")
    console(settings).print(_table(addition))
    write_line(f"\nexperts     {', '.join(result.experts)}")
    write_line(f"unchanged   every other tensor, sha256 {result.sha256}")
    if addition.flops_ratio is not None:
        write_line(f"cost        {addition.flops_ratio:.1%} of the FLOPs of training on all domains anew")
    write_line(f"trained     {result.trained_tokens:,} tokens in {result.seconds:.0f} s")
    if result.margin is not None:
        write_line(f"margin      {result.margin.value:g} off the router's logit, chosen on old text")
    if addition.checkpoint is not None:
        write_line(f"checkpoint  {addition.checkpoint}")
        write_line(f"\nnext:\n  cmrn expert ls -m {addition.checkpoint}")


def _table(addition: Addition) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("domain")
    for title in ("before", "after", "change", "purity"):
        table.add_column(title, justify="right")
    after = addition.after.bits_per_byte
    for domain, bits in addition.before.bits_per_byte.items():
        purity = addition.after.routing_purity.get(domain)
        cells = (domain, f"{bits:.4f}", f"{after[domain]:.4f}", f"{after[domain] / bits - 1:+.2%}",
                 "–" if purity is None else f"{purity:.1%}")  # fmt: skip
        style = "bold" if domain == addition.request.domain else ""
        table.add_row(*(Text(sanitize(cell, one_line=True)) for cell in cells), style=style)
    return table
