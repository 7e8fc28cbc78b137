"""`cmrn memory`: fill, question, change and look after a store of texts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli import memory_upkeep as upkeep
from cmrn_cli.console import Settings, notice, sanitize, write_line
from cmrn_cli.draw import duration
from cmrn_cli.memory_progress import watch_populate
from cmrn_cli.memory_shared import (
    NamespaceOption,
    StoreOption,
    WaitOption,
    embedder_of,
    encoder_for,
    record_document,
    records_named,
    settings_from_pairs,
    show_hits,
    show_record,
    warn_on,
)
from cmrn_cli.options import add_command, examples, takes_globals
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from cmrn.memory.entry import Record
    from cmrn.memory.populate import PopulateResult
    from cmrn.memory.store import MemoryStore

__all__ = ["EXAMPLES", "build_app", "populate"]

EXAMPLES = {
    "": ("cmrn memory populate notes.jsonl", 'cmrn memory search "who won the prize twice"', "cmrn memory stats"),
    "populate": (
        "cmrn memory populate wikipedia.jsonl.gz --meta title",
        "cmrn memory populate facts.csv --text-field fact --id-field no --namespace medical",
        "cat more.jsonl | cmrn memory populate - --source crawl --on-error stop",
    ),
    "search": (
        'cmrn memory search "who won the prize twice"',
        'cmrn memory search "dosage of ibuprofen" -k 3 --namespace medical --where year=2020',
        'cmrn memory search "limits" --per-source 1 --json',
    ),
    "get": ("cmrn memory get nq00000", "cmrn memory get record:12 --json", "cmrn memory get nq00000 --store other"),
    "edit": (
        'cmrn memory edit nq00001 --text "It was released in May 2018."',
        "cmrn memory edit nq00001 --meta year=2018 --meta checked=true",
        "cmrn memory edit record:12 --meta draft=null",
    ),
    "delete": (
        "cmrn memory delete nq00000 nq00001",
        "cmrn memory delete --source crawl --yes",
        "cmrn memory delete record:12 --json",
    ),
}
MetaOption = Annotated[
    list[str] | None, typer.Option("--meta", metavar="K=V", help="Set a field; V is JSON or plain text; null drops it.")
]


def build_app() -> typer.Typer:
    """The group of memory commands."""
    app = typer.Typer(rich_markup_mode="rich")
    app.callback(epilog=examples(*EXAMPLES[""]))(takes_globals(_group))
    commands: dict[str, Callable[..., None]] = {
        "populate": populate, "search": search, "get": get, "edit": edit, "delete": delete,
    }  # fmt: skip
    for name, function in commands.items():
        add_command(app, name, function, EXAMPLES[name])
    for name, function in upkeep.COMMANDS.items():
        add_command(app, name, function, upkeep.EXAMPLES[name])
    return app


def _group(settings: Settings) -> None:
    """Keep texts in a store that loses nothing, and find them by meaning."""


def populate(
    settings: Settings,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...|-", help="JSONL, JSON, CSV, TSV or TXT, also .gz; - reads JSONL.")
    ],
    store: StoreOption = Path("memory"),
    namespace: NamespaceOption = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="S", help="Where the texts are from; by default as the file says.")
    ] = None,
    text_field: Annotated[str, typer.Option("--text-field", metavar="F", help="The field of the text.")] = "text",
    id_field: Annotated[str, typer.Option("--id-field", metavar="F", help="The field of the id.")] = "id",
    meta: Annotated[
        list[str] | None, typer.Option("--meta", metavar="K", help="A field to keep; by default all. May be repeated.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Records a commit.")] = 1000,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="CPU cores to embed with; by default all.")
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Only every n-th line or row, beginning with the i-th.")
    ] = "1/1",
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="At most so many records.")] = None,
    on_error: Annotated[
        str, typer.Option("--on-error", metavar="E", help="skip: pass over bad lines; stop: stop at the first.")
    ] = "skip",
    rejects: Annotated[
        Path, typer.Option("--rejects", metavar="FILE", help="Where bad lines are listed with their reasons.")
    ] = Path("rejects.jsonl"),
    embedder: Annotated[
        str | None, typer.Option("--embedder", metavar="M", help="A sentence-transformers model: folder or hub id.")
    ] = None,
    wait: WaitOption = 0.0,
) -> None:
    """Pour files of texts into a store; run it again and it goes on where it stopped, storing nothing twice."""
    from cmrn.errors import UsageError
    from cmrn.memory.reading import Fields, check_input

    if on_error not in ("skip", "stop"):
        raise UsageError(f"no choice {on_error!r}", where="--on-error", hint="--on-error skip or --on-error stop")
    part, parts = _shard(shard)
    paths = [None if name == "-" else Path(name) for name in files]
    for path in paths:
        check_input(path)

    with embedder_of(store, embedder, workers=workers, wait=wait, settings=settings) as (opened, encoder):
        from cmrn.memory.populate import PopulateOptions
        from cmrn.memory.populate import populate as pour

        options = PopulateOptions(
            fields=Fields(text_field, id_field, None if meta is None else tuple(meta), namespace, source),
            batch_size=batch_size,
            shard=(part, parts),
            limit=limit,
            on_error="stop" if on_error == "stop" else "skip",
            rejects=rejects,
        )
        with watch_populate(settings) as progress:
            result = pour(opened, paths, encoder, options, progress, sys.stdin.buffer)
        if result.added or result.updated:
            _refresh_index(settings, opened)
    _report(settings, result, store)


def _refresh_index(settings: Settings, store: MemoryStore) -> None:
    """Take the new records into the index and keep it, so that the next search starts at once."""
    from cmrn.errors import MissingExtraError, ResourceError
    from cmrn.memory.index import VectorIndex

    try:
        with VectorIndex.open(store, warn=warn_on(settings), build="now"):
            pass
    except (MissingExtraError, ResourceError) as error:
        notice(settings, f"the records are stored; their index is not: {error.message}")


def _shard(text: str) -> tuple[int, int]:
    from cmrn.errors import UsageError

    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and len(text) < 20 and 1 <= int(part) <= int(parts)):
        raise UsageError(f"cannot be {text!r}", where="--shard", hint="i/n with i from 1 to n, such as --shard 1/4")
    return int(part), int(parts)


def _report(settings: Settings, result: PopulateResult, store: Path) -> None:
    from dataclasses import asdict

    from cmrn.errors import DataError

    if settings.json:
        write_json(asdict(result))
    elif settings.quiet:
        write_line(str(result.added + result.updated + result.unchanged))
    else:
        counts = {"added": result.added, "updated": result.updated, "unchanged": result.unchanged}
        extra = {"stored before": result.skipped, "rejected": result.rejected}
        told = {**counts, **{name: count for name, count in extra.items() if count}}
        write_line(f"{store}: " + ", ".join(f"{count:,} {name}" for name, count in told.items()))
        notice(settings, f"{duration(result.seconds)}, {result.records_per_s:,.0f} records/s")
    if result.rejected:
        lines = "line was" if result.rejected == 1 else "lines were"
        raise DataError(
            f"{result.rejected:,} {lines} rejected; the good ones are stored",
            where=result.rejects_file,
            hint="mend what it lists and run the same command again",
        )
    if result.read == 0:
        raise DataError("there were no records to read")


def search(
    settings: Settings,
    query: Annotated[str, typer.Argument(metavar="Q", help="What to look for, in words.")],
    count: Annotated[int, typer.Option("-k", min=1, max=10_000, metavar="N", help="At most so many hits.")] = 5,
    where: Annotated[
        list[str] | None, typer.Option("--where", metavar="K=V", help="Only where a field has a value. Repeatable.")
    ] = None,
    per_source: Annotated[
        int | None, typer.Option("--per-source", min=1, metavar="N", help="At most so many hits of one source.")
    ] = None,
    namespace: NamespaceOption = None,
    store: StoreOption = Path("memory"),
) -> None:
    """Find the stored texts nearest in meaning to some words."""
    from cmrn.errors import DataError

    wanted = settings_from_pairs(where or [], "--where")
    if not query.strip():
        raise DataError("there is nothing to look for", where="Q")

    with embedder_of(store, None, write=False, settings=settings) as (opened, encoder):
        from cmrn.memory.index import VectorIndex

        def matches(record: Record) -> bool:
            return all(name in record.meta and record.meta[name] == value for name, value in wanted.items())

        spaces = None if namespace is None else [namespace]
        with VectorIndex.open(opened, warn=warn_on(settings), build="never") as index:
            found = index.search(
                encoder.embed([query]),
                count,
                namespaces=spaces,
                where=matches if wanted else None,
                per_source=per_source,
            )
    if settings.json:
        write_json({"hits": [{**record_document(hit.record), "score": hit.score} for hit in found[0]]})
    elif found[0]:
        show_hits(settings, found[0])
    else:
        notice(settings, "nothing found")


def get(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or record:N.")],
    namespace: NamespaceOption = None,
    store: StoreOption = Path("memory"),
) -> None:
    """Show a record."""
    from cmrn.memory.store import MemoryStore

    with MemoryStore.open(store, warn=warn_on(settings)) as opened:
        found = records_named(opened, name, namespace)
    if settings.json:
        write_json({"records": [record_document(record) for record in found]})
    else:
        for record in found:
            show_record(settings, record)


def edit(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or record:N.")],
    text: Annotated[str | None, typer.Option("--text", metavar="T", help="The new text; it is embedded anew.")] = None,
    meta: MetaOption = None,
    namespace: NamespaceOption = None,
    store: StoreOption = Path("memory"),
    wait: WaitOption = 0.0,
) -> None:
    """Change a record's text or fields; searches see it at once."""
    from dataclasses import replace

    from cmrn.errors import UsageError
    from cmrn.memory.entry import text_to_embed
    from cmrn.memory.store import MemoryStore

    if text is None and not meta:
        raise UsageError("nothing to change", where=name, hint=f"cmrn memory edit {name} --text TEXT")
    changes = settings_from_pairs(meta or [], "--meta")
    with MemoryStore.open(store, write=True, wait=wait, warn=warn_on(settings)) as opened:
        old = _only(records_named(opened, name, namespace), name)
        fields = {key: value for key, value in {**old.meta, **changes}.items() if value is not None}
        new = replace(old, text=old.text if text is None else _storable(text), meta=fields)
        vector = None
        if text is not None or text_to_embed(new) != text_to_embed(old):
            vector = encoder_for(opened).embed([text_to_embed(new)])[0]
        edited = opened.edit(old.record, text=text, meta=fields, vector=vector)
    if settings.json:
        write_json({"records": [record_document(edited)]})
    elif not settings.quiet:
        show_record(settings, edited)


