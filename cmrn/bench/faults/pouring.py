"""A file poured into a store by `populate`, cut short and begun again: the end is that of one run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.made import DIM, Entry, fingerprint, make_entry, vectors
from cmrn.bench.faults.workload import open_index
from cmrn.memory.store import MemoryStore

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder, Pending

__all__ = ["StandIn", "expected", "pour", "write_lines"]

BATCH = 12
LINES = 70
BAD = ('{"id": "x"}', "not JSON", '{"text": 5}', '{"text": ""}', '{"text": "a", "text": "b"}')


class StandIn:
    """Takes the place of an encoder: the vector of each text is a function of it, and nothing has to be loaded."""

    @contextmanager
    def running(self) -> Iterator[Callable[[Sequence[str]], Pending]]:
        """What turns texts into vectors, as `Embedder.running` gives it."""
        from cmrn.memory.embedding import Pending

        yield lambda texts: Pending(vectors(texts, DIM), ())


def write_lines(path: Path, seed: int) -> None:
    """A file of records, every eighth line no record, and some records twice."""
    draw = random.Random(seed)
    lines = []
    for number, (identity, _, source, text, meta) in enumerate(_entries(seed)):
        lines.append(json.dumps({"id": identity, "source": source, "text": text, **cast(dict[str, Any], meta)}))
        if number % 8 == 5:
            lines.append(BAD[number // 8 % len(BAD)])
        if number % 16 == 15:
            lines.append(draw.choice(lines))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def expected(seed: int) -> list[Entry]:
    """The records that the file holds, in the order in which they first come."""
    return [[identity, "default", source, text, meta] for identity, _, source, text, meta in _entries(seed)]


def pour(events: Events, folder: str, file: str, indexed: bool) -> dict[str, Any]:
    """Pour a file into the store in `folder`, made if there is none, and write a snapshot of its index."""
    from cmrn.memory.populate import PopulateOptions, populate

    with MemoryStore.ensure(Path(folder), fingerprint(DIM)) as store:
        options = PopulateOptions(batch_size=BATCH)
        result = populate(store, [Path(file)], cast("Embedder", StandIn()), options,
                          lambda moment: events.write({"committed": moment.committed}))  # fmt: skip
        if indexed:
            open_index(store).snapshot()
    return {"rejected": result.rejected}


def _entries(seed: int) -> list[Entry]:
    draw = random.Random(seed)
    return [make_entry(draw, number) for number in range(LINES)]
