from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn import files
from cmrn.errors import CheckpointError, LockedError, ResourceError
from cmrn.files import MANIFEST, check_writable, remove_strays, verify_folder, write_file, write_folder, writer_lock

CONTENT = {"a.txt": b"first", "deep/er/b.bin": bytes(range(256)) * 20, "empty": b""}


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with write_folder(folder) as temporary:
        fill(temporary, content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in verify_folder(folder).files}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Within it, no file may grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@given(first=st.binary(max_size=100), second=st.binary(max_size=100))
def test_a_file_is_replaced_whole(first: bytes, second: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("file") / "below" / "name"
    for data in (first, second):
        write_file(path, data)
        assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == ["name"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Without a reader, opening a pipe to write waits.
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(tmp_path / "pipe", b"one", b"two")
        assert os.read(reader, 100) == b"onetwo"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for impossible in (tmp_path / "file" / "model", tmp_path / "file" / "a" / "b", tmp_path / ("x" * 300) / "b"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            check_writable(impossible)


def test_a_folder_holds_what_was_written_and_its_manifest(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    assert read(folder) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    sizes = {name: entry.size for name, entry in verify_folder(folder).files.items()}
    assert sizes == {name: len(data) for name, data in CONTENT.items()}


def test_a_folder_is_replaced_only_where_a_folder_of_ours_or_none_stood(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    write(folder, {"c": b"new"})
    assert read(folder) == {"c": b"new"}
    fill(tmp_path / "precious", {"thesis.txt": b"years"})
    with pytest.raises(CheckpointError, match="in the way"):
        write(tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_bytes() == b"years"
    (tmp_path / "void").mkdir()
    assert read(write(tmp_path / "void")) == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "precious", "void"]


def test_a_failing_body_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")

    def fail(temporary: Path) -> None:
        fill(temporary, {"half": b"..."})
        raise KeyError

    with pytest.raises(KeyError), write_folder(folder) as temporary:
        fail(temporary)
    assert read(folder) == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_full_disk_leaves_the_old_file_and_folder_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    write_file(tmp_path / "file", b"old")
    with full_disk(10_000):
        with pytest.raises(ResourceError, match="no space") as caught:
            write(folder, {"big": bytes(20_000)})
        with pytest.raises(ResourceError, match="no space"):
            write_file(tmp_path / "file", bytes(20_000))
    assert caught.value.exit_code == 6
    assert caught.value.where == str(folder)
    assert read(folder) == CONTENT
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@given(data=st.data())
def test_every_change_to_a_folder_is_found(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write(tmp_path_factory.mktemp("mutated") / "folder")
    name = data.draw(st.sampled_from([*CONTENT, MANIFEST]))
    path = folder / name
    before = path.read_bytes()
    change = data.draw(st.sampled_from(["flip", "cut", "grow", "remove", "swap"] if before else ["grow", "remove"]))
    if change == "remove":
        path.unlink()
    elif change == "swap":
        path.unlink()
        path.symlink_to(folder.parent / "elsewhere")
        (folder.parent / "elsewhere").write_bytes(before)
    else:
        place = data.draw(st.integers(0, max(0, len(before) - 1)))
        bit = 1 << data.draw(st.integers(0, 7))
        after = {
            "flip": before[:place] + bytes([before[place] ^ bit]) + before[place + 1 :] if before else b"",
            "cut": before[:place],
            "grow": before + b"}",
        }[change]
        path.write_bytes(after)
    with pytest.raises(CheckpointError) as caught:
        verify_folder(folder)
    assert str(folder) in str(caught.value.where)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "deep/../a.txt", "a\\b", "", ".", "./a.txt"])
def test_a_manifest_cannot_name_a_path_outside(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    text = (folder / MANIFEST).read_text().replace('"a.txt"', f'"{name}"'.replace("\\", "\\\\"))
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="outside its folder"):
        verify_folder(folder)


def test_a_linked_folder_is_not_followed_unless_it_stays_inside(tmp_path: Path) -> None:
    folder = write(tmp_path / "cache" / "folder")
    (folder / "deep").rename(tmp_path / "cache" / "moved")
    (folder / "deep").symlink_to(tmp_path / "cache" / "moved")
    with pytest.raises(CheckpointError, match="symbolic link"):
        verify_folder(folder)
    assert verify_folder(folder, links_within=tmp_path / "cache").files.keys() == CONTENT.keys()
    with pytest.raises(CheckpointError, match="symbolic link"):
        verify_folder(folder, links_within=folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"files": 3}',
        "[" * 100_000,
        '{"format_version": 1, "files": {"a": 1}}',
        '{"format_version": 9, "files": {}}',
        "\xff",
    ],
    ids=range(7),
)
def test_a_manifest_that_is_none_is_refused(manifest: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder")
    (folder / MANIFEST).write_text(manifest, encoding="latin-1")
    with pytest.raises(CheckpointError):
        verify_folder(folder)


def test_everything_is_durable_before_the_rename_and_the_rename_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []
    real_sync, real_rename = os.fsync, os.rename

    def sync(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append(("rename", str(target)))
        real_rename(source, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "rename", rename)
    folder = write(tmp_path / "folder")
    at = calls.index(("rename", str(folder)))
    names = {Path(path).name for kind, path in calls[:at] if kind == "sync"}
    assert names >= {"a.txt", "b.bin", "empty", MANIFEST, "er", "deep"}
    assert calls[at - 1][1].startswith(f"{folder}.tmp-")
    assert calls[at + 1] == ("sync", str(tmp_path))


DIE = """
import os, signal, sys
from pathlib import Path
from cmrn import files
kinds = {"a": b"old" * 1000, "b/c": b"old"}, {"a": b"new" * 2000, "b/c": b"new"}
def write(folder, content):
    with files.write_folder(folder) as temporary:
        (temporary / "b").mkdir()
        for name, data in content.items():
            (temporary / name).write_bytes(data)
def die_at(call):
    left = [call]
    def counted(real):
        def function(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)
        return function
    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
killed = 0
for call in range(1, 200):
    folder = Path(sys.argv[1]) / str(call) / "folder"
    write(folder, kinds[0])
    child = os.fork()
    if child == 0:
        die_at(call)
        write(folder, kinds[1])
        os._exit(0)
    _, status = os.waitpid(child, 0)
    files.remove_strays(folder.parent)
    names = files.verify_folder(folder).files
    content = {name: (folder / name).read_bytes() for name in names}
    assert content in kinds, (call, content)
    assert [path.name for path in folder.parent.iterdir()] == ["folder"], call
    if status == 0:
        assert content == kinds[1]
        break
    killed += 1
print(killed)
"""


def test_killed_at_any_call_the_folder_is_the_old_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8


def test_strays_go_with_the_next_write_or_the_lock_holder(tmp_path: Path) -> None:
    fill(tmp_path, {"name.tmp-0123456789ab/half": b".", "other.tmp-0123456789ab": b".", "mine.tmp-notes": b"kept"})
    write(tmp_path / "name")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp-notes", "name", "other.tmp-0123456789ab"]
    remove_strays(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp-notes", "name"]


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with writer_lock(tmp_path):
        with pytest.raises(LockedError, match=f"process {os.getpid()} on ") as caught, writer_lock(tmp_path):
            pytest.fail("two writers")
        assert caught.value.exit_code == 5
    with writer_lock(tmp_path):
        pass
