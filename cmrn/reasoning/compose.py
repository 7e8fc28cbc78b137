"""Relations composed along a path, by a table learned from short paths: a father's mother is a grandmother."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Composed", "Table", "compose", "learn_compositions"]

Table = Mapping[tuple[str, str], Mapping[str, float]]
"""For two relations that follow one another, the relations they may come to, each with its degree in (0, 1]."""


@dataclass(frozen=True)
class Composed:
    """The relation between a path's ends, its degree in (0, 1], and the compositions used, each from two to one."""

    relation: str
    degree: float
    steps: tuple[tuple[str, str, str], ...]


def learn_compositions(paths: Iterable[tuple[Sequence[str], str]]) -> Table:
    """The table that paths of relations with the relation of their ends show.

    Paths of two say it outright. A longer path says it of the one pair it comes down to by what is known already, and
    so tells new pairs; that is repeated until nothing is new. A degree is a pair's share of votes.

    >>> learn_compositions([(("mother", "son"), "brother")])[("mother", "son")]
    {'brother': 1.0}
    """
    known = [(tuple(path), end) for path, end in paths]
    votes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for path, end in known:
        if len(path) == 2:
            votes[path[0], path[1]][end] += 1
    table = _shares(votes)
    while True:
        fresh: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for path, end in known:
            for pair in _last_pairs(path, table):
                if pair not in table:
                    fresh[pair][end] += 1
        if not fresh:
            return table
        table = {**table, **_shares(fresh)}


def _shares(votes: Mapping[tuple[str, str], Counter[str]]) -> dict[tuple[str, str], dict[str, float]]:
    return {pair: {name: n / counts.total() for name, n in counts.most_common()} for pair, counts in votes.items()}


def _last_pairs(path: Sequence[str], table: Table) -> set[tuple[str, str]]:
    """The pairs that a path of three or more comes down to, where both halves can be composed."""
    if len(path) < 3:
        return set()
    halves = ((compose(path[:cut], table), compose(path[cut:], table)) for cut in range(1, len(path)))
    return {(left.relation, right.relation) for left, right in halves if left and right}


def compose(path: Sequence[str], table: Table) -> Composed | None:
    """What a path comes to: of all ways to compose it two by two, the relation with the most support.

    A way's degree is the least of its compositions'; a relation's support is the sum over the places where the last
    composition may cut the path. None where no way leads to the end.
    """
    size = len(path)
    best: dict[tuple[int, int], dict[str, Composed]] = {
        (at, at + 1): {name: Composed(name, 1.0, ())} for at, name in enumerate(path)
    }
    support: Counter[str] = Counter()
    for length in range(2, size + 1):
        for start in range(size - length + 1):
            cell: dict[str, Composed] = {}
            support = Counter()
            for cut in range(start + 1, start + length):
                for found in _joined(best[start, cut], best[cut, start + length], table):
                    support[found.relation] += found.degree  # type: ignore[assignment]
                    if found.relation not in cell or found.degree > cell[found.relation].degree:
                        cell[found.relation] = found
            best[start, start + length] = cell
    ends = best[0, size]
    if not ends:
        return None
    return max(ends.values(), key=lambda one: (support[one.relation], one.degree, one.relation))


def _joined(left: Mapping[str, Composed], right: Mapping[str, Composed], table: Table) -> Iterable[Composed]:
    for a in left.values():
        for b in right.values():
            for name, degree in table.get((a.relation, b.relation), {}).items():
                step = (a.relation, b.relation, name)
                yield Composed(name, min(a.degree, b.degree, degree), (*a.steps, *b.steps, step))
