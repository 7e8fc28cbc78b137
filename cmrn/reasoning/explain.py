"""From the reasons that a search kept to the steps of a proof."""

from __future__ import annotations

from collections.abc import Callable

from cmrn.reasoning.formulas import has_quantifier
from cmrn.reasoning.ground import Clause, Grounding, Source
from cmrn.reasoning.proof import Step
from cmrn.reasoning.search import Reason
from cmrn.reasoning.theory import Formula, Iff, Implies, Literal, Or, Xor

__all__ = ["Writer"]


class Writer:
    """Writes each inference once, in an order in which every step follows from earlier ones.

    `goals` are the sources that stand for the opposite of what is to be proved: they become suppositions.
    """

    def __init__(self, grounding: Grounding, goals: dict[str, Source], say: Callable[[Formula], str]) -> None:
        self.grounding = grounding
        self.goals = goals
        self.say = say
        self.steps: list[Step] = []
        self.degrees: dict[str, float] = {}
        self.cited: dict[int, str] = {}
        self.kept: list[Reason] = []
        self.cited_goals: dict[str, str] = {}

    def write(
        self,
        operation: str,
        premises: tuple[str, ...],
        formula: Formula,
        instance: Formula | None = None,
        degree: float = 1.0,
    ) -> str:
        """Add a step; its degree is the least of its premises' and of `degree`. Returns its id."""
        name = f"S{len(self.steps) + 1}"
        degree = min([degree, *(self.degrees.get(premise, 1.0) for premise in premises)])
        premises = tuple(dict.fromkeys(premises))
        self.steps.append(Step(name, operation, premises, self.say(formula), degree, formula, instance))
        self.degrees[name] = degree
        return name

    def cite(self, reason: Reason) -> str:
        """The id of the step that concludes a reason's literal; the steps it needs are written first."""
        pending = [reason]
        while pending:
            current = pending[-1]
            if id(current) in self.cited:
                pending.pop()
                continue
            needed = list(current.parents)
            if current.kind == "refuted":
                needed = [current.parents[0], *current.parents[1].parents]
            missing = [parent for parent in needed if id(parent) not in self.cited]
            if missing:
                pending.extend(reversed(missing))
                continue
            self.cited[id(current)] = self._step(current)
            self.kept.append(current)
            pending.pop()
        return self.cited[id(reason)]

    def refute(self, goal: str, conflict: Reason, formula: Formula) -> str:
        """The step that concludes `formula` because the goal, its opposite, leads to a contradiction."""
        premises, instance, degree = self._conflict(conflict)
        return self.write("contradiction", (self._suppose(goal), *premises), formula, instance, degree)

    def _suppose(self, goal: str) -> str:
        if goal not in self.cited_goals:
            self.cited_goals[goal] = self.write("suppose", (), self.goals[goal].formula)
        return self.cited_goals[goal]

    def _source(self, clause: Clause) -> str:
        return self._suppose(clause.origin) if clause.origin in self.goals else clause.origin

    def _conflict(self, conflict: Reason) -> tuple[tuple[str, ...], Formula | None, float]:
        """What a contradiction is made of: ids, the instance used, and its degree."""
        assert conflict.clause is not None, "a conflict is a clause with every literal false"
        parents = tuple(self.cite(parent) for parent in conflict.parents)
        clause = conflict.clause
        return (self._source(clause), *parents), self._instance(clause), clause.degree

    def _instance(self, clause: Clause) -> Formula | None:
        return self.grounding.instance(clause) if has_quantifier(clause.part.source.formula) else None

    def _step(self, reason: Reason) -> str:
        literal = self.grounding.literal(reason.literal)
        if reason.kind == "supposed":
            return self.write("suppose", (), literal)
        if reason.kind == "absent":
            return self.write("closed world", (), literal)
        if reason.kind == "refuted":
            premises, instance, degree = self._conflict(reason.parents[1])
            supposed = self.cited[id(reason.parents[0])]
            return self.write("contradiction", (supposed, *premises), literal, instance, degree)
        clause = reason.clause
        assert clause is not None, "a conclusion has a clause"
        source = self._source(clause)
        if clause.part.source.formula == literal:
            self.degrees.setdefault(source, clause.degree)
            return source
        premises = (source, *(self.cited[id(parent)] for parent in reason.parents))
        return self.write(operation(clause, reason.literal), premises, literal, self._instance(clause), clause.degree)


def operation(clause: Clause, literal: int) -> str:
    """What a conclusion from a clause is called."""
    if len(clause.literals) == 1:
        return "instance" if clause.part.form.universals or clause.part.form.witnesses else "given"
    match clause.part.form.matrix:
        case Implies() | Iff():
            return "modus ponens" if literal in clause.heads else "contraposition"
        case Or() | Xor():
            return "elimination"
        case Literal():
            return "instance"
    return "consequence"
