"""Answers to questions about a theory, each with a proof, its assumptions, and the conflicts it met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal as Either

from cmrn.errors import DataError
from cmrn.reasoning.channels import ChannelWorld
from cmrn.reasoning.classical import ClassicalWorld, Verdict
from cmrn.reasoning.closed import Closed
from cmrn.reasoning.formulas import atoms, constants, free_variables, negation, substitute
from cmrn.reasoning.ground import Source
from cmrn.reasoning.limits import Clock, Limits
from cmrn.reasoning.proof import Answer, Contradiction, ProofError, Revision, Step, check
from cmrn.reasoning.revise import revise
from cmrn.reasoning.theory import Exists, ForAll, Formula, Implies, Literal, Question, Statement, Theory
from cmrn.reasoning.verbalise import say

__all__ = ["given", "solve", "verify"]

World = ClassicalWorld | ChannelWorld
ONE_RIGHT = "one of the options is right"
Kind = Either["truth", "choice", "value", "meta"]
Truth = Either["true", "false", "unknown", "both"]


def solve(theory: Theory, question: Question, limits: Limits | None = None, *, contraposition: bool = True) -> Answer:
    """The answer of the theory to one question, with steps that `proof.check` accepts.

    Under an open world the logic is classical; without `contraposition` rules are only used from body to head, as they
    always are under a closed world.

    Raises:
        ExplosionError: grounding would pass the limit; names the premise.
        OutOfStepsError, OutOfTimeError: the search met a limit.
        UnstratifiableError: closed world, and something depends on its own absence; lists the cycle.
        DataError: a question without a formula where it needs one, a premise that a closed world cannot hold, or a
            degree that is not a number in [0, 1].
    """
    for statement in theory.statements:
        if not 0 <= statement.degree <= 1:
            raise DataError(f"{statement.id} has the degree {statement.degree}, which is not in [0, 1]")
    clock = Clock(limits or Limits())
    solver = _Solver(theory, clock, contraposition)
    if question.kind == "meta":
        return solver.meta(question)
    if question.formula is not None and question.kind == "truth":
        return solver.truth(question.formula)
    if question.options:
        return solver.choice(question)
    if question.formula is None or len(free_variables(question.formula)) != 1:
        raise DataError(f"the question asks for nothing that can be looked for: {question.text}")
    return solver.value(question.formula)


def given(theory: Theory, answer: Answer) -> dict[str, tuple[Formula, float]]:
    """What the steps of an answer may start from: statements and the assumptions made, with their degrees."""
    known = {s.id: (s.formula, s.degree) for s in theory.statements}
    return known | {assumed.id: (assumed.formula, assumed.degree) for assumed in answer.assumed}


def verify(theory: Theory, question: Question, answer: Answer, limits: Limits | None = None) -> None:
    """Check every step of an answer again, and that they prove it, by the checker that knows nothing of the search.

    Raises:
        ProofError: a step does not follow, or no step without suppositions says what the answer does.
    """
    asked = [formula for formula in (question.formula, *(f for _, f in question.options)) if formula is not None]
    closed = None
    if theory.world == "closed":
        premises = [Source(s.id, s.formula, s.degree) for s in theory.statements]
        closed = ChannelWorld(premises, asked, Clock(limits or Limits()), say, closed=True).closed_world()
    known = given(theory, answer)
    for claim in _claims(theory, question, answer):
        ends = [number for number, step in enumerate(answer.steps, 1) if step.formula == claim]
        if not any(_ends_well(answer.steps[:end], known, asked, closed) for end in ends):
            raise ProofError(f"no step without suppositions says that {say(claim)}")
    check(answer.steps, known, asked, closed)


def _ends_well(
    steps: Sequence[Step],
    known: dict[str, tuple[Formula, float]],
    asked: Sequence[Formula],
    closed: Closed | None,
) -> bool:
    try:
        check(steps, known, asked, closed)
    except ProofError:
        return False
    return True


def _claims(theory: Theory, question: Question, answer: Answer) -> list[Formula]:
    """The formulas that an answer says are proved."""
    named = {s.id: s.formula for s in theory.statements}
    formula = named.get(question.about or "", question.formula)
    if formula is not None and answer.kind in ("truth", "meta"):
        claims = {"true": [formula], "false": [negation(formula)], "both": [formula, negation(formula)]}
        return claims.get(answer.answer or "", [])
    if answer.kind == "choice" and ONE_RIGHT not in answer.assumptions:
        return [option for name, option in question.options if name in (answer.value or "").split(" and ")]
    return []


class _Solver:
    """One question's way to its answer."""

    def __init__(self, theory: Theory, clock: Clock, contraposition: bool) -> None:
        self.theory = theory
        self.clock = clock
        self.premises = [Source(s.id, s.formula, s.degree) for s in theory.statements]
        self.texts = {s.id: s for s in theory.statements}
        self.classical = theory.world == "open" and contraposition

    def world(self, asked: Sequence[Formula], background: Sequence[Source] = ()) -> World:
        """The engine that the kind of world needs."""
        if self.classical:
            return ClassicalWorld(self.premises, background, asked, self.clock, say)
        return ChannelWorld(self.premises, asked, self.clock, say, closed=self.theory.world == "closed")

    def truth(self, formula: Formula) -> Answer:
        """Whether a formula holds."""
        background = self._imports([formula]) if self.classical else []
        world = self.world([formula], background)
        verdict = world.decide(0)
        concluded = {"true": [formula], "false": [negation(formula)], "both": [formula, negation(formula)]}
        conclusions = [say(one) for one in concluded.get(verdict.answer, [])]
        if verdict.answer == "unknown":
            conclusions += self._unheard([formula])
        answer = self._answer("truth", verdict.answer, world, [verdict], background)
        return replace(answer, conclusions=tuple(conclusions))

    def choice(self, question: Question) -> Answer:
        """Which option holds; where none is proved, the only one not refuted, if the question has one right option."""
        world = self.world([formula for _, formula in question.options])
        verdicts = [world.decide(number) for number in range(len(question.options))]
        right = [i for i, verdict in enumerate(verdicts) if verdict.proof]
        assumed: tuple[str, ...] = ()
        if not right:
            left = [i for i, verdict in enumerate(verdicts) if not verdict.refutation]
            if len(left) == 1 and len(verdicts) > 1:
                right, assumed = left, (ONE_RIGHT,)
        used = [verdicts[i] for i in right] if right and not assumed else verdicts
        answer = self._answer("choice", None if right else "unknown", world, used, [])
        names = [question.options[i] for i in right]
        return replace(
            answer,
            value=" and ".join(name for name, _ in names) or None,
            conclusions=tuple(say(formula) for _, formula in names),
            assumptions=answer.assumptions + assumed,
        )

    def value(self, formula: Formula) -> Answer:
        """Which individuals a formula holds of."""
        variable = free_variables(formula)[0]
        found = (c for f in (*(p.formula for p in self.premises), formula) for c in constants(f))
        names = list(dict.fromkeys(found))
        cases = [substitute(formula, {variable: name}) for name in names]
        world = self.world(cases)
        verdicts = [world.decide(number) for number in range(len(cases))]
        right = [i for i, verdict in enumerate(verdicts) if verdict.proof]
        answer = self._answer("value", None if right else "unknown", world, [verdicts[i] for i in right], [])
        value = ", ".join(names[i].name for i in right) or None
        concluded = [say(cases[i]) for i in right] or self._unheard([formula])
        return replace(answer, value=value, conclusions=tuple(concluded))

    def meta(self, question: Question) -> Answer:
        """What the other premises say of one; without one, what follows from all."""
        about = self.texts.get(question.about or "")
        if about is None:
            return self._consequences()
        background = self._imports([s.formula for s in self.theory.statements])
        world = ClassicalWorld(self.premises, background, [about.formula], self.clock, say)
        against = [members for members in world.conflicts.sets if about.id in members]
        opposite = negation(about.formula)
        if against:
            smallest = min(against, key=lambda members: (len(members), sorted(members)))
            verdict = Verdict(None, world.prove("yes 0", opposite, smallest - {about.id}))
            concluded = [f"{about.id} cannot hold if {_list(smallest - {about.id})} do", say(opposite)]
        else:
            rest = world.ids - {about.id}
            verdict = Verdict(world.prove("not 0", about.formula, rest), None)
            concluded = [say(about.formula)] if verdict.proof else [f"nothing contradicts {about.id}"]
        answer = self._answer("meta", verdict.answer, world, [verdict], background)
        return replace(answer, conclusions=tuple(concluded))

    def _consequences(self) -> Answer:
        """Every literal that follows from the premises by chaining."""
        formulas = [statement.formula for statement in self.theory.statements]
        nobody = not any(True for formula in formulas for _ in constants(formula))
        background = self._imports(formulas) if self.classical and nobody else []
        world = self.world([], background)
        verdicts = world.consequences()
        answer = self._answer("meta", None, world, verdicts, background)
        return replace(
            answer, conclusions=tuple(step.conclusion for step in answer.steps if step.operation != "suppose")
        )

    def _imports(self, formulas: Iterable[Formula]) -> list[Source]:
        """The assumption that each kind which a general sentence is about has a member, unless a premise denies it."""
        found: dict[Formula, None] = {}
        for formula in formulas:
            if isinstance(formula, ForAll) and isinstance(formula.part, Implies):
                body = formula.part.body
                if isinstance(body, Literal) and body.positive and body.atom.arguments == formula.variables:
                    found[Exists(formula.variables, body)] = None
        kept: list[Source] = []
        for formula in found:
            source = Source(f"A{len(kept) + 1}", formula)
            if not any(self._denies(premise, source) for premise in self.premises):
                kept.append(source)
        return kept

    def _denies(self, premise: Source, exists: Source) -> bool:
        """Whether a premise that speaks of nothing else says that there is no such thing."""
        if {atom.predicate for atom in atoms(premise.formula)} != {atom.predicate for atom in atoms(exists.formula)}:
            return False
        return ClassicalWorld([premise], [exists], (), self.clock, str).inconsistent

    def _answer(
        self,
        kind: Kind,
        answer: Truth | None,
        world: World,
        verdicts: Sequence[Verdict],
        background: Sequence[Source],
    ) -> Answer:
        """The answer with the steps that its verdicts need, what they assumed, and every conflict with its repairs."""
        finals = [name for verdict in verdicts for name in (verdict.proof, verdict.refutation) if name]
        steps, ids = _needed(world.writer.steps, finals)
        degrees = {step.id: step.degree for step in world.writer.steps}
        contradictions: tuple[Contradiction, ...] = ()
        revisions: tuple[Revision, ...] = ()
        if world.inconsistent:
            contradictions = tuple(self._contradiction(members, world) for members in world.conflicts.sets)
            revisions = revise(self.theory.statements, world.conflicts, world.repaired, self.clock, say)
        needed = ids.union(*(contradiction.assumptions for contradiction in contradictions))
        assumed = [Statement(s.id, s.formula, _exists(s.formula), 0, 0, "fact") for s in background if s.id in needed]
        return Answer(
            kind=kind,
            answer=answer,
            status="inconsistent" if contradictions else "ok",
            steps=tuple(steps),
            assumptions=(*(source.text for source in assumed), *world.notes()),
            contradictions=contradictions,
            revisions=revisions,
            degree=max((degrees[name] for name in finals), default=1.0),
            assumed=tuple(assumed),
        )

    def _contradiction(self, members: frozenset[str], world: World) -> Contradiction:
        assumed = world.background_of(members)
        return Contradiction(tuple(sorted(members, key=_order)), tuple(sorted(assumed, key=_order)))

    def _unheard(self, formulas: Sequence[Formula]) -> list[str]:
        """A sentence for each word of the question that no premise has."""
        said = {atom.predicate for p in self.premises for atom in atoms(p.formula)}
        known = {c for p in self.premises for c in constants(p.formula)}
        asked = dict.fromkeys(atom.predicate for f in formulas for atom in atoms(f) if atom.predicate not in said)
        names = dict.fromkeys(c.name for f in formulas for c in constants(f) if c not in known)
        return [f"'{word}' appears in no premise" for word in (*asked, *names)]


def _needed(steps: Sequence[Step], finals: Sequence[str]) -> tuple[list[Step], set[str]]:
    """The steps that the final ones rest on, numbered anew, and every id that these cite."""
    wanted = set(finals)
    kept: list[Step] = []
    for step in reversed(steps):
        if step.id in wanted:
            kept.append(step)
            wanted.update(step.premises)
    names = {step.id: f"S{number}" for number, step in enumerate(reversed(kept), 1)}
    renamed = [
        replace(step, id=names[step.id], premises=tuple(names.get(premise, premise) for premise in step.premises))
        for step in reversed(kept)
    ]
    return renamed, wanted


def _order(name: str) -> tuple[int, str]:
    return len(name), name


def _list(names: Iterable[str]) -> str:
    *most, last = sorted(names, key=_order) or ["the assumptions"]
    return f"{', '.join(most)} and {last}" if most else last


def _exists(formula: Formula) -> str:
    """`some penguin exists`."""
    if isinstance(formula, Exists) and isinstance(formula.part, Literal):
        words = formula.part.atom.predicate
        if words.split()[0] not in ("is", "can", "does", "has", "likes"):
            return f"some {words} exists"
    return say(formula)
