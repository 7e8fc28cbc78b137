"""The texts of a durable store as a model recalls them: by meaning, for reading alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cmrn.errors import CheckpointError, UsageError
from cmrn.memory.entry import Hit
from cmrn.memory.index import VectorIndex
from cmrn.memory.schema import DATABASE
from cmrn.memory.store import MemoryStore

if TYPE_CHECKING:
    from cmrn.memory.embedding import Embedder

__all__ = ["Passages"]


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class Passages:
    """A store opened for reading, its index and its encoder; a context manager. Another process may write to it.

    embedder: by default the one that made the store's vectors, loaded when it is first needed. read: the texts, by
    record, that a model has read since it last forgot everything.

    Raises:
        CheckpointError: the folder is no store, or a damaged one.
    """

    def __init__(self, folder: Path, embedder: Embedder | None = None, *, warn: Callable[[str], None] = _warn) -> None:
        self.folder = folder
        self.read: dict[int, str] = {}
        self._embedder, self._warn = embedder, warn
        self._store = MemoryStore.open(folder, warn=warn)
        self._index: VectorIndex | None = None
        self._checked = False

    def namespaces(self) -> dict[str, int]:
        """How many records each namespace holds."""
        with self._present():
            return self._store.stats().namespaces

    def recall(self, text: str, k: int = 4, namespaces: Collection[str] | None = None) -> list[Hit]:
        """The at most k stored texts nearest in meaning to a text, best first; namespaces: where given, of these alone.

        Raises:
            UsageError: k below 1.
            CheckpointError: the store's vectors are of another encoder, or it was deleted while in use.
        """
        if k < 1:
            raise UsageError(f"k must be 1 or more, and is {k}")
        with self._present():
            if not any(self._store.stats().namespaces.values()):
                return []
            embedder = self._encoder()
            if self._index is None:
                self._index = VectorIndex.open(self._store, warn=self._warn, build="never")
            return self._index.search(embedder.embed([text]), k, namespaces=namespaces)[0]

    def texts(self, records: Collection[int]) -> dict[int, str]:
        """The texts of records, by number; those not stored are left out."""
        with self._present():
            return {each.record: each.text for each in self._store.get(records)}

    def close(self) -> None:
        """Close the store; closing twice does nothing."""
        if self._index is not None:
            self._index.close()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encoder(self) -> Embedder:
        if self._embedder is None:
            from cmrn.memory.embedding import Embedder

            self._embedder = Embedder(self._store.fingerprint.embedder)
        if not self._checked:
            self._store.check_fingerprint(self._embedder.fingerprint())
            self._checked = True
        return self._embedder

    @contextmanager
    def _present(self) -> Iterator[None]:
        """Say plainly where a store that is in use is gone."""
        if not (self.folder / DATABASE).exists():
            raise CheckpointError(
                "was deleted while it was in use",
                where=str(self.folder),
                hint="cmrn memory populate FILE makes a new one",
            )
        yield
