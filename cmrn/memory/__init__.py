"""Memory outside the recurrent state: so far the bounded working memory and its read."""

from cmrn.memory.attention import MemoryAttention

__all__ = ["MemoryAttention"]
