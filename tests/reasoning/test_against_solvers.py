"""Random theories: our answers are z3's and clingo's, every step checks, every conflict set is minimal."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrn.reasoning.formulas import constants
from cmrn.reasoning.limits import UnstratifiableError
from cmrn.reasoning.solve import solve, verify
from cmrn.reasoning.theory import ForAll, Implies
from tests.reasoning.oracles import classical_answer, closed_models, satisfiable
from tests.reasoning.random_theories import Maker, ask

QUICK, MANY = 150, 50_000


def check_open(seed: int) -> None:
    maker = Maker(seed)
    theory = maker.open_theory(maker.random.randint(2, 7))
    query = maker.query()
    answer = solve(theory, ask(query))
    verify(theory, ask(query), answer)
    formulas = {s.id: s.formula for s in theory.statements}
    assumed = isinstance(query, ForAll) and isinstance(query.part, Implies)
    background = [statement.formula for statement in answer.assumed] if assumed else []
    if not background:
        assert answer.answer == classical_answer(list(formulas.values()), query), seed
    for contradiction in answer.contradictions:
        members = contradiction.statements
        assert not satisfiable([*(formulas[name] for name in members), *background]), seed
        for spared in members:
            assert satisfiable([*(formulas[name] for name in members if name != spared), *background]), seed
    for revision in answer.revisions:
        changed = formulas | dict(revision.changes)
        assert satisfiable([*(f for f in changed.values() if f is not None), *background]), seed


def check_closed(seed: int) -> bool:
    """Whether the theory could be ordered into strata."""
    maker = Maker(seed)
    theory = maker.closed_theory(maker.random.randint(2, 9))
    query = maker.literal(maker.names)
    individuals = {c for s in theory.statements for c in constants(s.formula)} | set(constants(query))
    models = closed_models(theory, sorted(individuals, key=lambda constant: constant.name))
    try:
        answer = solve(theory, ask(query))
    except UnstratifiableError:
        return False
    verify(theory, ask(query), answer)
    assert len(models) == 1, seed
    atom = f"{query.atom.predicate}({','.join(term.name for term in query.atom.arguments)})"
    favour, against = atom in models[0], f"n_{atom}" in models[0] or atom not in models[0]
    if not query.positive:
        favour, against = against, favour
    assert answer.answer == {(1, 0): "true", (0, 1): "false", (1, 1): "both"}[favour, against], seed
    return True


def test_open_world_agrees_with_z3() -> None:
    for seed in range(QUICK):
        check_open(seed)


def test_closed_world_agrees_with_clingo() -> None:
    assert sum(check_closed(seed) for seed in range(2 * QUICK)) > QUICK


@given(st.integers(min_value=10**6, max_value=10**9))
@settings(max_examples=25)
def test_any_seed(seed: int) -> None:
    check_open(seed)
    check_closed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, MANY, 5_000))
def test_a_hundred_thousand_theories(start: int) -> None:
    for seed in itertools.islice(itertools.count(10**7 + start), 5_000):
        check_open(seed)
        check_closed(seed)
