"""`cmrn memory stats|verify|rebuild|compact|export|copy|reembed`: what looks after a store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from cmrn_cli.console import Settings, notice, sanitize, write_line
from cmrn_cli.memory_shared import NamespaceOption, StoreOption, WaitOption, warn_on
from cmrn_cli.output import write_json

__all__ = ["COMMANDS", "EXAMPLES"]

EXAMPLES = {
    "stats": ("cmrn memory stats", "cmrn memory stats --json", "cmrn memory stats --store other"),
    "verify": ("cmrn memory verify", "cmrn memory verify --json", "cmrn memory verify && cmrn memory compact"),
    "rebuild": ("cmrn memory rebuild", "cmrn memory rebuild --json", "cmrn memory rebuild --store other --wait 60"),
    "compact": (
        "cmrn memory compact",
        "cmrn memory compact --json",
        "cmrn memory delete --source crawl --yes && cmrn memory compact",
    ),
    "export": (
        "cmrn memory export memory.jsonl",
        "cmrn memory export medical.jsonl --namespace medical",
        "cmrn memory export - | cmrn memory populate - --store other",
    ),
    "copy": ("cmrn memory copy memory backup", "cmrn memory copy memory /mnt/backup", "cmrn memory copy a b --json"),
    "reembed": (
        "cmrn memory reembed",
        "cmrn memory reembed --embedder models/my-encoder",
        "cmrn memory reembed --workers 1 --json",
    ),
}


def stats(settings: Settings, store: StoreOption = Path("memory")) -> None:
    """Show what a store holds."""
    from cmrn.memory.index import VectorIndex
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, warn=warn_on(settings)) as opened:
        found = opened.stats()
        with VectorIndex.open(opened, warn=warn_on(settings), build="never") as index:
            described = {"kind": index.kind, "records": index.records}
    if settings.json:
        document = {"records": found.records, "namespaces": found.namespaces, "dim": found.dim}
        write_json({**document, "embedder": found.embedder, "index": described, "bytes": found.bytes, "seq": found.seq})
        return
    if settings.quiet:
        write_line(str(found.records))
        return
    write_line(f"{store}: {found.records:,} records, {found.bytes / 2**20:,.1f} MiB, change {found.seq:,}")
    for name, count in found.namespaces.items():
        write_line(f"  {sanitize(name, one_line=True)}  {count:,}")
    write_line(f"  vectors of {found.dim} numbers by {sanitize(found.embedder, one_line=True)}")
    write_line(f"  index {described['kind']}, {described['records']:,} records")


def verify(settings: Settings, store: StoreOption = Path("memory")) -> None:
    """Read all of a store and name what is damaged; exit 4 if anything is."""
    from cmrn.errors import CheckpointError
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, warn=lambda message: None) as opened:
        problems = opened.verify()
    if settings.json:
        write_json({"ok": not problems, "problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            write_line(f"{sanitize(problem.where, one_line=True)}  {sanitize(problem.what, one_line=True)}")
        if not problems and not settings.quiet:
            write_line(f"{store}: ok")
    if problems:
        raise CheckpointError(
            f"{len(problems)} things are damaged; searches leave damaged records out",
            where=str(store),
            hint=f"cmrn memory export rest.jsonl --store {store}, then populate a new store from it",
        )


def rebuild(settings: Settings, store: StoreOption = Path("memory"), wait: WaitOption = 0.0) -> None:
    """Make the search index anew from the records."""
    import shutil

    from cmrn.memory.folder import INDEX
    from cmrn.memory.index import VectorIndex
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, write=True, wait=wait, warn=warn_on(settings)) as opened:
        shutil.rmtree(opened.folder / INDEX, ignore_errors=True)
        with VectorIndex.open(opened, warn=warn_on(settings), build="now") as index:
            index.snapshot()
            described = {"kind": index.kind, "records": index.records}
    if settings.json:
        write_json({"index": described})
    elif not settings.quiet:
        write_line(f"{store}: index {described['kind']}, {described['records']:,} records")


def compact(settings: Settings, store: StoreOption = Path("memory"), wait: WaitOption = 0.0) -> None:
    """Rewrite a store without what was deleted, of which no byte is left on the disk."""
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, write=True, wait=wait, warn=warn_on(settings)) as opened:
        freed = opened.compact()
    if settings.json:
        write_json({"freed_bytes": freed})
    elif not settings.quiet:
        write_line(f"{store}: {freed / 2**20:,.1f} MiB freed")


def export(
    settings: Settings,
    file: Annotated[Path, typer.Argument(metavar="FILE|-", help="Where the JSON Lines go; - is stdout.")],
    namespace: NamespaceOption = None,
    store: StoreOption = Path("memory"),
) -> None:
    """Write the records as JSON Lines, which `populate` reads back."""
    from cmrn.memory.exchange import export_lines, export_store
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, warn=warn_on(settings)) as opened:
        if str(file) == "-":
            sys.stdout.writelines(line.decode("ascii") for line in export_lines(opened, namespace))
            return
        count = export_store(opened, file, namespace)
    if settings.json:
        write_json({"file": str(file), "records": count})
    elif not settings.quiet:
        write_line(f"{file}: {count:,} records")


def copy(
    settings: Settings,
    store: Annotated[Path, typer.Argument(metavar="SRC", help="The store to copy.")],
    folder: Annotated[Path, typer.Argument(metavar="DST", help="A new or empty folder.")],
) -> None:
    """Copy a store as of this moment, while others read and write it."""
    from cmrn.memory.exchange import copy_store
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, warn=warn_on(settings)) as opened:
        copy_store(opened, folder)
        count = opened.stats().records
    if settings.json:
        write_json({"folder": str(folder), "records": count})
    elif not settings.quiet:
        write_line(f"{folder}: {count:,} records")


def reembed(
    settings: Settings,
    embedder: Annotated[
        str | None, typer.Option("--embedder", metavar="M", help="The new encoder; by default MiniLM as it is here.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="CPU cores to embed with; by default all.")
    ] = None,
    store: StoreOption = Path("memory"),
    wait: WaitOption = 0.0,
) -> None:
    """Give every record the vector of another encoder; until it is done, the store stays as it was."""
    from cmrn.memory.exchange import reembed as replace_vectors
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, write=True, wait=wait, warn=warn_on(settings)) as opened:
        from cmrn.memory.embedding import Embedder

        encoder = Embedder(embedder, threads=workers)
        total = opened.stats().records

        def tell(done: int) -> None:
            notice(settings, f"{done:,} of {total:,} embedded")

        count = replace_vectors(opened, encoder.embed, encoder.fingerprint(), tell)
    if settings.json:
        write_json({"records": count, "embedder": encoder.name, "dim": encoder.dim})
    elif not settings.quiet:
        write_line(f"{store}: {count:,} records by {sanitize(encoder.name, one_line=True)}")


COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "stats": stats,
    "verify": verify,
    "rebuild": rebuild,
    "compact": compact,
    "export": export,
    "copy": copy,
    "reembed": reembed,
}
