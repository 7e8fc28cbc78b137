"""A complete search over ground clauses that keeps the reason of everything it concludes.

Unit propagation is chaining: a clause all of whose literals but one are false makes that one true. Where nothing more
follows, a literal is supposed; a conflict refutes the newest supposition it rests on, and the search goes on from there
with the refuted literal's negation, which rests on the others (conflict-directed backjumping). A conflict that rests on
no supposition refutes the clauses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal as Either

from cmrn.reasoning.ground import Clause
from cmrn.reasoning.limits import Clock

__all__ = ["Reason", "Search"]

NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False, slots=True)
class Reason:
    """Why a literal holds; literal 0 is the contradiction.

    `kind`: "clause" with the parents that falsify its other literals, "supposed", "refuted" with the supposition and
    the conflict as parents, or "absent" where a closed world has nothing for its atom. `open` are the suppositions that
    it rests on.
    """

    literal: int
    kind: Either["clause", "supposed", "refuted", "absent"]
    clause: Clause | None
    parents: tuple[Reason, ...]
    open: frozenset[int]

    @property
    def degree(self) -> float:
        """The least degree among the clauses used."""
        seen: set[int] = set()
        pending, least = [self], 1.0
        while pending:
            reason = pending.pop()
            if id(reason) not in seen:
                seen.add(id(reason))
                pending.extend(reason.parents)
                least = min(least, reason.clause.degree if reason.clause else 1.0)
        return least

    def origins(self) -> set[str]:
        """The ids of the sources used."""
        seen: set[int] = set()
        pending: list[Reason] = [self]
        found: set[str] = set()
        while pending:
            reason = pending.pop()
            if id(reason) not in seen:
                seen.add(id(reason))
                pending.extend(reason.parents)
                if reason.clause:
                    found.add(reason.clause.origin)
        return found


class Search:
    """Decides a set of ground clauses; `reasons` maps each literal known to hold to why."""

    def __init__(self, clauses: Iterable[Clause], clock: Clock) -> None:
        self.clock = clock
        self.reasons: dict[int, Reason] = {}
        self.trail: list[int] = []
        self.head = 0
        self.clauses: list[Clause] = []
        self.watching: dict[int, list[Clause]] = {}
        self.conflict: Reason | None = None
        for clause in clauses:
            self.add(clause)

    def add(self, clause: Clause) -> None:
        """Take in one more clause; what follows from it is found by `propagate`."""
        self.clauses.append(clause)
        for literal in clause.literals:
            self.watching.setdefault(-literal, []).append(clause)
        self._use(clause)

    def propagate(self) -> Reason | None:
        """Conclude all that chaining can; the conflict where two conclusions meet, else None."""
        reasons = self.reasons
        while self.conflict is None and self.head < len(self.trail):
            literal = self.trail[self.head]
            self.head += 1
            if self.head % 1024 == 0:
                self.clock.look()
            for clause in self.watching.get(literal, ()):
                free = 0
                for other in clause.literals:
                    if other in reasons:
                        break
                    if -other not in reasons:
                        if free:
                            break
                        free = other
                else:
                    self._use(clause)
        return self.conflict

    def _use(self, clause: Clause) -> None:
        """Conclude the one literal of a clause that is not false, or the contradiction if all are."""
        reasons = self.reasons
        free = [literal for literal in clause.literals if -literal not in reasons]
        if len(free) > 1 or (free and free[0] in reasons) or self.conflict is not None:
            return
        target = free[0] if free else 0
        parents = tuple(reasons[-literal] for literal in clause.literals if literal != target)
        opened = NOTHING.union(*(parent.open for parent in parents)) if parents else NOTHING
        reason = Reason(target, "clause", clause, parents, opened)
        if target:
            self._know(reason)
        else:
            self.conflict = reason

    def _know(self, reason: Reason) -> None:
        self.reasons[reason.literal] = reason
        self.trail.append(reason.literal)

    def solve(self, suppose: Sequence[int] = ()) -> Reason | None:
        """None when the clauses have a model (then `holds` reads it), else the contradiction and its reasons.

        `suppose` are literals preferred as suppositions, first to last.

        Raises:
            OutOfStepsError, OutOfTimeError: the search met a limit; no answer.
        """
        decisions: list[tuple[int, int]] = []
        self.clock.look()
        while True:
            conflict = self.propagate()
            if conflict is None:
                literal = self._choose(suppose)
                if literal == 0:
                    return None
                self.clock.step()
                decisions.append((literal, len(self.trail)))
                self._know(Reason(literal, "supposed", None, (), frozenset((literal,))))
                continue
            while decisions and decisions[-1][0] not in conflict.open:
                decisions.pop()
            if not decisions:
                return conflict
            literal, mark = decisions.pop()
            supposed = self.reasons[literal]
            self._undo(mark)
            self._know(Reason(-literal, "refuted", None, (supposed, conflict), conflict.open - {literal}))

    def _undo(self, mark: int) -> None:
        for literal in self.trail[mark:]:
            del self.reasons[literal]
        del self.trail[mark:]
        self.head = mark
        self.conflict = None

    def _choose(self, suppose: Sequence[int]) -> int:
        """A literal to suppose; 0 when making every unknown atom false satisfies what is left."""
        reasons = self.reasons
        for literal in suppose:
            if literal not in reasons and -literal not in reasons:
                return literal
        best: list[int] = []
        for clause in self.clauses:
            unknown: list[int] = []
            for literal in clause.literals:
                if literal in reasons or (literal < 0 and -literal not in reasons):
                    break
                if literal > 0 and -literal not in reasons:
                    unknown.append(literal)
            else:
                if not best or len(unknown) < len(best):
                    best = unknown
                    if len(best) == 2:
                        break
        return best[0] if best else 0

    def holds(self, literal: int) -> bool:
        """After `solve` found a model: whether the literal holds in it."""
        return literal in self.reasons or (literal < 0 and -literal not in self.reasons)
