"""Memory outside the recurrent state: the bounded working memory and its read, and the durable store of texts.

Names are loaded when first used, so that a command on the store costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cmrn.memory.attention import MemoryAttention
    from cmrn.memory.entry import NewRecord, Record
    from cmrn.memory.episodic import EpisodicMemory
    from cmrn.memory.index import VectorIndex
    from cmrn.memory.persistent import PersistentMemory
    from cmrn.memory.populate import load_knowledge_base
    from cmrn.memory.store import MemoryStore

__all__ = [
    "EpisodicMemory",
    "MemoryAttention",
    "MemoryStore",
    "NewRecord",
    "PersistentMemory",
    "Record",
    "VectorIndex",
    "load_knowledge_base",
]

_HOMES: Final = {
    "EpisodicMemory": "cmrn.memory.episodic",
    "MemoryAttention": "cmrn.memory.attention",
    "MemoryStore": "cmrn.memory.store",
    "NewRecord": "cmrn.memory.entry",
    "PersistentMemory": "cmrn.memory.persistent",
    "Record": "cmrn.memory.entry",
    "VectorIndex": "cmrn.memory.index",
    "load_knowledge_base": "cmrn.memory.populate",
}


def __getattr__(name: str) -> object:
    """Load an exported name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
