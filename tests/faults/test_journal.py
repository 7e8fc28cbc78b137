from __future__ import annotations

import random
from pathlib import Path

import pytest

from cmrn.bench.faults.journal import Call, Disk, read_journal, write_image
from cmrn.bench.faults.launcher import launcher
from cmrn.bench.faults.shim import Arming


def disk(*calls: tuple[str, str, int, bytes]) -> Disk:
    made = Disk("/d")
    for kind, name, position, data in calls:
        made.play(Call(kind, f"/d/{name}".rstrip("/"), position, data))
    return made


def test_what_was_not_synced_may_be_gone() -> None:
    written = [("c", "a", 0, b""), ("w", "a", 0, b"hello")]
    assert disk(*written).cut() == {}
    assert disk(*written, ("s", "a", 0, b"")).cut() == {}
    assert disk(*written, ("s", "", 0, b"")).cut() == {"/d/a": b""}
    assert disk(*written, ("s", "a", 0, b""), ("s", "", 0, b"")).cut() == {"/d/a": b"hello"}


def test_later_sectors_may_be_there_in_any_mixture() -> None:
    made = disk(("c", "a", 0, b""), ("s", "", 0, b""), ("w", "a", 0, bytes(512) + b"x" * 512))
    lengths = {len(made.cut(random.Random(seed))["/d/a"] or b"") for seed in range(20)}
    assert lengths == {0, 512, 1024}


def test_a_rename_is_durable_with_its_folder_and_takes_the_file_along() -> None:
    calls = [("c", "a.tmp", 0, b""), ("w", "a.tmp", 0, b"new"), ("s", "a.tmp", 0, b""), ("r", "a.tmp", 0, b"/d/a")]
    assert disk(*calls).cut() == {}
    made = disk(*calls, ("s", "", 0, b""))
    assert made.cut() == {"/d/a": b"new"}
    made.play(Call("u", "/d/a", 0, b""))
    assert made.cut() == {"/d/a": b"new"}
    assert made.now() == {}


def test_truncation() -> None:
    calls = [("c", "a", 0, b""), ("w", "a", 0, b"hello"), ("t", "a", 2, b""), ("w", "a", 4, b"!")]
    assert disk(*calls).now() == {"/d/a": b"he\0\0!"}


def test_the_journal_says_what_a_process_did(tmp_path: Path) -> None:
    folder, journal, image = tmp_path / "origin", tmp_path / "journal", tmp_path / "image"
    folder.mkdir()
    with launcher() as jobs:
        if not jobs.shimmed:
            pytest.skip("needs a C compiler")
        arguments = {"folder": str(folder / "store"), "seed": 3, "steps": ["add", "edit", "compact"], "indexed": False}
        assert jobs.run("follow script", arguments, Arming(str(folder), str(journal))).code == 0
    made = Disk(str(folder))
    for call in read_journal(journal):
        made.play(call)
    write_image(made.now(), str(folder), image)
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.endswith("-shm"):
            assert (image / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
