"""What long-term memory loses when every entry is kept as a code: each becomes one as soon as it is written."""

from __future__ import annotations

from cmrn.memory.compression import EntryCodec
from cmrn.model import CMRN

__all__ = ["RoundTrip"]

FITTED_ON = 2048
"""Entries of a block that its codec is fitted on, the first ones written; before that nothing is coded."""


class RoundTrip:
    """Called after each piece of a text, it puts in the place of entries what their codes say.

    For texts of fewer tokens than the memory holds: entries then stay in the slots they were written to.
    """

    def __init__(self) -> None:
        self._codecs: dict[int, EntryCodec] = {}
        self._done: dict[int, int] = {}
        self._plain_bytes = 0

    def __call__(self, model: CMRN) -> None:
        """Code what was written since the last call."""
        assert model.episodic is not None
        for index, block in model.episodic.blocks.items():
            start, stop = self._done.get(index, 0), block.count
            if stop < start:
                start = 0
            if block.held is None or (index not in self._codecs and stop < FITTED_ON):
                continue
            held = block.held.part(slice(start, stop))
            keys_NHC, values_NHC = (x.transpose(1, 2).flatten(0, 1) for x in (held.keys_BHNC, held.values_BHNC))
            if index not in self._codecs:
                self._codecs[index] = EntryCodec.fit(keys_NHC, values_NHC)
            codec = self._codecs[index]
            coded = codec.decode(codec.encode(keys_NHC, values_NHC), keys_NHC.dtype)
            for old, new_NHC in zip((held.keys_BHNC, held.values_BHNC), coded, strict=True):
                old.copy_(new_NHC.unflatten(0, (len(old), -1)).transpose(1, 2))
            self._done[index] = stop
            self._plain_bytes = 2 * keys_NHC[0].nbytes

    @property
    def bytes(self) -> tuple[int, int]:
        """(of an entry of one block as a code, of it as it is kept on the device); 0 before any was coded."""
        codec = next(iter(self._codecs.values()), None)
        return (0 if codec is None else codec.code_bytes * codec.heads, self._plain_bytes)
