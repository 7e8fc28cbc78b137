"""Triton's interpreter, repaired where a newer numpy broke it."""

from __future__ import annotations

from typing import Any

__all__ = ["repair"]


def repair() -> None:
    """Let a loop's bounds be computed: numpy 2.4 no longer turns the interpreter's arrays of one element into ints.

    Seen with Triton 3.6. Nothing is changed where Triton is absent or the interpreter is built otherwise.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None or getattr(patch, "repaired", False):
        return

    def repaired(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    repaired.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = repaired
