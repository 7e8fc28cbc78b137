"""`cmrn expert`: the experts of a model, listed, shown, removed, renamed, shipped and switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.model import ModelOption, load_model
from cmrn_cli.options import add_command, examples, takes_globals
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from rich.table import Table

    from cmrn.domain_expert import ExpertFolder
    from cmrn.memory.partition import Partition
    from cmrn.model import CMRN

__all__ = ["EXAMPLES", "build_app"]

_NAME = typer.Argument(metavar="NAME", help="Name of an expert; `cmrn expert ls` lists them.")
_NAMES = typer.Argument(metavar="NAME", help="Name of an expert, or of a domain: all experts that own it alone.")
_OUT = typer.Option("--out", metavar="DIR", help="Where the changed model goes; by default it replaces the old one.")
_YES = typer.Option("--yes", help="Replace what is there.")

EXAMPLES = {
    "": ("cmrn expert ls", "cmrn expert export medical medical-expert", "cmrn expert ablate medical"),
    "ls": ("cmrn expert ls", "cmrn expert ls -m models/medical", "cmrn expert ls --json"),
    "show": ("cmrn expert show math", "cmrn expert show math -m models/medical", "cmrn expert show math --json"),
    "rm": (
        "cmrn expert rm medical -m models/medical --out models/without",
        "cmrn expert rm medical -m models/medical --yes",
        "cmrn expert rm medical -m models/medical --yes --json",
    ),
    "rename": (
        "cmrn expert rename math maths -m models/medical --out models/renamed",
        "cmrn expert rename math maths -m models/medical --yes",
        "cmrn expert rename free_1 poetry -m models/medical --yes --json",
    ),
    "export": (
        "cmrn expert export medical medical-expert",
        "cmrn expert export medical medical-expert -m models/medical",
        "cmrn expert export medical medical-expert --store memory",
    ),
    "import": (
        "cmrn expert import medical-expert --out models/medical",
        "cmrn expert import medical-expert -m models/base --out models/medical",
        "cmrn expert import medical-expert -m models/base --store memory --yes --json",
    ),
    "ablate": (
        "cmrn expert ablate math",
        "cmrn expert ablate math --data held-out.jsonl",
        "cmrn expert ablate math --json",
    ),
}  # fmt: skip


def build_app() -> typer.Typer:
    """The group of expert commands."""
    app = typer.Typer(rich_markup_mode="rich")
    app.callback(epilog=examples(*EXAMPLES[""]))(takes_globals(_group))
    commands: dict[str, Callable[..., None]] = {
        "ls": ls,
        "show": show,
        "rm": remove,
        "rename": rename,
        "export": export,
        "import": import_,
        "ablate": ablate,
    }
    for name, function in commands.items():
        add_command(app, name, function, EXAMPLES[name])
    return app


def _group(settings: Settings) -> None:
    """List, show, remove, rename, export, import and ablate the experts of a model."""


def ls(settings: Settings, model: ModelOption = None) -> None:
    """List the experts: type, domains, parameters."""
    network, place = load_model(model)
    rows = [
        {"name": e.name, "type": e.type, "domains": list(e.domains), "parameters": _parameters(network, e.name)}
        for e in network.config.named_experts
    ]
    if settings.json:
        write_json({"experts": rows})
    elif settings.quiet:
        for expert in network.config.named_experts:
            write_line(expert.name)
    else:
        cells = [(e.name, e.type, ", ".join(e.domains) or "–", f"{_parameters(network, e.name):,}")
                 for e in network.config.named_experts]  # fmt: skip
        console(settings).print(_table(("expert", "type", "domains", "parameters"), cells))
        notice(settings, f"{network.config.routing_k} of them read each token; model {place}")


def show(settings: Settings, name: Annotated[str, _NAME], model: ModelOption = None) -> None:
    """Show an expert: what it is, what it fits, and its row of every block's router."""
    from cmrn.experts.growth import backbone_fingerprint, expert_named, parts_of

    network, _ = load_model(model)
    expert_named(network.config, name)
    tensors = network.state_dict()
    parts = parts_of(network.config, tensors, name)
    blocks = [{"row_norm": float(row_R.norm()), "bias": float(bias)}
              for row_R, bias in zip(parts.rows_LR, parts.bias_L, strict=True)]  # fmt: skip
    document = {
        "name": name,
        "type": parts.config.type,
        "domains": list(parts.config.domains),
        "parameters": _parameters(network, name),
        "backbone": backbone_fingerprint(network.config, tensors),
        "blocks": blocks,
    }
    if settings.json:
        write_json(document)
        return
    for key, value in document.items():
        if key != "blocks":
            text = ", ".join(value) if isinstance(value, list) else str(value)
            write_line(f"{key:<12}{sanitize(text, one_line=True) or '–'}")
    cells = [(str(i), f"{each['row_norm']:.3f}", f"{each['bias']:+.3f}") for i, each in enumerate(blocks)]
    console(settings).print(_table(("block", "norm of its router row", "added for the choice"), cells))


