"""`cmrn train`: run a recipe, watched."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.draw import duration
from cmrn_cli.output import write_json_line
from cmrn_cli.progress import watch

if TYPE_CHECKING:
    from cmrn.training.trainer import TrainingResult

__all__ = ["EXAMPLES", "train"]

EXAMPLES = (
    "cmrn train quickstart",
    "cmrn train quickstart training.max_steps=50 --out runs/short",
    "cmrn train quickstart --resume",
)
SAMPLE_PROMPT = "The "
SAMPLE_TOKENS = 64


def train(
    settings: Settings,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change: training.max_steps=50.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, metavar="N", help="Steps to train.")] = None,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1 ...")] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", envvar="CMRN_DATA", help="Where the recipe's paths begin."),
    ] = None,
) -> None:
    """Train a model by a recipe and show what it learnt."""
    from cmrn.recipe import load_recipe

    changes = list(overrides or ())
    if max_steps is not None:
        changes.append(f"training.max_steps={max_steps}")
    if settings.seed is not None:
        changes.append(f"seed={settings.seed}")
    loaded = load_recipe(recipe, changes)

    from cmrn.training.run import train_recipe

    notice(settings, f"recipe {recipe}, seed {loaded.seed}: reading its text")
    with watch(settings) as reporter:
        result = train_recipe(loaded, run_dir=out, resume=resume, device=device, data_root=data_root, reporter=reporter)
    if settings.json:
        write_json_line(
            {
                "event": "done",
                "run": str(result.run),
                "checkpoint": str(result.checkpoint),
                "bits_per_byte": dict(result.bits_per_byte),
                "routing_purity": dict(result.routing_purity),
                "seconds": result.seconds,
            }
        )
    elif settings.quiet:
        write_line(str(result.checkpoint))
    else:
        _show(settings, result, loaded.seed)


def _show(settings: Settings, result: TrainingResult, seed: int) -> None:
    """What was learnt, where it lies, how it sounds, and what to type next."""
    from cmrn_cli.figures import domain_table

    notice(settings, "")
    assert result.run is not None
    assert result.checkpoint is not None
    console(settings).print(domain_table(result.bits_per_byte, result.routing_purity))
    write_line(f"\ncheckpoint  {result.checkpoint}")
    write_line(f"trained in  {duration(result.seconds)}")
    write_line("\na sample:")
    write_line(_indent(_sample(result.checkpoint, seed)))
    where = "" if Path("runs").resolve() in result.run.resolve().parents else f" -m {shlex.quote(str(result.run))}"
    write_line("\nnext:")
    write_line(f'  cmrn trace "integral"{where}')
    write_line(f'  cmrn generate "The meaning of "{where}')


def _sample(checkpoint: Path, seed: int) -> str:
    from cmrn.inference import generate_text
    from cmrn_cli.model import load_model

    model, _ = load_model(str(checkpoint))
    written = generate_text(model, SAMPLE_PROMPT, max_new_tokens=SAMPLE_TOKENS, seed=seed)
    return SAMPLE_PROMPT + written.text


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in sanitize(text).split("\n"))
