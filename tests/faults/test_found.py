"""What the faults have found, each in its smallest form."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cmrn.bench.faults.made import DIM, fingerprint, vector
from cmrn.errors import CheckpointError
from cmrn.files import writer_lock
from cmrn.memory.entry import NewRecord
from cmrn.memory.folder import swap_database
from cmrn.memory.schema import PAGE_BYTES
from cmrn.memory.store import MemoryStore
from cmrn_cli import main


def fill(store: MemoryStore, number: int) -> None:
    store.add([NewRecord(f"text {place}", vector(f"text {place}")) for place in range(number)])


def test_a_store_opens_though_its_writer_died_while_taking_the_log_into_the_file(tmp_path: Path) -> None:
    folder, killed = tmp_path / "store", tmp_path / "killed"
    with MemoryStore.create(folder, fingerprint(DIM)) as store:
        fill(store, 400)
        shutil.copytree(folder, killed)
    first_page = (folder / "memory.db").read_bytes()[:PAGE_BYTES]
    with open(killed / "memory.db", "r+b") as file:
        file.write(first_page)
    assert (killed / "memory.db").stat().st_size < (folder / "memory.db").stat().st_size
    with MemoryStore.open(killed) as store:
        assert store.stats().records == 400
    with MemoryStore.open(killed, write=True) as store:
        assert store.verify() == []


def test_a_database_that_left_a_log_behind_replaces_nothing(tmp_path: Path) -> None:
    new, old = tmp_path / "next" / "memory.db", tmp_path / "memory.db"
    new.parent.mkdir()
    for path, content in ((new, b"new"), (new.with_name("memory.db-wal"), b"log"), (old, b"old")):
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="the disk failed"):
        swap_database(new, old)
    assert old.read_bytes() == b"old"


def test_the_lock_is_held_on_a_disk_too_full_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*ignored: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    with writer_lock(tmp_path):
        assert (tmp_path / "LOCK").exists()


def test_a_name_longer_than_any_is_a_mistake_of_the_person(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["memory", "stats", "--store", "a" * 500]) == 2
    assert "too long" in capsys.readouterr().err


def test_what_a_killed_writer_left_in_the_index_goes(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with MemoryStore.create(folder, fingerprint(DIM)) as store:
        fill(store, 2)
    stray = folder / "index" / "3-00000000.faiss.tmp-0123456789ab"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"half")
    with MemoryStore.open(folder, write=True):
        assert not stray.exists()