def remove(
    settings: Settings,
    name: Annotated[str, _NAMES],
    model: ModelOption = None,
    out: Annotated[Path | None, _OUT] = None,
    yes: Annotated[bool, _YES] = False,
) -> None:
    """Remove an expert, or all of a domain; what was added leaves the model it was added to, bit for bit."""
    from cmrn.domain_expert import remove_expert
    from cmrn.experts.growth import group_named

    network, place = load_model(model)
    for each in group_named(network.config, name):
        network = remove_expert(network, each)
    _write(settings, network, place, _vacant_target(place, out, yes=yes))


def rename(
    settings: Settings,
    name: Annotated[str, _NAME],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    model: ModelOption = None,
    out: Annotated[Path | None, _OUT] = None,
    yes: Annotated[bool, _YES] = False,
) -> None:
    """Give an expert another name; the domains it owns stay."""
    from cmrn.domain_expert import rename_expert

    network, place = load_model(model)
    renamed = rename_expert(network, name, new)
    _write(settings, renamed, place, _vacant_target(place, out, yes=yes), same_routing=True)


def export(
    settings: Settings,
    name: Annotated[str, _NAMES],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    model: ModelOption = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="A memory, of which the expert's namespace goes along."),
    ] = None,
    yes: Annotated[bool, _YES] = False,
) -> None:
    """Write an expert, or all of a domain, as a folder: weights, router rows, and what it fits."""
    from cmrn.domain_expert import write_expert
    from cmrn.experts.growth import group_named

    if not yes:
        _check_vacant(folder)
    network, _ = load_model(model)
    group = group_named(network.config, name)
    name = group[0] if len(group) == 1 else name
    partition = None if store is None else _partition(store, name)
    if partition is None:
        write_expert(folder, network, name)
    else:
        write_expert(folder, network, name, partition.lines, partition.vectors)
    records = 0 if partition is None else partition.records
    if settings.json:
        write_json({"expert": name, "experts": list(group), "folder": str(folder), "records": records})
    else:
        write_line(str(folder))
        notice(settings, f"{_parameters(network, *group):,} parameters, {records:,} records of memory")


def import_(
    settings: Settings,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported expert.")],
    model: ModelOption = None,
    out: Annotated[Path | None, _OUT] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", metavar="DIR", help="A memory that takes in the expert's; made where there is none."),
    ] = None,
    yes: Annotated[bool, _YES] = False,
) -> None:
    """Add an exported expert, or a domain's, to a model of the backbone it was made for; any other is refused."""
    import shlex

    from cmrn.domain_expert import insert_expert, read_expert

    network, place = load_model(model)
    found = read_expert(folder, network.config)
    grown = insert_expert(network, found)
    target = _vacant_target(place, out, yes=yes)
    records = None if store is None else _take_in(found, store)
    _write(settings, grown, place, target, records=records)
    if found.memory is not None and store is None:
        notice(settings, f"its memory: cmrn memory populate {shlex.quote(str(found.memory))} --namespace {found.name}")


