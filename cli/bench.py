"""`cmrn bench`: measure a part beside its peers, in one run, on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.draw import duration
from cmrn_cli.options import add_command, examples, takes_globals
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from cmrn.bench.report import Report, Row

__all__ = ["EXAMPLES", "build_app"]

EXAMPLES = {
    "": ("cmrn bench mixer", "cmrn bench experts --device cpu", "cmrn bench quality --results quality.jsonl"),
    "mixer": ("cmrn bench mixer", "cmrn bench mixer --device cpu --repeats 5", "cmrn bench mixer --json"),
    "experts": ("cmrn bench experts", "cmrn bench experts --device cpu --repeats 5", "cmrn bench experts --json"),
    "decode": ("cmrn bench decode", "cmrn bench decode --device cpu --repeats 5", "cmrn bench decode --json"),
    "context": ("cmrn bench context", "cmrn bench context --device cpu --repeats 5", "cmrn bench context --json"),
    "quality": (
        "cmrn bench quality --data-root shared --results quality.jsonl",
        "cmrn bench quality --setting small --sweep --seeds 3 --gpus 8 --results quality.jsonl",
        'cmrn bench quality --variant "Llama, Muon" --rate 3e-3 --rate 6e-3 --sweep --results quality.jsonl',
        "cmrn bench quality --task mqar --results mqar.jsonl",
    ),
    "domains": (
        "cmrn bench domains --data-root shared",
        "cmrn bench domains --domain legal --case retrain --case add --fraction 0.05 --data-root shared --json",
        "cmrn bench domains --case terms --model runs/small --data-root shared",
    ),
    "reason": (
        "cmrn bench reason --own 20",
        "cmrn bench reason --data-root shared --limit 100",
        "cmrn bench reason --own 50 --deepest 10 --json",
        "cmrn bench reason --case speed --case rules --case depth",
        "cmrn bench reason --theories 10000 --first 5000",
    ),
    "store": (
        "cmrn bench store --case kill --rounds 50",
        "cmrn bench store --case power --case every-call",
        "cmrn bench store --case corrupt --json",
    ),
    "memory": (
        "cmrn bench memory --data-root shared --results memory.jsonl",
        "cmrn bench memory --case passkey --length 1000000 --length 10000000 --results memory.jsonl",
        "cmrn bench memory --case speed --device cpu --set training.max_steps=1 --json",
    ),
    "ablate": (
        "cmrn bench ablate --data-root shared --results ablate.jsonl",
        'cmrn bench ablate --variant "memory off" --seeds 1',
        "cmrn bench ablate --setting small --gpus 8 --per-gpu 2 --results ablate.jsonl --json",
    ),
}
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1 ...")]
RepeatsOption = Annotated[
    int | None, typer.Option("--repeats", min=1, metavar="N", help="Timings of each call; the median counts.")
]
SettingOption = Annotated[
    str, typer.Option("--setting", metavar="S", help="e (17.7 M active parameters, 32 M tokens) or small (the recipe).")
]
VariantOption = Annotated[
    list[str] | None, typer.Option("--variant", metavar="V", help="A row to measure; by default all. May be repeated.")
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Seeds of each row.")]
SweepOption = Annotated[
    bool, typer.Option("--sweep", help="First find each row's best learning rate, each with as many tries.")
]
RateOption = Annotated[
    list[float] | None,
    typer.Option("--rate", metavar="R", help="A learning rate of the sweep (AdamW: half of it). May be repeated."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Change the setting: model.working_memory=128, training.max_steps=500."),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="DIR", envvar="CMRN_DATA", help="Folder that holds data/corpora or corpora."),
]
CacheOption = Annotated[Path, typer.Option("--cache", metavar="DIR", help="Where the tokenised texts are kept.")]
ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", metavar="FILE", help="Runs are kept here and not repeated; without it, not kept."),
]
GpusOption = Annotated[int | None, typer.Option("--gpus", min=0, metavar="N", help="GPUs to use; by default all.")]
PerGpuOption = Annotated[int, typer.Option("--per-gpu", min=1, metavar="N", help="Runs at a time on each.")]
PrepareOption = Annotated[bool, typer.Option("--prepare-only", help="Tokenise the texts into --cache, and stop.")]


def build_app() -> typer.Typer:
    """The group of benchmarks."""
    app = typer.Typer(rich_markup_mode="rich")
    app.callback(epilog=examples(*EXAMPLES[""]))(takes_globals(_group))
    commands: dict[str, Callable[..., None]] = {
        "mixer": mixer,
        "experts": experts,
        "decode": decode,
        "context": context,
        "quality": quality,
        "ablate": ablate,
        "memory": memory,
        "domains": domains,
        "reason": reason,
        "store": store,
    }
    for name, function in commands.items():
        add_command(app, name, function, EXAMPLES[name])
    return app


def _group(settings: Settings) -> None:
    """Measure speed and quality beside peers, in one run."""


def mixer(settings: Settings, device: DeviceOption = None, repeats: RepeatsOption = None) -> None:
    """Time the delta rule beside attention and other kernels, forward and backward."""
    _measure(settings, "mixer", device=device, repeats=repeats)


def experts(settings: Settings, device: DeviceOption = None, repeats: RepeatsOption = None) -> None:
    """Time routed experts beside a dense layer of as many operations, and routing by the number of experts."""
    _measure(settings, "experts", device=device, repeats=repeats)


def decode(settings: Settings, device: DeviceOption = None, repeats: RepeatsOption = None) -> None:
    """Time writing one token after contexts of 1 k to 1 M tokens, beside a Transformer with its cache."""
    _measure(settings, "decode", device=device, repeats=repeats)


def context(settings: Settings, device: DeviceOption = None, repeats: RepeatsOption = None) -> None:
    """Time training steps by sequence length, beside a Transformer of as many active parameters."""
    _measure(settings, "context", device=device, repeats=repeats)


def quality(
    settings: Settings,
    setting: SettingOption = "e",
    task: Annotated[
        str, typer.Option("--task", metavar="T", help="text (bits per byte of six domains) or mqar (recall).")
    ] = "text",
    variant: VariantOption = None,
    seeds: SeedsOption = 3,
    sweep: SweepOption = False,
    rate: RateOption = None,
    equal_time: Annotated[
        bool, typer.Option("--equal-time", help="Train each Transformer also for as long as ours takes.")
    ] = False,
    change: SetOption = None,
    data_root: RootOption = None,
    cache: CacheOption = Path("runs/bench"),
    results: ResultsOption = None,
    gpus: GpusOption = None,
    per_gpu: PerGpuOption = 1,
    prepare_only: PrepareOption = False,
    device: DeviceOption = None,
) -> None:
    """Train ours and tuned Transformers on the same text and compare bits per byte of held-out text."""
    _measure(settings, "quality", setting=setting, task=task, variants=variant, seeds=seeds, sweep=sweep, rates=rate,
             equal_time=equal_time, overrides=change, data_root=data_root, cache=cache, results=results, gpus=gpus,
             per_gpu=per_gpu, prepare_only=prepare_only, device=device, seed=settings.seed)  # fmt: skip


def ablate(
    settings: Settings,
    setting: SettingOption = "e",
    variant: VariantOption = None,
    seeds: SeedsOption = 3,
    sweep: SweepOption = False,
    rate: RateOption = None,
    change: SetOption = None,
    data_root: RootOption = None,
    cache: CacheOption = Path("runs/bench"),
    results: ResultsOption = None,
    gpus: GpusOption = None,
    per_gpu: PerGpuOption = 1,
    prepare_only: PrepareOption = False,
    device: DeviceOption = None,
) -> None:
    """Train the model without each of its parts in turn and print what the part was worth."""
    _measure(settings, "ablate", setting=setting, variants=variant, seeds=seeds, sweep=sweep, rates=rate,
             overrides=change, data_root=data_root, cache=cache, results=results, gpus=gpus, per_gpu=per_gpu,
             prepare_only=prepare_only, device=device, seed=settings.seed)  # fmt: skip


def memory(
    settings: Settings,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="C", help="A case to measure; by default all. May be repeated."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", metavar="V", help="A model to train and measure; by default all. May be repeated."),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length", min=1, metavar="N", help="Tokens of a text; by default the case's own. May be repeated."
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="N", help="Questions or documents of a case.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Change the recipe: model.episodic_memory=8192."),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", metavar="R", help="What the models are trained by.")] = "long",
    data_root: RootOption = None,
    cache: CacheOption = Path("runs/bench"),
    results: ResultsOption = None,
    prepare_only: PrepareOption = False,
    device: DeviceOption = None,
) -> None:
    """Hide facts in texts of up to millions of tokens and ask for them, with and without long-term memory."""
    _measure(settings, "memory", cases=case, variants=variant, lengths=length, count=count, overrides=change,
             recipe=recipe, data_root=data_root, cache=cache, results=results, prepare_only=prepare_only, device=device,
             seed=settings.seed)  # fmt: skip


def domains(
    settings: Settings,
    domain: Annotated[str, typer.Option("--domain", metavar="D", help="The domain that is left out and added.")] = (
        "medical"
    ),
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="C", help="add, retrain, tune, lora or dense, by default all; or terms alone."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="CKPT", help="The model that places single terms (--case terms).")
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option("--fraction", min=0.0, metavar="F", help="Share of the retrain's FLOPs (0.15 and 0.05)."),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option("--experts", min=1, metavar="N", help="New experts; by default as many as read a token."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.0, metavar="R", help="Learning rate, as a share of the recipe's.")
    ] = None,
    change: SetOption = None,
    data_root: RootOption = None,
    cache: CacheOption = Path("runs/bench"),
    prepare_only: PrepareOption = False,
    device: DeviceOption = None,
) -> None:
    """Add a domain to a model that has not read it, beside a retrain, fine-tuning, LoRA and a dense branch."""
    _measure(settings, "domains", domain=domain, case=case, fractions=fraction, experts=experts, rate=rate,
             overrides=change, data_root=data_root, cache=cache, prepare_only=prepare_only, device=device,
             seed=settings.seed, model=model)  # fmt: skip


def reason(
    settings: Settings,
    data_root: RootOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Most questions of each public set.")] = 200,
    own: Annotated[int, typer.Option("--own", min=1, metavar="N", help="Problems of each family of our own.")] = 50,
    deepest: Annotated[int, typer.Option("--deepest", min=1, metavar="N", help="Longest chain of our own.")] = 25,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="C", help="questions, speed, rules, depth, clutrr or folio. May be repeated."),
    ] = None,
    theories: Annotated[
        int, typer.Option("--theories", min=0, metavar="N", help="Compare N random theories with z3 and clingo.")
    ] = 0,
    first: Annotated[
        int, typer.Option("--first", min=0, metavar="N", help="Seed of the first, so that parts can run apart.")
    ] = 0,
) -> None:
    """Ask public and invented questions: how many are answered, how many rightly, and in what time."""
    from cmrn.bench.reason import ReasonOptions, run

    seed = 1 if settings.seed is None else settings.seed
    cases = tuple(case or (() if theories else ("questions",)))
    chosen = ReasonOptions(data_root or Path("."), limit, own, deepest, seed, cases, theories, first)
    _print(settings, run(chosen, lambda text: notice(settings, text)))


def store(
    settings: Settings,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="C", help="A fault or a measurement; by default all. May be repeated."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, metavar="N", help="How many of each; by default the case's own.")
    ] = None,
    data_root: RootOption = None,
    device: DeviceOption = None,
) -> None:
    """Kill, corrupt and fill a memory store, and search it beside its peers; ends with 8 if a promise is broken."""
    from cmrn.bench.store import StoreOptions, run
    from cmrn.errors import GuaranteeError

    seed = 1 if settings.seed is None else settings.seed
    chosen = StoreOptions(tuple(case or ()), rounds, seed, data_root, device)
    started = time.monotonic()
    report = run(chosen, lambda text: notice(settings, f"{duration(time.monotonic() - started):>7}  {text}"))
    _print(settings, report)
    if failures := report.settings["failures"]:
        raise GuaranteeError(f"{failures} promises broken", hint=f"again with --seed {seed}")


def _measure(settings: Settings, name: str, **given: Any) -> None:
    """Run a benchmark with the options given, those left out at its own defaults, and print its report."""
    from cmrn.training.device import resolve_device

    place = resolve_device(given["device"])
    given["device"] = str(place)
    if place.type == "cpu":
        notice(settings, "no CUDA device: what a CPU can show is measured")
    module = import_module(f"cmrn.bench.{name}")
    options = getattr(module, f"{name.capitalize()}Options")
    known = {field.name for field in fields(options)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    chosen = options(**{key: value for key, value in values.items() if value is not None and key in known})
    started = time.monotonic()
    report: Report = module.run(
        chosen, lambda text: notice(settings, f"{duration(time.monotonic() - started):>7}  {text}")
    )
    _print(settings, report)


def _print(settings: Settings, report: Report) -> None:
    if settings.json:
        write_json(report.to_json())
        return
    if settings.quiet:
        for row in report.rows:
            write_line(f"{row.name}\t{'' if row.value is None else row.value}")
        return
    if report.rows:
        console(settings).print(_table(report))
    for note in report.notes:
        notice(settings, note)


def _table(report: Report) -> Table:
    """Value, peer, ratio, limit and spread of every row; columns that no row fills are left out."""
    from rich.table import Table
    from rich.text import Text

    shown: dict[str, list[str]] = {
        "": [row.name for row in report.rows],
        "value": [_figure(row.value) for row in report.rows],
        "±": [_figure(row.spread) for row in report.rows],
        "unit": [row.unit for row in report.rows],
        "peer": [row.peer or "" for row in report.rows],
        "peer's": [_figure(row.peer_value) for row in report.rows],
        "ratio": ["" if row.ratio is None else f"{row.ratio:.3f}" for row in report.rows],
        "limit": [_figure(row.limit) for row in report.rows],
        "worth": [_worth(row) for row in report.rows],
    }
    kept = {name: cells for name, cells in shown.items() if any(cells)}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=report.device, caption_justify="left")
    for name in kept:
        table.add_column(name, justify="left" if name in ("", "unit", "peer") else "right")
    for cells in zip(*kept.values(), strict=True):
        table.add_row(*(Text(sanitize(cell, one_line=True)) for cell in cells))
    return table


def _worth(row: Row) -> str:
    """What a part was worth, or the gap to a peer in per cent, where the row has such."""
    if row.detail.get("worth") is not None:
        return f"{row.detail['worth']:+.4f}"
    gap = row.detail.get("gap_percent")
    return "" if gap is None else f"{gap:+.2f} %"


def _figure(value: float | None) -> str:
    """Four digits that count, thousands apart."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 1 or abs(value) >= 10 else f"{value:.4f}"
