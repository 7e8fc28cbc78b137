"""Which premises cannot hold together: every minimal conflict set, and every minimal set whose removal leaves none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["Conflicts", "find_conflicts", "minimise"]

MOST_CONFLICTS = 64
Core = Callable[[frozenset[str]], frozenset[str] | None]


@dataclass(frozen=True)
class Conflicts:
    """Minimal conflict sets, and minimal corrections (what to take away); `complete` unless there were too many."""

    sets: tuple[frozenset[str], ...]
    corrections: tuple[frozenset[str], ...]
    complete: bool


def minimise(ids: Iterable[str], core: Core) -> frozenset[str]:
    """A subset that still conflicts and of which no element can be spared.

    `core(subset)` is None where a subset is consistent, else the elements of it that a refutation used.
    """
    current = core(frozenset(ids))
    assert current is not None, "only what conflicts can be minimised"
    changed = True
    while changed:
        changed = False
        for candidate in sorted(current, key=_order, reverse=True):
            smaller = core(current - {candidate}) if candidate in current else None
            if smaller is not None:
                current, changed = smaller, True
    return current


def find_conflicts(ids: Iterable[str], core: Core) -> Conflicts:
    """All minimal conflict sets and corrections by a hitting-set tree (Reiter 1987), smallest corrections first."""
    everything = frozenset(ids)
    sets: list[frozenset[str]] = []
    corrections: list[frozenset[str]] = []
    frontier, seen = [frozenset[str]()], {frozenset[str]()}
    while frontier and len(sets) <= MOST_CONFLICTS and len(corrections) <= MOST_CONFLICTS:
        removed = frontier.pop(0)
        if any(correction <= removed for correction in corrections):
            continue
        known = next((conflict for conflict in sets if not conflict & removed), None)
        if known is None:
            if core(everything - removed) is None:
                corrections.append(removed)
                continue
            known = minimise(everything - removed, core)
            sets.append(known)
        for element in sorted(known, key=_order):
            further = removed | {element}
            if further not in seen:
                seen.add(further)
                frontier.append(further)
    return Conflicts(tuple(sets), tuple(corrections), not frontier)


def _order(name: str) -> tuple[int, str]:
    return len(name), name