def _storable(text: str) -> str:
    from cmrn.errors import UsageError
    from cmrn.memory.fields import Fields, RefusedError, to_record

    try:
        return to_record({"text": text}, Fields(), "").text
    except RefusedError as error:
        raise UsageError(str(error), where="--text") from error


def _only(found: list[Record], name: str) -> Record:
    from cmrn.errors import UsageError

    if len(found) > 1:
        numbers = ", ".join(f"record:{each.record}" for each in found[:10])
        raise UsageError(f"{len(found)} records have this id", where=name, hint=f"name one of them: {numbers}")
    return found[0]


def delete(
    settings: Settings,
    names: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Records' ids, or record:N.")] = None,
    source: Annotated[
        str | None, typer.Option("--source", metavar="S", help="Delete everything from this source.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    namespace: NamespaceOption = None,
    store: StoreOption = Path("memory"),
    wait: WaitOption = 0.0,
) -> None:
    """Delete records, or all of a source; `compact` then leaves no byte of them on the disk."""
    from cmrn.errors import UsageError
    from cmrn.memory.store import MemoryStore

    if bool(names) == (source is not None):
        raise UsageError("name records, or a source", hint="cmrn memory delete --help")
    if source is not None and not yes:
        _ask(f"delete everything of source {source!r} from {store}?")
    with MemoryStore.open(store, write=True, wait=wait, warn=warn_on(settings)) as opened:
        if source is not None:
            deleted = opened.delete_source(source, namespace)
        else:
            found = [_only(records_named(opened, name, namespace), name) for name in names or []]
            deleted = opened.delete([record.record for record in found])
    if settings.json:
        write_json({"deleted": deleted})
    else:
        write_line(str(deleted) if settings.quiet else f"{deleted:,} deleted from {store}")
    if deleted == 0:
        raise UsageError("no record is of this source", where=f"--source {source}", hint="cmrn memory stats")


def _ask(question: str) -> None:
    """Go on only if the person says yes."""
    from cmrn.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError("nobody is there to ask", hint="--yes deletes without asking")
    sys.stderr.write(sanitize(f"{question} [y/N] ", one_line=True))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was deleted")
