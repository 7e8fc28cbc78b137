from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cmrn.errors import CheckpointError
from cmrn.memory.entry import Fingerprint
from cmrn.memory.partition import Partition, add_partition, read_partition, take_partition
from cmrn.memory.store import MemoryStore
from tests.memory.stores import DIM, filled, new, vector


def taken(folder: Path) -> Partition:
    with filled(folder, 3) as store:
        store.add([new(n, f"note {n}", id=str(n), namespace="law", trust=0.5) for n in (8, 9)])
        store.delete([4])
        return take_partition(store, "law")


def written(tmp_path: Path, partition: Partition) -> tuple[Path, Path]:
    lines, vectors = tmp_path / "m.jsonl", tmp_path / "m.safetensors"
    lines.write_bytes(partition.lines)
    vectors.write_bytes(partition.vectors)
    return lines, vectors


def test_records_and_vectors_come_back_under_the_name_given(tmp_path: Path) -> None:
    partition = taken(tmp_path / "a")
    assert partition.records == 1
    fingerprint, records = read_partition(*written(tmp_path, partition), "statutes")
    for _ in range(2):
        result = add_partition(tmp_path / "b", fingerprint, records)
    assert (result.added, result.unchanged) == (0, 1)
    with MemoryStore.open(tmp_path / "b") as store:
        (found,) = store.find("9", "statutes")
        assert (found.text, found.trust) == ("note 9", 0.5)
        np.testing.assert_array_equal(store.vectors([found.record])[0], vector(9))


def test_an_empty_namespace_is_a_partition_of_none(tmp_path: Path) -> None:
    with filled(tmp_path / "a", 2) as store:
        partition = take_partition(store, "nobody's")
    assert read_partition(*written(tmp_path, partition), "x")[1] == []


def test_the_probes_go_along(tmp_path: Path) -> None:
    print_ = Fingerprint("test", dim=DIM, probes=(("one", vector(1)), ("two", vector(2).tobytes())))
    with MemoryStore.create(tmp_path / "a", print_) as store:
        partition = take_partition(store, "x")
    fingerprint, _ = read_partition(*written(tmp_path, partition), "x")
    assert [text for text, _ in fingerprint.probes] == ["one", "two"]
    np.testing.assert_array_equal(fingerprint.probes[1][1], vector(2))


@pytest.mark.parametrize("change", ["fewer lines", "no record", "no vectors", "another width"])
def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, change: str) -> None:
    partition = taken(tmp_path / "a")
    lines, vectors = written(tmp_path, partition)
    if change == "fewer lines":
        lines.write_bytes(b"")
    elif change == "no record":
        lines.write_bytes(b'{"text": "x"}\n')
    elif change == "no vectors":
        vectors.write_bytes(b"\0" * 64)
    else:
        vectors.write_bytes(partition.vectors.replace(b'\\"dim\\": 8', b'\\"dim\\": 9'))
        assert vectors.read_bytes() != partition.vectors
    with pytest.raises(CheckpointError):
        read_partition(lines, vectors, "law")


def test_a_record_that_cannot_be_one_is_refused_and_nothing_is_added(tmp_path: Path) -> None:
    fingerprint, records = read_partition(*written(tmp_path, taken(tmp_path / "a")), "law")
    with filled(tmp_path / "b", 1):
        pass
    with pytest.raises(CheckpointError, match="no record"):
        add_partition(tmp_path / "b", fingerprint, [*records, new(3, trust=7.0)])
    with MemoryStore.open(tmp_path / "b") as store:
        assert store.stats().records == 1
