"""Stores copied, exported and given another encoder's vectors.

Share a memory as JSON Lines: `cmrn memory populate` reads them back. Never open another's database.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmrn.files import storage_errors, sync_directory
from cmrn.memory.entry import Fingerprint, NewRecord, Record, text_to_embed
from cmrn.memory.folder import (
    check_output,
    check_place,
    check_space,
    check_vacant,
    describe,
    held_lock,
    make_ready,
    private_file,
    size_of,
    swap_database,
    workspace,
)
from cmrn.memory.info import read_info, update_info
from cmrn.memory.maintenance import copy_database, rewrite
from cmrn.memory.oplog import append_changes
from cmrn.memory.rows import is_sound, prepare, record_of, row_of
from cmrn.memory.schema import DATABASE, transaction
from cmrn.memory.store import MemoryStore
from cmrn.memory.writing import read_window

__all__ = ["copy_store", "export_lines", "export_store", "line_of", "reembed"]

WINDOW = 1_000
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def export_lines(store: MemoryStore, namespace: str | None = None) -> Iterator[bytes]:
    """Every sound record as a line of ASCII JSON, without its vector."""
    for records, _, spaces in store.scan(batch=WINDOW):
        wanted = [int(each) for each, space in zip(records, spaces, strict=True) if namespace in (None, space)]
        for record in store.get(wanted):
            yield line_of(record)


def line_of(record: Record) -> bytes:
    """A record as one line of ASCII JSON, its line feed included."""
    fields = {
        "id": record.id,
        "record": record.record,
        "text": record.text,
        "namespace": record.namespace,
        "source": record.source,
        "meta": record.meta,
        "origin": record.origin,
        "trust": record.trust,
    }
    return json.dumps(fields).encode() + b"\n"


def export_store(store: MemoryStore, path: Path, namespace: str | None = None) -> int:
    """Write every sound record to a file of JSON Lines, which appears whole or not at all; how many.

    Raises:
        UsageError: a folder, a device, or a file of the store.
        ResourceError: the disk is full; a file that was there is whole.
        CheckpointError: the file cannot be written.
    """
    check_output(path, store.folder)
    count = 0
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(6)}")
    with storage_errors(path):
        try:
            with private_file(temporary) as descriptor, open(descriptor, "wb", closefd=False) as file:
                for line in export_lines(store, namespace):
                    file.write(line)
                    count += 1
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return count


def copy_store(store: MemoryStore, folder: Path) -> None:
    """Make a store in another folder with the same records, as of now, under a uuid of its own.

    Raises:
        CheckpointError: the folder is not empty, or the store is damaged.
        ResourceError: too little space there.
    """
    check_place(folder)
    check_vacant(folder)
    store.flush()
    name = uuid.uuid4().hex

    def rename(connection: sqlite3.Connection) -> None:
        with transaction(connection):
            update_info(connection, uuid=name)

    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with held_lock(folder, wait=0.0):
        make_ready(folder)
        check_vacant(folder)
        check_space(folder, size_of(store.folder))
        with workspace(folder) as temporary:
            with store.handle.another_reader() as reader:
                copy_database(reader, temporary / DATABASE, rename)
                info = read_info(reader)
            describe(folder, replace(info, uuid=name))
            swap_database(temporary / DATABASE, folder / DATABASE)


def reembed(
    store: MemoryStore,
    embed: Embed,
    fingerprint: Fingerprint,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Give every record another encoder's vector, all or none of them; how many.

    embed: texts to (N, D) float32; progress: told how many are done.

    Raises:
        DataError: the encoder gave a vector that cannot be stored; the store is left as it was.
        CheckpointError, ResourceError, LockedError: as `MemoryStore.compact`.
    """
    done: list[int] = []

    def change(connection: sqlite3.Connection) -> None:
        last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rec'").fetchone()
        for start in range(0, last[0] if last else 0, WINDOW):
            rows = [row for row in read_window(connection, start, start + WINDOW)[0] if is_sound(row)]
            if not rows:
                continue
            records = [record_of(row) for row in rows]
            vectors_ND = embed([text_to_embed(record) for record in records])
            new = [
                NewRecord(r.text, vector, r.id, r.namespace, r.source, r.meta, r.origin, r.trust)
                for r, vector in zip(records, vectors_ND, strict=True)
            ]
            with transaction(connection):
                for record, entry in zip(records, prepare(new, fingerprint.dim), strict=True):
                    row = row_of(record.record, entry)
                    connection.execute("UPDATE rec SET crc = ?, vec = ? WHERE record = ?", (row[3], row[4], row[0]))
            done.extend(record.record for record in records)
            progress(len(done))
        with transaction(connection):
            if fingerprint.dim != read_info(connection).fingerprint.dim:
                connection.execute("DELETE FROM val")
            update_info(connection, fingerprint=fingerprint)
            append_changes(connection, "update", done)

    rewrite(store.handle, change)
    return len(done)
