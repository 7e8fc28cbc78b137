"""Questions of every kind, answered with proofs that check."""

from __future__ import annotations

import itertools

import pytest

from cmrn.bench.random_theories import X, Y, ask, literal, statement, theory
from cmrn.errors import DataError
from cmrn.reasoning.limits import ExplosionError, Limits, OutOfTimeError, UnstratifiableError
from cmrn.reasoning.proof import Answer
from cmrn.reasoning.solve import solve, verify
from cmrn.reasoning.theory import (
    And,
    Constant,
    Exists,
    ForAll,
    Formula,
    Iff,
    Implies,
    Literal,
    Not,
    Or,
    Question,
    Statement,
    Theory,
    Variable,
    Xor,
)

Z = Variable("z")
ANN, BOB, TWEETY, PINGU = map(Constant, ("ann", "bob", "Tweety", "Pingu"))


def rule(body: Formula, head: Formula) -> Formula:
    return ForAll((X,), Implies(body, head))


def says(kind: str, positive: bool = True) -> Literal:
    return literal(kind, X, positive=positive)


BIRDS = (
    rule(says("bird"), says("can fly")),
    rule(says("penguin"), says("bird")),
    rule(says("penguin"), says("can fly", False)),
)
BIRD_THEORY = Theory(
    (
        statement(1, BIRDS[0], "all birds can fly"),
        statement(2, BIRDS[1], "penguins are birds"),
        statement(3, BIRDS[2], "penguins cannot fly"),
    ),
    "open",
)


def answer_of(given: Theory, question: Question | Formula, **options: bool) -> Answer:
    question = question if isinstance(question, Question) else ask(question)
    answer = solve(given, question, **options)
    verify(given, question, answer)
    return answer


def test_the_penguin_premise_cannot_hold() -> None:
    answer = answer_of(BIRD_THEORY, Question("meta", "what of the first?", 0, 1, None, about="P1"))
    assert (answer.kind, answer.answer, answer.status) == ("meta", "false", "inconsistent")
    assert answer.assumptions == ("some penguin exists",)
    assert [set(c.statements) for c in answer.contradictions] == [{"P1", "P2", "P3"}]
    assert answer.revisions[0].text == "all birds except penguins can fly"
    assert [dict(r.changes) for r in answer.revisions[1:]] == [{"P1": None}, {"P2": None}, {"P3": None}]
    assert answer.steps[-1].formula == Not(BIRDS[0])


def test_a_premise_that_others_imply_and_one_that_they_leave_open() -> None:
    chain = theory([rule(says("a"), says("b")), rule(says("b"), says("c")), rule(says("a"), says("c"))])
    assert answer_of(chain, Question("meta", "?", 0, 1, None, about="P3")).answer == "true"
    assert answer_of(chain, Question("meta", "?", 0, 1, None, about="P1")).answer == "unknown"


def test_what_follows_from_everything() -> None:
    answer = answer_of(
        theory([rule(says("cat"), says("animal")), literal("cat", ANN)]), Question("meta", "?", 0, 1, None)
    )
    assert answer.answer is None
    assert [step.formula for step in answer.steps] == [literal("animal", ANN)]


def test_a_conflict_stays_where_it_is() -> None:
    facts = (
        statement(4, literal("bird", TWEETY)),
        statement(5, literal("penguin", PINGU)),
        statement(6, literal("red", ANN)),
    )
    known = Theory(BIRD_THEORY.statements + facts, "open")
    assert answer_of(known, literal("can fly", TWEETY)).answer == "true"
    assert answer_of(known, literal("can fly", PINGU)).answer == "both"
    assert answer_of(known, literal("red", ANN)).answer == "true"
    unrelated = answer_of(known, literal("red", BOB))
    assert (unrelated.answer, unrelated.status) == ("unknown", "inconsistent")


