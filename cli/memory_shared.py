"""What the memory commands share: opening a store with its encoder, naming records, and showing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmrn_cli.console import Settings, console, has_unicode, notice, sanitize
from cmrn_cli.draw import bar

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder
    from cmrn.memory.entry import Hit, Record
    from cmrn.memory.store import MemoryStore

__all__ = [
    "NamespaceOption",
    "StoreOption",
    "WaitOption",
    "embedder_of",
    "encoder_for",
    "record_document",
    "records_named",
    "settings_from_pairs",
    "show_hits",
    "show_record",
    "warn_on",
]

StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The store's folder.")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", metavar="N", help="The part of the store; by default every part.")
]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0.0, metavar="SECONDS", help="How long to wait for another writer.")
]
SHOWN_CHARACTERS = 400
PREFIX = "record:"


def warn_on(settings: Settings) -> Callable[[str], None]:
    """Where a store's or index's warnings go: stderr, a line each."""
    return lambda message: notice(settings, f"warning: {message}")


@contextmanager
def embedder_of(
    folder: Path,
    model: str | None,
    *,
    settings: Settings,
    write: bool = True,
    workers: int | None = None,
    wait: float = 0.0,
) -> Iterator[tuple[MemoryStore, Embedder]]:
    """A store and the encoder of its vectors; with `write` the store is made if there is none.

    A store that is locked or no store is refused before the encoder is loaded, which takes longer.
    """
    from cmrn.memory.schema import DATABASE
    from cmrn.memory.store import MemoryStore

    warn = warn_on(settings)
    with ExitStack() as stack:
        if not write or (folder / DATABASE).exists():
            store = stack.enter_context(MemoryStore.open(folder, write=write, wait=wait, warn=warn))
            encoder = encoder_for(store, model, workers)
        else:
            from cmrn.memory.embedding import Embedder

            encoder = Embedder(model, threads=workers)
            store = stack.enter_context(MemoryStore.ensure(folder, encoder.fingerprint(), wait=wait, warn=warn))
        yield store, encoder


def encoder_for(store: MemoryStore, model: str | None = None, workers: int | None = None) -> Embedder:
    """The encoder of that name, by default of the store's, once it gives the store's vectors."""
    from cmrn.memory.embedding import Embedder

    encoder = Embedder(model or store.fingerprint.embedder, threads=workers)
    store.check_fingerprint(encoder.fingerprint())
    return encoder


def records_named(store: MemoryStore, name: str, namespace: str | None) -> list[Record]:
    """The records of that id, or the one of that number where the name is `record:N` or no record's id.

    Raises:
        UsageError: there is none.
    """
    from cmrn.errors import UsageError

    found = [] if name.startswith(PREFIX) else store.find(name, namespace)
    number = name.removeprefix(PREFIX)
    if not found and number.isascii() and number.isdecimal() and len(number) < 19:
        found = [each for each in store.get([int(number)]) if namespace in (None, each.namespace)]
    if not found:
        raise UsageError("no record has this id", where=name, hint='cmrn memory search "some of its words"')
    return found


def settings_from_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`K=V` words as a dictionary; V is JSON where it is that, else text.

    Raises:
        UsageError: a word without `=`, or a value no store can keep.
    """
    from cmrn.errors import UsageError
    from cmrn.memory.fields import RefusedError, parse_json

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"cannot read {pair!r}", where=option, hint=f"{option} KEY=VALUE")
        try:
            found[key] = parse_json(value)
        except RefusedError:
            found[key] = value
    return found


def record_document(record: Record) -> dict[str, Any]:
    """A record as JSON shows it."""
    return {
        "id": record.id,
        "record": record.record,
        "text": record.text,
        "meta": dict(record.meta),
        "namespace": record.namespace,
        "source": record.source,
        "origin": record.origin,
        "trust": record.trust,
    }


def show_hits(settings: Settings, hits: Sequence[Hit]) -> None:
    """Hits, best first: score and a bar of it, the record, its text."""
    from rich.text import Text

    screen = console(settings)
    unicode = has_unicode(screen.encoding)
    for hit in hits:
        head = Text(f"{hit.score:.3f} ", "bold")
        head.append(bar(hit.score, 10, unicode=unicode), "green")
        head.append(f" {_named(hit.record)}", "cyan")
        screen.print(head)
        _show_body(settings, hit.record, None if settings.verbose else SHOWN_CHARACTERS)


def show_record(settings: Settings, record: Record) -> None:
    """One record, whole."""
    from rich.text import Text

    console(settings).print(Text(_named(record), "cyan"))
    _show_body(settings, record, None)


def _show_body(settings: Settings, record: Record, most: int | None) -> None:
    from rich.padding import Padding
    from rich.text import Text

    text = record.text if most is None or len(record.text) <= most else f"{record.text[:most].rstrip()} …"
    screen = console(settings)
    screen.print(Padding(Text(sanitize(text)), (0, 0, 0, 2), expand=False))
    told = "  ".join(f"{key}: {value}" for key, value in record.meta.items())
    if told:
        screen.print(Padding(Text(sanitize(told[:most], one_line=True), "dim"), (0, 0, 0, 2), expand=False))


def _named(record: Record) -> str:
    """A record's number, id, source and namespace in one line; who wrote it, unless that was the user."""
    parts = [f"{PREFIX}{record.record}", record.id or "", record.source, record.namespace]
    if record.origin != "user":
        parts.append(f"origin {record.origin}, trust {record.trust:g}")
    return sanitize(" · ".join(part for part in parts if part), one_line=True)
