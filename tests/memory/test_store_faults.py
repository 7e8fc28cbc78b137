"""The rows about the store in the table of faults: what may go wrong around it, and what must then hold."""

from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import pytest

from cmrn.errors import CheckpointError, LockedError, ResourceError
from cmrn.memory import folder as folders
from cmrn.memory import maintenance
from cmrn.memory.entry import Fingerprint
from cmrn.memory.folder import RESERVE, RESERVE_BYTES, check_place, filesystem_of
from cmrn.memory.schema import APPLICATION_ID, SCHEMA, check_identity
from cmrn.memory.store import MemoryStore
from tests.memory.stores import PRINT, change_bytes, filled, new, run_sql, vector

ROOT = Path(__file__).resolve().parents[2]
SECRET = "xyzzyplugh"


def child(code: str, folder: Path) -> subprocess.Popen[str]:
    """A Python process that runs some code on a folder; its standard input and output are pipes."""
    start = "import sys, os\nfrom pathlib import Path\nfrom tests.memory.stores import *\nfolder = Path(sys.argv[1])\n"
    command = [sys.executable, "-c", start + code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def size_limit(limit: int) -> Iterator[None]:
    """Within it, no file may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_second_writer_is_refused_at_once_and_told_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    code = "store = MemoryStore.open(folder, write=True); print('open', flush=True); sys.stdin.read()"
    with child(code, folder) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        start = time.monotonic()
        with pytest.raises(LockedError, match=rf"written by process {writer.pid} on ") as caught:
            MemoryStore.open(folder, write=True)
        assert caught.value.exit_code == 5
        assert time.monotonic() - start < 1.0
        with pytest.raises(LockedError):
            MemoryStore.ensure(folder, PRINT)
        with MemoryStore.open(folder) as reader:
            assert len(reader.get(range(1, 9))) == 5
        start = time.monotonic()
        with pytest.raises(LockedError):
            MemoryStore.open(folder, write=True, wait=0.2)
        assert time.monotonic() - start >= 0.2
        writer.kill()
    with MemoryStore.open(folder, write=True, wait=5.0) as store:
        assert store.verify() == []


def test_a_writer_may_wait_for_another_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    code = (
        "store = MemoryStore.open(folder, write=True); print('open', flush=True); sys.stdin.readline(); store.close()"
    )
    with child(code, folder) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        writer.stdin.write("\n")
        writer.stdin.flush()
        with MemoryStore.open(folder, write=True, wait=10.0) as store:
            assert store.add([new(9)]).added == 1


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    code = """
store = MemoryStore.create(folder, PRINT)
for batch in range(10_000):
    store.add([new(batch * 7 + n) for n in range(7)])
    print(batch, flush=True)
"""
    with child(code, folder) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.readlines()
    batches = len([line for line in told if line.endswith("\n")])
    (folder / "next.tmp-0123456789ab").mkdir()
    (folder / "next.tmp-0123456789ab" / "memory.db").write_bytes(b"half")
    with MemoryStore.open(folder, write=True) as store:
        records = store.stats().records
        assert records % 7 == 0
        assert batches * 7 <= records <= (batches + 1) * 7
        assert [r.text for r in store.get(range(1, records + 1))] == [f"text {n}" for n in range(records)]
        assert store.verify() == []
    assert not list(folder.glob("*.tmp-*"))


def test_a_store_half_made_is_no_store_and_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders, "swap_database", fail)
        with pytest.raises(KeyboardInterrupt):
            MemoryStore.create(folder, PRINT)
    with pytest.raises(CheckpointError, match="holds no memory store"):
        MemoryStore.open(folder)
    filled(folder).close()
    with pytest.raises(CheckpointError, match="already holds"):
        MemoryStore.create(folder, PRINT)


def test_a_full_disk_refuses_the_batch_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder, 50) as store:
        store.add([new(60, text=SECRET)])
        used = max((folder / name).stat().st_size for name in ("memory.db", "memory.db-wal"))
        with size_limit(used + 50_000):
            with pytest.raises(ResourceError, match="every record acknowledged before is kept") as caught:
                store.add([new(n, text="long " * 1000 + str(n)) for n in range(100, 200)])
            assert caught.value.exit_code == 6
            assert len(store.get(range(1, 99))) == 51
            with MemoryStore.open(folder) as reader:
                assert reader.stats().records == 51
        assert store.stats().records == 51
        assert store.add([new(99)]).records == (52,)
        assert store.verify() == []


def fits(store: MemoryStore, start: int) -> bool:
    """Whether the store took twenty more long records."""
    try:
        store.add([new(n, text="long " * 2000 + str(n)) for n in range(start, start + 20)])
    except ResourceError:
        return False
    return True


def fill_up(file: BinaryIO) -> None:
    """Write until nothing fits any more."""
    with suppress(OSError):
        while file.write(b"x" * 512):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_on_a_disk_without_a_free_byte_what_is_stored_is_found_and_can_be_deleted(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    folder, told = disk / "memory", list[str]()
    try:
        with filled(folder, 50, warn=told.append) as store:
            acknowledged = 50
            while fits(store, acknowledged):
                acknowledged += 20
            with open(disk / "filler", "wb", buffering=0) as filler:
                fill_up(filler)
            assert store.stats().records == acknowledged
            store.touch([1])
            assert (folder / RESERVE).exists()
            assert sum(store.delete([record]) for record in range(1, 41)) == 40
            assert not (folder / RESERVE).exists()
        with MemoryStore.open(folder) as store:
            assert store.stats().records == acknowledged - 40
            assert store.get([1, 41])[0].record == 41
        (disk / "filler").unlink()
        with MemoryStore.open(folder, write=True) as store:
            assert (folder / RESERVE).stat().st_size == RESERVE_BYTES
            assert store.verify() == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_is_no_store_is_refused_and_left_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with pytest.raises(CheckpointError, match="holds no memory store") as caught:
        MemoryStore.open(folder)
    assert "cmrn memory populate" in str(caught.value)
    folder.mkdir()
    (folder / "memory.db").write_bytes(b"no database" * 1000)
    other = sqlite3.connect(tmp_path / "other.db")
    other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    other.close()
    for content in (b"no database" * 1000, b"", (tmp_path / "other.db").read_bytes()):
        (folder / "memory.db").write_bytes(content)
        for write in (False, True):
            with pytest.raises(CheckpointError, match="is not a memory store"):
                MemoryStore.open(folder, write=write)
        with pytest.raises(CheckpointError):
            MemoryStore.ensure(folder, PRINT)
        assert [path.name for path in folder.iterdir()] == ["memory.db"]
        assert (folder / "memory.db").read_bytes() == content
    (folder / "memory.db").unlink()
    (folder / "memory.db").symlink_to(tmp_path / "other.db")
    with pytest.raises(CheckpointError, match="holds no memory store"):
        MemoryStore.open(folder)


def test_a_folder_of_other_things_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    for make in (MemoryStore.create, MemoryStore.ensure):
        with pytest.raises(CheckpointError, match=r"such as 'thesis\.txt'"):
            make(tmp_path, PRINT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(CheckpointError, match="not a folder"):
        MemoryStore.create(tmp_path / "thesis.txt", PRINT)


def test_a_newer_schema_is_refused_naming_both_versions_and_left_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "PRAGMA user_version = 9")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for write in (False, True):
        with pytest.raises(CheckpointError, match=r"schema 9, and this version of cmrn reads up to 2"):
            MemoryStore.open(folder, write=write)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_older_schema_is_copied_migrated_verified_and_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "PRAGMA user_version = 0")
    before = (folder / "memory.db").read_bytes()
    with pytest.raises(CheckpointError, match="older schema 0"):
        MemoryStore.open(folder)
    with pytest.raises(CheckpointError, match="has schema 0, and this version of cmrn reads 2"):
        MemoryStore.open(folder, write=True)

    def spoil(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE rec SET text = 'spoilt' WHERE record = 3")

    with pytest.raises(CheckpointError, match="record 3 is damaged"):
        maintenance.migrate(folder, {0: spoil, 1: lambda connection: None})
    assert (folder / "memory.db").read_bytes() == before

    steps: list[sqlite3.Connection] = []
    maintenance.migrate(folder, {0: steps.append, 1: steps.append})
    assert len(steps) == 2
    with MemoryStore.open(folder) as store:
        assert store.stats().records == 5
    assert not list(folder.glob("*.tmp-*"))


def test_a_store_of_before_there_were_values_is_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "DROP TABLE val")
    run_sql(folder, "PRAGMA user_version = 1")
    with pytest.raises(CheckpointError, match="older schema 1"):
        MemoryStore.open(folder)
    with MemoryStore.open(folder, write=True) as store:
        store.edit(2, value=vector(9))
        assert (store.stats().records, store.verify()) == (5, [])
    with MemoryStore.open(folder) as store:
        assert store.values([2])[0].tolist() == vector(9).tolist()


MOUNTS = r"""
rootfs / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
//host/share /mnt/a\040share cifs rw 0 0
/dev/sda1 /home/me/local ext4 rw 0 0
broken
"""


def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    for place, kind in {
        "/home/me/memory": "nfs4",
        "/mnt/a share/memory": "cifs",
        "/home/me/local/memory": "ext4",
        "/homeless": "ext4",
    }.items():
        assert filesystem_of(Path(place), MOUNTS) == kind
    with pytest.raises(CheckpointError, match=r"network filesystem \(nfs4\)"):
        check_place(Path("/home/me/memory"), mounts=MOUNTS)
    check_place(Path("/home/me/local/memory"), mounts=MOUNTS)
    check_place(tmp_path)


@pytest.mark.parametrize("killed", [False, True])
def test_a_read_only_folder_is_read_and_not_written(killed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    store = filled(folder)
    if not killed:
        store.close()
    ask = """
import fcntl
if os.geteuid() == 0:
    os.setuid(65534)
with MemoryStore.open(folder) as store:
    print(len(store.get(range(1, 9))), len(store.verify()))
for write in (lambda: MemoryStore.open(folder, write=True), lambda: MemoryStore.ensure(folder, PRINT)):
    try:
        write()
    except Exception as error:
        print(getattr(error, "exit_code", error))
"""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(path.stat().st_mode | 0o055)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555)
    with child(ask, folder) as reader:
        output = reader.communicate()[0]
    folder.chmod(0o700)
    for path in folder.iterdir():
        path.chmod(0o600)
    store.close()
    assert output == "5 0\n4\n4\n"


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "memory"
    before = os.umask(0o022)
    try:
        with filled(folder):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.keys() == {"memory.db", "memory.db-wal", "memory.db-shm", "LOCK", "RESERVE", "format.json"}
    assert set(modes.values()) == {0o600}


def test_after_compact_no_byte_of_what_was_deleted_is_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder, 30, max_records=32) as store:
        store.add([new(50, f"{SECRET} 1", source=f"{SECRET}-s"), new(51, f"{SECRET} 2")])
        (folder / "index").mkdir()
        (folder / "index" / "1-0.faiss").write_bytes(SECRET.encode())
        store.edit(32, text="harmless", vector=vector(3))
        store.delete_source(f"{SECRET}-s")
        store.add([new(60, meta={"a": f"{SECRET} 3"})])
        store.add([new(60)])
        assert store.compact() > 0
        assert store.verify() == []
        assert store.stats().records == 32
        assert store.add([new(99)]).records == (34,)
        assert [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []
    assert [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


def test_even_before_compact_a_deleted_text_leaves_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder, 30) as store:
        store.add([new(50, SECRET)])
        store.delete([31])
    assert SECRET.encode() not in (folder / "memory.db").read_bytes()


def test_a_reader_goes_on_through_a_compaction_in_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder, 20).close()
    with MemoryStore.open(folder) as reader:
        scan = reader.scan(batch=5)
        assert len(next(scan)[0]) == 5
        with MemoryStore.open(folder, write=True) as store:
            store.delete([1, 20])
            store.compact()
            store.add([new(99)])
            assert [r.record for r in reader.get([1, 2, 21])] == [2, 21]
            assert sum(len(numbers) for numbers, _, _ in scan) == 14
            assert reader.stats().records == 19


def test_a_compaction_needs_space_and_no_one_in_the_middle_of_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "memory"
    monkeypatch.setattr("cmrn.memory.schema.BUSY_SECONDS", 0.1)
    with filled(folder) as store:
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
            with pytest.raises(ResourceError, match="MiB free"):
                store.compact()
        other = sqlite3.connect(folder / "memory.db", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM rec").fetchone()
        store.add([new(9)])
        with MemoryStore.open(folder) as reader:
            with pytest.raises(LockedError, match="being read"):
                store.compact()
            assert reader.stats().records == 6
        other.execute("COMMIT")
        other.close()
        assert store.compact() is not None
        assert store.stats().records == 6


def test_a_flipped_description_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, "UPDATE info SET value = 'other' WHERE name = 'uuid'")
    for write in (False, True):
        with pytest.raises(CheckpointError, match="description"):
            MemoryStore.open(folder, write=write)


def test_a_damaged_page_costs_its_records_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with MemoryStore.create(folder, PRINT) as store:
        store.add([new(n, text=f"text {n} " + "x" * 4000) for n in range(40)])
    data = bytearray((folder / "memory.db").read_bytes())
    page = data.index(b"text 20 ") // 16384
    data[page * 16384 : page * 16384 + 8] = b"\xff" * 8
    (folder / "memory.db").write_bytes(data)
    told: list[str] = []
    with MemoryStore.open(folder, warn=told.append) as store:
        found = [record.record for record in store.get(range(1, 41))]
        lost = set(range(1, 41)) - set(found)
        assert 21 in lost
        assert len(lost) <= 4
        assert store.quarantined == lost
        assert sum(len(numbers) for numbers, _, _ in store.scan()) == len(found)
        assert len(told) == len(lost)
        problems = store.verify()
        assert {f"record {record}" for record in lost} <= {problem.where for problem in problems}


def test_a_bit_flipped_in_the_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder) as store:
        store.edit(3, text=SECRET, vector=vector(3))
    change_bytes(folder / "memory.db", SECRET.encode(), SECRET.upper().encode())
    with MemoryStore.open(folder, warn=lambda _: None) as store:
        assert store.get([3]) == []
        assert [(problem.where, "checksum" in problem.what) for problem in store.verify()] == [("record 3", True)]


def test_a_header_ahead_of_a_file_that_is_being_lengthened_is_no_damage(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    with open(folder / "memory.db", "r+b") as file:
        file.seek(28)
        file.write((10_000).to_bytes(4, "big"))
    assert check_identity(folder / "memory.db") == SCHEMA


def test_a_store_that_is_not_handed_out_lets_others_write(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="its vectors are of"):
            MemoryStore.ensure(folder, Fingerprint("other"))


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("relaxed", 1)])
def test_connections_are_as_safe_as_promised(
    durability: Literal["full", "relaxed"], synchronous: int, tmp_path: Path
) -> None:
    wanted = {
        "journal_mode": b"wal",
        "synchronous": synchronous,
        "secure_delete": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "page_size": 16384,
        "wal_autocheckpoint": 4096,
    }
    with filled(tmp_path / "memory", durability=durability) as store:
        store.compact()
        with store.handle.alone() as connection:
            assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted
        with store.handle.reading() as connection:
            for name in ("trusted_schema", "cell_size_check"):
                assert connection.execute(f"PRAGMA {name}").fetchone()[0] == wanted[name]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.execute("DELETE FROM rec")


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    filled(tmp_path / "memory").close()
    header = (tmp_path / "memory" / "memory.db").read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[16:18], "big") == 16384
    assert header[18:20] == b"\x02\x02"