A, B, C, ABSENT_B = literal("a", ANN), literal("b", ANN), literal("c", ANN), literal("b", ANN, positive=False)
SOME_LIKED = Exists((Y,), literal("likes", X, Y))
UNDECIDED_BY_CHAINING: dict[str, tuple[list[Formula], Formula, str]] = {
    "cases": ([Or((A, B)), rule(says("a"), says("c")), rule(says("b"), says("c"))], C, "true"),
    "xor": ([Xor((A, B)), A], B, "false"),
    "modus tollens": ([rule(says("a"), says("b")), ABSENT_B], A, "false"),
    "some": ([Exists((X,), And((says("a"), says("b"))))], Exists((X,), says("b")), "true"),
    "two somes": (
        [Exists((X,), says("a")), Exists((X,), says("b"))],
        Exists((X,), And((says("a"), says("b")))),
        "unknown",
    ),
    "iff": ([Iff(A, B), B], A, "true"),
    "all": ([rule(says("a"), says("b")), rule(says("b"), says("c"))], rule(says("a"), says("c")), "true"),
    "none": ([rule(says("a"), says("b", False))], rule(says("a"), says("b")), "false"),
    "dependent": ([rule(says("a"), SOME_LIKED), A], Exists((Y,), literal("likes", ANN, Y)), "true"),
    "order": ([ForAll((X,), SOME_LIKED)], Exists((Y,), ForAll((X,), literal("likes", X, Y))), "unknown"),
    "no absence": ([rule(says("a", False), says("b"))], B, "unknown"),
}


@pytest.mark.parametrize(
    ("premises", "query", "expected"), UNDECIDED_BY_CHAINING.values(), ids=UNDECIDED_BY_CHAINING.keys()
)
def test_what_chaining_cannot_decide(premises: list[Formula], query: Formula, expected: str) -> None:
    assert answer_of(theory(premises), query).answer == expected


def test_contraposition_is_labelled_and_can_be_turned_off() -> None:
    known = theory([rule(says("a"), says("b")), literal("b", ANN, positive=False)])
    assert [step.operation for step in answer_of(known, literal("a", ANN)).steps] == ["contraposition"]
    assert answer_of(known, literal("a", ANN), contraposition=False).answer == "unknown"
    both = theory([rule(says("a"), says("b")), literal("a", ANN), literal("b", ANN, positive=False)])
    assert answer_of(both, literal("b", ANN), contraposition=False).answer == "both"
    assert answer_of(both, literal("a", ANN), contraposition=False).answer == "true"


def test_absence_counts_under_a_closed_world_only() -> None:
    premises = [
        rule(And((says("bird"), says("odd", False))), says("can fly")),
        literal("bird", TWEETY),
        literal("bird", PINGU),
    ]
    closed = theory([*premises, literal("odd", PINGU)], "closed")
    assert answer_of(closed, literal("can fly", TWEETY)).answer == "true"
    assert answer_of(closed, literal("can fly", PINGU)).answer == "false"
    assert answer_of(closed, rule(says("bird"), says("can fly"))).answer == "false"
    assert answer_of(closed, rule(says("odd"), says("bird"))).answer == "true"
    assert answer_of(theory([*premises, literal("odd", PINGU)]), literal("can fly", TWEETY)).answer == "unknown"


def test_nobody_else_exists_in_a_closed_world() -> None:
    someone_absent = ForAll((X, Y), Implies(says("wumpus", False), literal("zumpus", Y, positive=False)))
    chased = ForAll((X, Y), Implies(And((says("yumpus"), literal("chases", Y, X))), literal("zumpus", Y)))
    premises = [chased, literal("zumpus", BOB), literal("wumpus", ANN), literal("wumpus", BOB), someone_absent]
    assert answer_of(theory(premises, "closed"), literal("zumpus", BOB)).answer == "true"


def test_a_cycle_through_absence_is_named() -> None:
    known = theory([rule(says("a", False), says("b")), rule(says("b"), says("a")), literal("c", ANN)], "closed")
    with pytest.raises(UnstratifiableError, match="ann is not an a → ann is a b → ann is an a") as caught:
        solve(known, ask(literal("a", ANN)))
    assert len(caught.value.cycle) == 3


def test_a_closed_world_refuses_what_it_cannot_hold() -> None:
    for formula in (Or((literal("a", ANN), literal("b", ANN))), Implies(ForAll((X,), says("a")), literal("b", ANN))):
        with pytest.raises(DataError, match=r"P1: .* which a closed world cannot hold"):
            solve(theory([formula], "closed"), ask(literal("a", ANN)))


