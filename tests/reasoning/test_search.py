"""The search finds a model where there is one, conflicts and corrections are minimal, and strata are in order."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.bench.random_theories import X, Y, literal
from cmrn.reasoning.conflict import find_conflicts, minimise
from cmrn.reasoning.ground import Clause, Source, ground
from cmrn.reasoning.limits import Clock, Limits, OutOfStepsError
from cmrn.reasoning.search import Search
from cmrn.reasoning.strata import components, possible_rules, stratify
from cmrn.reasoning.theory import Constant, ForAll, Formula, Implies, Literal, Or

SIZE = 7


def clauses_of(wanted: list[tuple[int, ...]], limits: Limits | None = None) -> tuple[list[Clause], Clock]:
    clock = Clock(limits or Limits())
    names = [literal(f"p{number}") for number in range(1, SIZE + 1)]
    sources = [Source("zero", Or((name, name.negated()))) for name in names]
    for number, clause in enumerate(wanted):
        parts: tuple[Literal, ...] = tuple(names[abs(c) - 1] if c > 0 else names[abs(c) - 1].negated() for c in clause)
        sources.append(Source(str(number), Or(parts)))
    return ground(sources, (), clock).clauses, clock


def brute(clauses: list[tuple[int, ...]]) -> bool:
    rows = itertools.product((True, False), repeat=SIZE)
    return any(all(any(row[abs(c) - 1] == (c > 0) for c in clause) for clause in clauses) for row in rows)


def random_clauses(seed: int) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    count = draw.randint(4, 34)
    return [
        tuple(draw.choice((1, -1)) * v for v in draw.sample(range(1, SIZE + 1), draw.choice((2, 3, 3))))
        for _ in range(count)
    ]


@given(st.integers(0, 10**6))
def test_search_decides_like_the_truth_table(seed: int) -> None:
    wanted = random_clauses(seed)
    clauses, clock = clauses_of(wanted)
    search = Search(clauses, clock)
    conflict = search.solve()
    assert (conflict is None) == brute(wanted)
    if conflict is None:
        assert all(any(search.holds(literal) for literal in clause.literals) for clause in clauses)
    else:
        assert not conflict.open
        assert not brute([wanted[int(name)] for name in conflict.origins()])


@given(st.integers(0, 10**6))
def test_conflict_sets_and_corrections_are_minimal(seed: int) -> None:
    wanted = random_clauses(seed)
    names = frozenset(map(str, range(len(wanted))))

    def core(ids: frozenset[str]) -> frozenset[str] | None:
        clauses, clock = clauses_of([wanted[int(name)] for name in sorted(ids)])
        conflict = Search(clauses, clock).solve()
        return None if conflict is None else frozenset(sorted(ids)[int(name)] for name in conflict.origins())

    if core(names) is None:
        return
    smallest = minimise(names, core)
    assert core(smallest) is not None
    assert all(core(smallest - {name}) is None for name in smallest)
    few = frozenset(sorted(smallest)[:6]) | frozenset(sorted(names - smallest)[:4])
    for correction in find_conflicts(few, core).corrections:
        assert core(few - correction) is None
        assert all(core(few - (correction - {name})) is not None for name in correction)


def test_steps_of_search_are_limited() -> None:
    wanted = [
        tuple(sign * v for sign, v in zip(signs, (1, 2, 3), strict=True))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    clauses, clock = clauses_of(wanted, Limits(steps=1))
    with pytest.raises(OutOfStepsError, match="within 1 steps"):
        Search(clauses, clock).solve()


def test_variables_range_over_their_sort_only() -> None:
    ann, red = Constant("ann"), Constant("red")
    has: Formula = ForAll((X, Y), Implies(literal("has", X, Y), literal("seen", Y)))
    grounding = ground([Source("P1", literal("has", ann, red)), Source("P2", has)], (), Clock(Limits()))
    assert [clause.values for clause in grounding.clauses] == [(), (ann, red)]


def test_levels_stand_above_what_they_find_absent() -> None:
    rules = [((), 1), ((-1,), 2), ((-2, 1), 3), ((3,), 4), ((4,), 3)]
    levels = stratify(rules)
    assert isinstance(levels, dict)
    assert levels[1] < levels[2] < levels[3] == levels[4]
    assert stratify([((-1,), 2), ((2,), 1)]) == [-1, 2, 1]
    assert possible_rules([((1,), 2), ((2,), 1), ((), 3), ((3, -1), 4)]) == [2, 3]


@given(st.dictionaries(st.integers(0, 6), st.lists(st.integers(0, 6), max_size=4), max_size=7))
def test_components_are_mutual_reach(edges: dict[int, list[int]]) -> None:
    after = {node: edges.get(node, []) for node in range(7)}
    reach = {node: {node} for node in after}
    for _ in after:
        reach = {node: found.union(*(set(after[other]) for other in found)) for node, found in reach.items()}
    found = components(after)
    assert sorted(node for component in found for node in component) == sorted(after)
    for component in found:
        assert {n for n in after if n in reach[component[0]] and component[0] in reach[n]} == set(component)
    place = {node: number for number, component in enumerate(found) for node in component}
    assert all(place[follower] <= place[node] for node in after for follower in after[node])
