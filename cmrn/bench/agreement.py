"""Random theories: whether our answers are z3's and clingo's, every step checks, and every conflict set is minimal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cmrn.bench.oracles import classical_answer, closed_models, satisfiable
from cmrn.bench.random_theories import Maker, ask
from cmrn.bench.report import Progress, Row
from cmrn.errors import GuaranteeError
from cmrn.reasoning.formulas import constants
from cmrn.reasoning.limits import UnstratifiableError
from cmrn.reasoning.proof import Answer, ProofError
from cmrn.reasoning.solve import solve, verify
from cmrn.reasoning.theory import ForAll, Formula, Implies

__all__ = ["Compared", "compare", "compare_closed", "compare_open", "theory_rows"]

FIRST_SEED = 10_000_000
EVERY = 1_000


@dataclass(frozen=True)
class Compared:
    """One theory. decided: False where a closed world has no strata; wrong: what differed, None if nothing did."""

    seed: int
    decided: bool
    wrong: str | None


def compare_open(seed: int) -> Compared:
    """A theory of every kind of formula, in an open world, beside z3."""
    maker = Maker(seed)
    theory = maker.open_theory(maker.random.randint(2, 7))
    query = maker.query()
    try:
        answer = solve(theory, ask(query))
        verify(theory, ask(query), answer)
    except ProofError as error:
        return Compared(seed, True, str(error))
    formulas = {s.id: s.formula for s in theory.statements}
    assumed = isinstance(query, ForAll) and isinstance(query.part, Implies)
    background = [statement.formula for statement in answer.assumed] if assumed else []
    if not background:
        expected = classical_answer(list(formulas.values()), query)
        if answer.answer != expected:
            return Compared(seed, True, f"answered {answer.answer}, z3 {expected}")
    return Compared(seed, True, _wrong_conflict(answer, formulas, background))


def _wrong_conflict(answer: Answer, formulas: dict[str, Formula], background: Sequence[Formula]) -> str | None:
    """A conflict set that is none or not minimal, or a revision that leaves a contradiction, by z3."""
    for contradiction in answer.contradictions:
        members = contradiction.statements
        if satisfiable([*(formulas[name] for name in members), *background]):
            return f"{members} do not conflict"
        for spared in members:
            if not satisfiable([*(formulas[name] for name in members if name != spared), *background]):
                return f"{members} conflict without {spared}"
    for revision in answer.revisions:
        changed = {**formulas, **dict(revision.changes)}
        if not satisfiable([*(f for f in changed.values() if f is not None), *background]):
            return f"the revision leaves a contradiction: {revision.text}"
    return None


def compare_closed(seed: int) -> Compared:
    """Facts and rules in a closed world beside clingo's answer sets; negation may run through recursion."""
    maker = Maker(seed)
    theory = maker.closed_theory(maker.random.randint(2, 9))
    query = maker.literal(maker.names)
    individuals = {c for s in theory.statements for c in constants(s.formula)} | set(constants(query))
    models = closed_models(theory, sorted(individuals, key=lambda constant: constant.name))
    try:
        answer = solve(theory, ask(query))
        verify(theory, ask(query), answer)
    except UnstratifiableError:
        return Compared(seed, False, None)
    except ProofError as error:
        return Compared(seed, True, str(error))
    if len(models) != 1:
        return Compared(seed, True, f"answered, where clingo has {len(models)} answer sets")
    atom = f"{query.atom.predicate}({','.join(term.name for term in query.atom.arguments)})"
    favour, against = atom in models[0], f"n_{atom}" in models[0] or atom not in models[0]
    if not query.positive:
        favour, against = against, favour
    expected = {(True, False): "true", (False, True): "false", (True, True): "both"}[favour, against]
    wrong = None if answer.answer == expected else f"answered {answer.answer}, clingo {expected}"
    return Compared(seed, True, wrong)


def compare(first: int, count: int) -> Iterator[Compared]:
    """`count` theories from a seed on, open and closed in turn."""
    for number in range(count):
        seed = first + number // 2
        yield compare_open(seed) if number % 2 == 0 else compare_closed(seed)


def theory_rows(count: int, first: int, progress: Progress) -> list[Row]:
    """The share of theories on which everything agrees.

    Raises:
        GuaranteeError: there is one on which something does not; names its seed.
        MissingExtraError: z3 or clingo is not installed.
    """
    decided = 0
    for number, each in enumerate(compare(FIRST_SEED + first, count), 1):
        if each.wrong is not None:
            where = f"--theories, after {number - 1} that agree"
            raise GuaranteeError(f"theory {each.seed}: {each.wrong}", where=where)
        decided += each.decided
        if number % EVERY == 0:
            progress(f"{number:,} of {count:,} theories agree")
    detail = {"theories": count, "first": first, "decided": decided}
    return [Row("theories: as z3 and clingo, proofs checked", 100.0, "%", limit=100.0, detail=detail)]