def test_cycles_give_no_support() -> None:
    for world in ("open", "closed"):
        known = theory([rule(says("a"), says("b")), rule(says("b"), says("a")), literal("c", ANN)], world)  # type: ignore[arg-type]
        assert answer_of(known, literal("a", ANN)).answer == ("unknown" if world == "open" else "false")


def test_a_word_never_mentioned_is_said() -> None:
    answer = answer_of(theory([literal("red", ANN)]), literal("sour", BOB))
    assert answer.answer == "unknown"
    assert answer.conclusions == ("'sour' appears in no premise", "'bob' appears in no premise")


def test_choices_and_values() -> None:
    colours = tuple((name, literal(name, ANN)) for name in ("red", "green", "blue"))
    choice = Question("choice", "?", 0, 1, None, colours)
    assert answer_of(theory([literal("green", ANN)]), choice).value == "green"
    left = answer_of(theory([literal("red", ANN, positive=False), literal("blue", ANN, positive=False)]), choice)
    assert (left.value, left.assumptions) == ("green", ("one of the options is right",))
    assert answer_of(theory([literal("blue", ANN, positive=False)]), choice).value is None
    value = Question("value", "?", 0, 1, literal("likes", ANN, Y))
    found = answer_of(theory([literal("likes", ANN, BOB), literal("likes", BOB, ANN)]), value)
    assert (found.value, found.answer) == ("bob", None)


def test_degrees_are_the_least_along_the_best_proof() -> None:
    soft = Statement("P3", rule(says("a"), says("c")), "soft", 0, 0, "rule", 0.4)
    middle = Statement("P4", rule(says("b"), says("c")), "better", 0, 0, "rule", 0.8)
    for world in ("open", "closed"):
        known = Theory((statement(1, literal("a", ANN)), statement(2, rule(says("a"), says("b"))), soft, middle), world)  # type: ignore[arg-type]
        answer = answer_of(known, literal("c", ANN))
        assert (answer.answer, answer.degree) == ("true", pytest.approx(0.8))


def test_the_least_trusted_premise_is_dropped_first() -> None:
    trusted = (statement(1, literal("a", ANN)), statement(2, rule(says("a"), says("b"))))
    doubted = Statement("P3", literal("b", ANN, positive=False), "hearsay", 0, 0, "fact", 0.5)
    answer = answer_of(Theory((*trusted, doubted), "open"), literal("b", ANN))
    assert answer.answer == "true"
    assert answer.revisions[0].text == 'drop P3: "hearsay"'


def test_an_explosion_is_named_before_it_happens() -> None:
    names = [literal("r", Constant(f"c{i}"), Constant(f"c{i + 1}")) for i in range(60)]
    variables = tuple(Variable(letter) for letter in "abcd")
    body = And(tuple(literal("r", *pair) for pair in itertools.pairwise(variables)))
    known = theory([*names, ForAll(variables, Implies(body, literal("r", variables[0], variables[3])))])
    with pytest.raises(ExplosionError, match=r"P61: would become 13,845,841 ground rules"):
        solve(known, ask(names[0]))
    liked: Formula = ForAll((Y,), Implies(ForAll((Z,), literal("r", Z, Y)), literal("r", X, Y)))
    nested = ForAll((X,), Implies(liked, ForAll((Y,), Implies(liked, Exists((Z,), literal("r", Y, Z))))))
    with pytest.raises(ExplosionError, match="P61: would become"):
        solve(theory([*names, nested]), ask(names[0]))
    with pytest.raises(OutOfTimeError, match="within 0 seconds"):
        solve(theory(names * 40), ask(names[0]), Limits(seconds=0))


def test_individuals_that_lead_to_others_are_followed_so_far() -> None:
    endless = rule(says("man"), Exists((Y,), And((literal("parent", X, Y), literal("man", Y)))))
    answer = answer_of(theory([endless, literal("man", ANN)]), literal("tall", ANN))
    assert answer.assumptions == ("individuals that depend on others were followed 2 steps deep",)


@pytest.mark.parametrize("depth", [25, 300])
def test_long_chains(depth: int) -> None:
    rules = [rule(says(f"k{i}"), says(f"k{i + 1}")) for i in range(depth)]
    answer = answer_of(theory([literal("k0", ANN), *rules]), literal(f"k{depth}", ANN))
    assert (answer.answer, len(answer.steps)) == ("true", depth)
