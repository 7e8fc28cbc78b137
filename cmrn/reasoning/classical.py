"""The open world: what follows from the premises in classical logic, and what does even where they conflict.

Where the premises are consistent, a formula is true if they entail it, false if they entail its negation, else unknown.
Where they are not, it is true if some maximal consistent part of them entails it and false if some part entails its
negation: so a question that no conflict touches is answered as ever, and one that is touched can be both.
Degrees are possibilities: a formula holds to the greatest degree d such that the premises of degree ≥ d entail it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal as Either

from cmrn.reasoning.conflict import Conflicts, find_conflicts
from cmrn.reasoning.explain import Writer
from cmrn.reasoning.formulas import atoms, has_quantifier, negation, substitute
from cmrn.reasoning.ground import WITNESS_ROUNDS, Clause, Source, ground
from cmrn.reasoning.limits import Clock
from cmrn.reasoning.proof import entails
from cmrn.reasoning.search import Reason, Search
from cmrn.reasoning.theory import Exists, Formula, Literal

__all__ = ["ClassicalWorld", "Verdict"]

MOST_EXAMPLES = 1000
Root = Mapping[int, Reason]


@dataclass(frozen=True)
class Verdict:
    """The ids of the steps that prove a formula and its negation, each None where there is no proof."""

    proof: str | None
    refutation: str | None

    @property
    def answer(self) -> Either["true", "false", "unknown", "both"]:
        """true, false, unknown or both."""
        if self.proof and self.refutation:
            return "both"
        return "true" if self.proof else "false" if self.refutation else "unknown"


class ClassicalWorld:
    """Premises, background assumptions and the formulas asked about, grounded once.

    Background is never given up to restore consistency.
    """

    def __init__(
        self,
        premises: Sequence[Source],
        background: Sequence[Source],
        asked: Sequence[Formula],
        clock: Clock,
        say: Callable[[Formula], str],
    ) -> None:
        self.clock = clock
        self.asked = tuple(asked)
        self.ids = frozenset(source.id for source in premises)
        self.assumed = tuple(background)
        self.background = frozenset(source.id for source in background)
        self.degrees = {source.id: source.degree for source in (*premises, *background)}
        self.goals: dict[str, Source] = {}
        for number, formula in enumerate(asked):
            self.goals[f"not {number}"] = Source(f"not {number}", negation(formula))
            self.goals[f"yes {number}"] = Source(f"yes {number}", formula)
        self.grounding = ground([*premises, *background, *self.goals.values()], asked, clock)
        self.writer = Writer(self.grounding, self.goals, say)
        self.solved: dict[frozenset[str], tuple[Search, bool]] = {}
        self.clauses: dict[str, list[Clause]] = {}
        for clause in self.grounding.clauses:
            self.clauses.setdefault(clause.origin, []).append(clause)

    def search(self, ids: Iterable[str]) -> Search:
        """A search over the clauses of some premises, in a fixed order."""
        chosen = [clause for name in self.clauses if name in set(ids) for clause in self.clauses[name]]
        return Search(chosen, self.clock)

    def core(self, ids: frozenset[str]) -> frozenset[str] | None:
        """None where these premises are consistent with the background, else those that a refutation used."""
        conflict = self.search(ids | self.background).solve()
        return None if conflict is None else frozenset(conflict.origins()) - self.background

    @cached_property
    def conflicts(self) -> Conflicts:
        """Minimal conflict sets of the premises and minimal corrections; empty sets where they are consistent."""
        return find_conflicts(self.ids, self.core)

    def decide(self, number: int) -> Verdict:
        """Whether the asked formula of that number follows, its negation does, both or neither."""
        verdict = Verdict(None, None)
        for degree in sorted({self.degrees[name] for name in self.ids} or {1.0}, reverse=True):
            ids = frozenset(name for name in self.ids if self.degrees[name] >= degree)
            verdict = self._decide_within(number, ids)
            if verdict.answer != "unknown":
                break
        return verdict

    def _decide_within(self, number: int, ids: frozenset[str]) -> Verdict:
        search, consistent = self._solved(ids)
        if consistent:
            return self._decide_consistent(number, ids, search)
        conflicts = self.conflicts if ids == self.ids else find_conflicts(ids, self.core)
        proof: str | None = None
        refutation: str | None = None
        for correction in conflicts.corrections:
            kept = ids - correction
            verdict = self._decide_consistent(number, kept, self._solved(kept)[0])
            proof, refutation = proof or verdict.proof, refutation or verdict.refutation
            if proof and refutation:
                break
        return Verdict(proof, refutation)

    def _solved(self, ids: frozenset[str]) -> tuple[Search, bool]:
        """A search that stands in a model of these premises, if they are consistent; made once for each set."""
        if ids not in self.solved:
            search = self.search(ids | self.background)
            self.solved[ids] = search, search.solve() is None
        return self.solved[ids]

    def _decide_consistent(self, number: int, ids: frozenset[str], search: Search) -> Verdict:
        """The verdict of premises in whose model `search` stands."""
        formula = self.asked[number]
        root = {literal: reason for literal, reason in search.reasons.items() if not reason.open}
        opposite = negation(formula)
        proof = self._direct(formula, root)
        if proof:
            return Verdict(proof, None)
        refutation = self._direct(opposite, root)
        if refutation:
            return Verdict(None, refutation)
        holds: bool | None = None
        if isinstance(formula, Literal):
            holds = search.holds(self.grounding.code(formula))
        if holds is not False:
            proof = self.prove(f"not {number}", formula, ids)
        if proof is None and holds is not True:
            refutation = self.prove(f"yes {number}", opposite, ids)
        return Verdict(proof, refutation)

    def prove(self, goal: str, formula: Formula, ids: frozenset[str]) -> str | None:
        """The id of the step that proves the formula from consistent premises by refuting the goal, its opposite."""
        conflict = self.search(ids | self.background | {goal}).solve()
        return None if conflict is None else self.writer.refute(goal, conflict, formula)

    def _direct(self, formula: Formula, root: Root) -> str | None:
        """A proof from what chaining concluded, without supposing anything; None where there is none."""
        if isinstance(formula, Literal):
            reason = root.get(self.grounding.code(formula))
            if reason is None:
                return None
            cited = self.writer.cite(reason)
            is_step = any(step.id == cited for step in self.writer.steps)
            return cited if is_step else self.writer.write("given", (cited,), formula)
        if isinstance(formula, Exists) and not has_quantifier(formula.part):
            return self._example(formula, root)
        if has_quantifier(formula):
            return None
        known = self._known(formula, root)
        if not entails([literal for literal, _ in known], formula):
            return None
        return self.writer.write("conjunction", tuple(self.writer.cite(reason) for _, reason in known), formula)

    def _known(self, formula: Formula, root: Root) -> list[tuple[Literal, Reason]]:
        """The literals that hold among those of a formula's atoms."""
        found = []
        for atom in dict.fromkeys(atoms(formula)):
            for literal in (Literal(atom), Literal(atom, False)):
                reason = root.get(self.grounding.code(literal))
                if reason:
                    found.append((literal, reason))
        return found

    def _example(self, formula: Exists, root: Root) -> str | None:
        names = tuple(self.grounding.constants)
        if len(names) ** len(formula.variables) > MOST_EXAMPLES:
            return None
        for values in itertools.product(names, repeat=len(formula.variables)):
            case = substitute(formula.part, dict(zip(formula.variables, values, strict=True)))
            known = self._known(case, root)
            if entails([literal for literal, _ in known], case):
                inner = self._direct(case, root)
                return self.writer.write("example", (inner,), formula) if inner else None
        return None

    @cached_property
    def inconsistent(self) -> bool:
        """Whether the premises cannot all hold."""
        return not self._solved(self.ids)[1]

    def repaired(self, premises: Sequence[Source]) -> bool:
        """Whether changed premises are consistent with the same background."""
        world = ClassicalWorld(premises, self.assumed, (), self.clock, str)
        return not world.inconsistent

    def notes(self) -> tuple[str, ...]:
        """What bounds the answer."""
        found = []
        if self.grounding.bounded:
            found.append(f"individuals that depend on others were followed {WITNESS_ROUNDS} steps deep")
        if self.inconsistent and not self.conflicts.complete:
            found.append(f"only the first {len(self.conflicts.sets)} conflict sets were looked for")
        return tuple(found)

    def consequences(self) -> list[Verdict]:
        """A proof for every literal that chaining concludes about a named individual."""
        free = self.ids.difference(*self.conflicts.sets)
        search = self.search(free | self.background)
        search.propagate()
        return [Verdict(self.writer.cite(reason), None) for reason in search.reasons.values() if reason.parents]

    def background_of(self, ids: frozenset[str]) -> frozenset[str]:
        """The background that a minimal conflict set needs."""
        needed = self.background
        for name in sorted(self.background):
            if self.search(ids | needed - {name}).solve() is not None:
                needed -= {name}
        return needed
