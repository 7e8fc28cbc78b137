"""The checker accepts what follows and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrn.bench.random_theories import Maker, X, Y, ask, literal
from cmrn.reasoning.closed import Closed
from cmrn.reasoning.proof import ProofError, Step, check, entails
from cmrn.reasoning.solve import given as given_of
from cmrn.reasoning.solve import solve, verify
from cmrn.reasoning.theory import And, Constant, Exists, ForAll, Formula, Iff, Implies, Literal, Not, Or, Xor

ANN, BOB = Constant("ann"), Constant("bob")
A, B = literal("a", ANN), literal("b", ANN)
ALL = ForAll((X,), Implies(literal("a", X), literal("b", X)))
GIVEN: dict[str, tuple[Formula, float]] = {"P1": (A, 1.0), "P2": (ALL, 0.5), "P3": (Exists((X,), literal("c", X)), 1.0)}


def step(name: str, operation: str, premises: tuple[str, ...], formula: Formula, **more: object) -> Step:
    return Step(name, operation, premises, "", more.pop("degree", 1.0), formula, **more)  # type: ignore[arg-type]


def case(kind: str, other: str, name: Constant) -> Formula:
    return Implies(literal(kind, name), literal(other, name))


def test_a_good_proof_passes() -> None:
    check([step("S1", "modus ponens", ("P2", "P1"), B, instance=case("a", "b", ANN), degree=0.5)], GIVEN)
    some = literal("c", Constant("some c"))
    check([step("S1", "instance", ("P3",), some, instance=some), step("S2", "example", ("S1",), GIVEN["P3"][0])], GIVEN)


BAD = {
    "unknown premise": [step("S1", "given", ("P9",), A)],
    "itself": [step("S1", "given", ("S1",), A)],
    "a later step": [step("S1", "given", ("S2",), A), step("S2", "given", ("P1",), A)],
    "does not follow": [step("S1", "given", ("P1",), B)],
    "degree too high": [step("S1", "modus ponens", ("P2", "P1"), B, instance=case("a", "b", ANN), degree=0.6)],
    "wrong instance": [step("S1", "modus ponens", ("P2", "P1"), B, instance=case("a", "c", ANN), degree=0.5)],
    "two individuals": [
        step("S1", "x", ("P2", "P1"), literal("b", BOB), instance=Implies(A, literal("b", BOB)), degree=0.5)
    ],
    "known witness": [step("S1", "instance", ("P3",), literal("c", ANN), instance=literal("c", ANN))],
    "left supposition": [step("S1", "suppose", (), B)],
    "no contradiction": [step("S1", "suppose", (), B), step("S2", "contradiction", ("S1", "P1"), B.negated())],
    "wrong discharge": [step("S1", "suppose", (), A.negated()), step("S2", "contradiction", ("S1", "P1"), B)],
    "discharge of a premise": [step("S1", "contradiction", ("P1",), A.negated())],
    "absence in an open world": [step("S1", "closed world", (), B.negated())],
    "example of all": [step("S1", "example", ("P1",), ForAll((X,), literal("a", X)))],
    "cases in an open world": [step("S1", "all cases", ("P1",), ForAll((X,), literal("a", X)))],
}


@pytest.mark.parametrize("steps", BAD.values(), ids=BAD.keys())
def test_a_bad_proof_is_refused(steps: list[Step]) -> None:
    with pytest.raises(ProofError):
        check(steps, GIVEN, [A, B])


def test_a_witness_serves_one_existential() -> None:
    given = {"P1": (Exists((X,), literal("c", X)), 1.0), "P2": (Exists((X,), literal("d", X)), 1.0)}
    one, two = literal("c", Constant("w")), literal("d", Constant("w"))
    steps = [step("S1", "instance", ("P1",), one, instance=one), step("S2", "instance", ("P2",), two, instance=two)]
    check(steps[:1], given)
    with pytest.raises(ProofError, match="S2"):
        check(steps, given)


def test_a_witness_depends_on_the_universals_before_it() -> None:
    given: dict[str, tuple[Formula, float]] = {"P1": (ForAll((X,), Exists((Y,), literal("likes", X, Y))), 1.0)}
    liked = [literal("likes", name, Constant("w")) for name in (ANN, BOB)]
    with pytest.raises(ProofError, match="S2"):
        check([step(f"S{i}", "instance", ("P1",), one, instance=one) for i, one in enumerate(liked, 1)], given)


def test_absence_is_what_the_closed_world_lacks() -> None:
    closed = Closed((ANN, BOB), frozenset((A.atom,)))
    check([step("S1", "closed world", (), B.negated())], GIVEN, closed=closed)
    with pytest.raises(ProofError):
        check([step("S1", "closed world", (), A.negated())], GIVEN, closed=closed)
    with pytest.raises(ProofError):
        check([step("S1", "all cases", ("P1",), ForAll((X,), literal("a", X)))], GIVEN, closed=closed)


formulas = st.recursive(
    st.builds(lambda name, positive: literal(name, ANN, positive=positive), st.sampled_from("abc"), st.booleans()),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(Implies, inner, inner),
        st.builds(Iff, inner, inner),
        *(st.lists(inner, max_size=3).map(tuple).map(kind) for kind in (And, Or, Xor)),
    ),
    max_leaves=6,
)


def truth(formula: Formula, row: dict[str, bool]) -> bool:
    match formula:
        case Literal(atom, positive):
            return row[atom.predicate] == positive
        case And(parts):
            return all(truth(part, row) for part in parts)
        case Or(parts):
            return any(truth(part, row) for part in parts)
        case Xor(parts):
            return sum(truth(part, row) for part in parts) == 1
        case Not(part):
            return not truth(part, row)
        case Implies(body, head):
            return not truth(body, row) or truth(head, row)
        case Iff(left, right):
            return truth(left, row) == truth(right, row)
    raise AssertionError(formula)


@given(st.lists(formulas, max_size=3), formulas)
def test_entailment_is_the_truth_table(premises: list[Formula], conclusion: Formula) -> None:
    rows = [dict(zip("abc", (i & 1 == 1, i & 2 == 2, i & 4 == 4), strict=True)) for i in range(8)]
    expected = all(truth(conclusion, row) for row in rows if all(truth(p, row) for p in premises))
    assert entails(premises, conclusion) == expected


@given(st.integers(0, 10**6))
def test_a_conclusion_turned_round_is_refused(seed: int) -> None:
    maker = Maker(seed)
    theory = maker.open_theory(4)
    query = maker.literal(maker.names)
    answer = solve(theory, ask(query))
    if answer.status != "ok" or answer.answer not in ("true", "false"):
        return
    last = answer.steps[-1]
    turned = replace(last, formula=last.formula.negated()) if isinstance(last.formula, Literal) else last
    assert turned != last
    with pytest.raises(ProofError):
        check((*answer.steps[:-1], turned), given_of(theory, answer), [query])


def test_an_answer_must_be_proved() -> None:
    maker = Maker(0)
    theory = maker.open_theory(0)
    answer = solve(theory, ask(A))
    with pytest.raises(ProofError, match="no step without suppositions says that ann is an a"):
        verify(theory, ask(A), replace(answer, answer="true"))
    supposed = replace(answer, answer="true", steps=(step("S1", "suppose", (), A),))
    with pytest.raises(ProofError):
        verify(theory, ask(A), supposed)
