from __future__ import annotations

from pathlib import Path

import pytest

from cmrn.memory.rows import prepare, row_of
from cmrn.memory.store import MemoryStore
from tests.memory.stores import DIM, filled, new, run_sql


@pytest.mark.parametrize(
    ("statement", "where", "what"),
    [
        ("UPDATE rec SET trust = 0.5 WHERE record = 2", "record 2", "checksum"),
        ("UPDATE rec SET id = 'i' WHERE record = 2", "record 2", "checksum"),
        ("UPDATE rec SET source = origin, origin = source WHERE record = 2", "record 2", "checksum"),
        ("UPDATE rec SET text = 17 WHERE record = 2", "record 2", "checksum"),
        ("UPDATE rec SET text = x'ff' WHERE record = 2", "record 2", "checksum"),
        ("UPDATE rec SET record = 9 WHERE record = 5", "record 9", "checksum"),
        ("DELETE FROM rec WHERE record = 2", "namespace 'default'", "counts 5 records where there are 4"),
        ("UPDATE tally SET namespace = 'n'", "namespace 'default'", "counts 0 records where there are 5"),
        ("DELETE FROM use WHERE record = 2", "table use", "lacks 1"),
        ("INSERT INTO use VALUES (77, 1)", "table use", "1 too many"),
        ("DELETE FROM oplog", "table oplog", "not as it was written"),
        ("UPDATE oplog SET op = 'delete'", "table oplog", "not as it was written"),
    ],
)
def test_every_disagreement_is_named(statement: str, where: str, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    filled(folder).close()
    run_sql(folder, statement)
    with MemoryStore.open(folder, warn=lambda _: None) as store:
        found = [problem.what for problem in store.verify() if problem.where == where]
    assert len(found) == 1
    assert what in found[0]


def test_a_sound_row_under_the_key_of_another_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    with filled(folder) as store, store.handle.writing() as connection:
        entry = prepare([new(8)], DIM)[0]
        entry = entry._replace(key=bytes(16), parts=(bytes(16), *entry.parts[1:]))
        row = row_of(2, entry)
        connection.execute(
            "UPDATE rec SET key = ?, crc = ?, vec = ?, text = ? WHERE record = 2", (*row[1:5:2], row[4], row[10])
        )
    with MemoryStore.open(folder) as store:
        assert store.get([2])[0].text == "text 8"
        assert [(problem.where, problem.what) for problem in store.verify()] == [
            ("record 2", "has the key of another record")
        ]


def test_verification_lets_others_write_meanwhile(tmp_path: Path) -> None:
    with filled(tmp_path / "memory") as store, store.handle.another_reader() as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM rec").fetchone()[0] == 5
        store.add([new(9)])
        assert reader.execute("SELECT count(*) FROM rec").fetchone()[0] == 5
        assert store.verify() == []
        reader.execute("ROLLBACK")