def ablate(
    settings: Settings,
    name: Annotated[str, _NAMES],
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More files, as --data.")] = None,
    model: ModelOption = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="A .jsonl or .txt file; by default the run's held-out text."),
    ] = None,
) -> None:
    """Measure what an expert, or all of a domain, is worth: bits per byte of every domain with it and without it."""
    from cmrn.domain_expert import silenced
    from cmrn.experts.growth import group_named
    from cmrn_cli.evaluate import measure_text, text_to_read

    network, place = load_model(model)
    group = group_named(network.config, name)
    documents, training = text_to_read([*(data or ()), *(files or ())], place)
    with silenced(network, *group):
        without = measure_text(network, documents, training).bits_per_byte
    whole = measure_text(network, documents, training).bits_per_byte
    if settings.json:
        write_json(
            {"expert": name, "experts": list(group), "bits_per_byte": {"with": dict(whole), "without": dict(without)}}
        )
        return
    cells = [(domain, f"{bits:.4f}", f"{without[domain]:.4f}", f"{without[domain] / bits - 1:+.2%}")
             for domain, bits in whole.items()]  # fmt: skip
    console(settings).print(_table(("domain", "with", "without", "change"), cells))


def _parameters(network: CMRN, *names: str) -> int:
    parts = tuple(f".experts.experts.{name}." for name in names)
    return sum(each.numel() for key, each in network.named_parameters() if any(part in key for part in parts))


def _partition(store: Path, name: str) -> Partition:
    """The memory's namespace of that name."""
    from cmrn.memory.partition import take_partition
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store) as opened:
        return take_partition(opened, name)


def _take_in(found: ExpertFolder, store: Path) -> int:
    """Put the expert's records into a memory, under its name; how many. Done again, it changes nothing."""
    from cmrn.errors import UsageError
    from cmrn.memory.partition import add_partition, read_partition

    if found.memory is None or found.vectors is None:
        raise UsageError("this expert brings no memory with it", where="--store", hint="import it without --store")
    fingerprint, records = read_partition(found.memory, found.vectors, found.name)
    add_partition(store, fingerprint, records)
    return len(records)


def _vacant_target(place: str, out: Path | None, *, yes: bool) -> Path:
    """Where a changed model goes.

    Raises:
        UsageError: over what is there without being asked to, or into a run, which could not go on from it.
    """
    from cmrn.errors import UsageError
    from cmrn.files import check_writable
    from cmrn.training.checkpoint import holds_training

    target = out or Path(place)
    if out is None and not target.is_dir():
        raise UsageError("lies on the hub, and cannot be replaced", where=place, hint="--out DIR")
    if not yes:
        _check_vacant(target)
    if target.is_dir() and holds_training(target):
        raise UsageError("is a run's checkpoint, and could not be trained on with other experts", where=str(target),
                         hint="--out DIR")  # fmt: skip
    check_writable(target)
    return target


def _write(
    settings: Settings,
    network: CMRN,
    place: str,
    target: Path,
    *,
    records: int | None = None,
    same_routing: bool = False,
) -> None:
    """Save a changed model, and say so. records: how many a memory took in, where one did.

    same_routing: whether what is usual for text, measured for the model in `place`, still holds.
    """
    from cmrn.pretrained import resolve_folder
    from cmrn.training.addition import origin_of, save_with_origin
    from cmrn.unseen import read_unseen

    usual = read_unseen(place)
    save_with_origin(target, network, origin_of(*resolve_folder(place)), usual if same_routing else None)
    names = [expert.name for expert in network.config.named_experts]
    if settings.json:
        write_json({"checkpoint": str(target), "experts": names} | ({} if records is None else {"records": records}))
    else:
        write_line(str(target))
        notice(settings, f"experts: {', '.join(names)}")
        if records is not None:
            notice(settings, f"records of memory: {records:,}")
    if usual is not None and not same_routing:
        notice(settings, "what is usual was measured with other experts and is left behind: trace and eval show how "
                         "much no expert owns, not whether it is more than usual")  # fmt: skip


def _check_vacant(folder: Path) -> None:
    from cmrn.errors import UsageError

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError("would be replaced", where=str(folder), hint="name another folder, or --yes")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """Rows under their titles, without lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in titles:
        table.add_column(title)
    for cells in rows:
        table.add_row(*(Text(sanitize(cell, one_line=True)) for cell in cells))
    return table
