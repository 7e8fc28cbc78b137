"""Rules used from body to head only, on two channels of evidence: the closed world, and the open one on request.

Evidence for an atom and against it are derived apart, so a contradiction stays where it is. Under a closed world a
premise "not a" also holds where nothing gives a, stratum by stratum; under an open one never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from cmrn.errors import DataError
from cmrn.reasoning.classical import Verdict
from cmrn.reasoning.closed import Closed, over_individuals, well_founded
from cmrn.reasoning.conflict import Conflicts, find_conflicts
from cmrn.reasoning.explain import Writer
from cmrn.reasoning.formulas import free_variables, has_quantifier, negation
from cmrn.reasoning.ground import Clause, Grounding, Source, ground
from cmrn.reasoning.limits import Clock, UnstratifiableError
from cmrn.reasoning.search import Reason
from cmrn.reasoning.strata import possible_rules, stratify
from cmrn.reasoning.theory import And, Exists, ForAll, Formula, Iff, Implies, Literal, Not, Or, Xor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ChannelWorld", "Rule", "ground_rules", "run_rules"]

Rule = tuple[tuple[int, ...], int]


def ground_rules(grounding: Grounding, closed: bool) -> list[tuple[Rule, Clause]]:
    """Each clause as the rules it was written as: premises and a conclusion, literals as ±(atom + 1).

    Raises:
        DataError: under a closed world, a premise concludes a choice, or is about everybody in its condition.
    """
    rules: list[tuple[Rule, Clause]] = []
    for clause in grounding.clauses:
        heads = clause.heads
        positive = tuple(head for head in heads if head > 0)
        if len(heads) > 1 and len(positive) == 1:
            heads = positive
        matrix = clause.part.form.matrix
        body_witness = isinstance(matrix, Implies) and any(
            witness.variable in free_variables(matrix.body) for witness in clause.part.form.witnesses
        )
        if closed and (len(heads) != 1 or body_witness):
            problem = "has a condition about everybody" if body_witness else "leaves a choice open"
            raise DataError(
                f"{problem}, which a closed world cannot hold", where=clause.origin, hint="use --world open"
            )
        for head in heads:
            others = tuple(-other for other in clause.heads if other != head)
            body = tuple(dict.fromkeys((*clause.premises, *others)))
            rules.append(((body, head), clause))
    return rules


def run_rules(rules: Sequence[tuple[Rule, float]], atoms: int, closed: bool) -> dict[int, int]:
    """Everything that follows: for each literal, in the order found, the rule that gave it (−1: absence).

    Raises:
        UnstratifiableError: closed world, and an atom depends on its own absence; `cycle` holds the literals' codes.
    """
    import torch

    kept = possible_rules([rule for rule, _ in rules]) if closed else list(range(len(rules)))
    levels: dict[int, int] | list[int] = stratify([rules[i][0] for i in kept]) if closed else {}
    if isinstance(levels, list):
        raise UnstratifiableError("a cycle", tuple(map(str, levels)))
    absent = sorted({p for i in kept for p in rules[i][0][0] if p < 0}) if closed else []
    values_LB = torch.zeros(2 * atoms, 1)
    why: dict[int, int] = {}
    for level in range(max(levels.values(), default=0) + 1):
        for literal in absent:
            if levels[literal] == level and values_LB[_channel(-literal)] == 0:
                values_LB[_channel(literal)] = 1
                why[literal] = -1
        here = [i for i in kept if levels.get(rules[i][0][1], 0) == level]
        values_LB, fired = _run_level([rules[i] for i in here], values_LB)
        why.update({literal: here[number] for literal, number in fired})
    return why


def _run_level(rules: Sequence[tuple[Rule, float]], values_LB: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Chain rules that wait for no absence; the literals they gave with the rule of each, in the order found."""
    from cmrn.reasoning.chain import chain, compile_rules

    compiled = [(tuple(map(_channel, body)), _channel(head)) for (body, head), _ in rules]
    program = compile_rules(compiled, len(values_LB), [weight for _, weight in rules])
    done = chain(program, values_LB, reasons=True)
    if done.rules_LB is None or done.steps_LB is None:
        raise AssertionError("reasons were asked for")
    numbers, steps = done.rules_LB[:, 0].tolist(), done.steps_LB[:, 0].tolist()
    given = zip(steps, range(len(steps)), numbers, strict=True)
    fired = sorted((step, channel, rule) for step, channel, rule in given if rule >= 0)
    return done.values_LB, [((channel // 2 + 1) * (-1 if channel % 2 else 1), rule) for _, channel, rule in fired]


def _channel(literal: int) -> int:
    return 2 * (abs(literal) - 1) + (literal < 0)


class ChannelWorld:
    """Premises and the formulas asked about, grounded once and chained once."""

    def __init__(
        self,
        premises: Sequence[Source],
        asked: Sequence[Formula],
        clock: Clock,
        say: Callable[[Formula], str],
        *,
        closed: bool,
    ) -> None:
        self.premises = tuple(premises)
        self.asked = tuple(asked)
        self.clock = clock
        self.closed = closed
        self.ids = frozenset(source.id for source in premises)
        self.grounding = ground(premises, asked, clock, rules=True)
        self.writer = Writer(self.grounding, {}, say)
        self.rules = ground_rules(self.grounding, closed)
        self.reasons = self._chain(say)

    def _chain(self, say: Callable[[Formula], str]) -> dict[int, Reason]:
        rules = [(rule, clause.degree) for rule, clause in self.rules]
        try:
            why = run_rules(rules, len(self.grounding.atoms), self.closed)
        except UnstratifiableError as error:
            cycle = tuple(say(self.grounding.literal(int(code))) for code in error.cycle)
            message = "under a closed world something depends on its own absence: " + " → ".join((*cycle, cycle[0]))
            raise UnstratifiableError(message, cycle, hint="use --world open, or break the cycle") from None
        reasons: dict[int, Reason] = {}
        for literal, number in why.items():
            if number < 0:
                reasons[literal] = Reason(literal, "absent", None, (), frozenset())
            else:
                (body, _), clause = self.rules[number]
                reasons[literal] = Reason(literal, "clause", clause, tuple(reasons[p] for p in body), frozenset())
        return reasons

    def closed_world(self) -> Closed | None:
        """The oracle for proofs of absence; None under an open world."""
        if not self.closed:
            return None
        literal = self.grounding.literal
        rules = [(tuple(map(literal, body)), literal(head)) for (body, head), _ in self.rules]
        return well_founded(rules, self.grounding.constants)

    def decide(self, number: int) -> Verdict:
        """Whether there is evidence for the asked formula of that number, and against it."""
        formula = self.asked[number]
        return Verdict(self._prove(formula, formula, True), self._prove(formula, negation(formula), False))

    def _prove(self, formula: Formula, conclusion: Formula, positive: bool) -> str | None:
        ground_formula = over_individuals(formula, tuple(self.grounding.constants)) if self.closed else formula
        support = self._support(ground_formula, positive)
        if support is None:
            return None
        cited = tuple(self.writer.cite(reason) for reason in dict.fromkeys(support))
        if isinstance(conclusion, Literal):
            known = {step.id for step in self.writer.steps}
            return cited[0] if cited[0] in known else self.writer.write("given", cited, conclusion)
        operation = "conjunction"
        if has_quantifier(conclusion):
            operation = "all cases" if self.closed else "example"
        return self.writer.write(operation, cited, conclusion)

    def _support(self, formula: Formula, positive: bool) -> list[Reason] | None:
        """Reasons that together make a formula hold (or not hold); None where there are none."""

        def every(parts: Sequence[tuple[Formula, bool]]) -> list[Reason] | None:
            found = [self._support(part, sign) for part, sign in parts]
            return None if any(one is None for one in found) else [r for one in found if one is not None for r in one]

        def some(parts: Sequence[tuple[Formula, bool]]) -> list[Reason] | None:
            return next((one for part, sign in parts if (one := self._support(part, sign)) is not None), None)

        match formula:
            case Literal():
                literal = formula if positive else formula.negated()
                return self._literal(literal)
            case Not(part):
                return self._support(part, not positive)
            case And(parts) | Or(parts):
                join = every if isinstance(formula, And) == positive else some
                return join([(part, positive) for part in parts])
            case Implies(body, head):
                return (some if positive else every)([(body, not positive), (head, positive)])
            case Iff(left, right):
                same = every([(left, True), (right, positive)])
                return same if same is not None else every([(left, False), (right, not positive)])
            case Xor(parts):
                wanted = [[(p, p is q) for p in parts] for q in parts]
                if not positive:
                    pairs = [[(p, True), (q, True)] for i, p in enumerate(parts) for q in parts[i + 1 :]]
                    wanted = [[(p, False) for p in parts], *pairs]
                return next((one for case in wanted if (one := every(case)) is not None), None)
            case ForAll() | Exists():
                return self._quantified(formula, positive)

    def _quantified(self, formula: ForAll | Exists, positive: bool) -> list[Reason] | None:
        """Under an open world nobody knows all individuals: one is enough to show "some" and to refute "all"."""
        if isinstance(formula, ForAll) == positive:
            return None
        return self._support(over_individuals(formula, tuple(self.grounding.constants)), positive)

    def _literal(self, literal: Literal) -> list[Reason] | None:
        code = self.grounding.code(literal)
        if code in self.reasons:
            return [self.reasons[code]]
        if self.closed and code < 0 and -code not in self.reasons:
            self.reasons[code] = Reason(code, "absent", None, (), frozenset())
            return [self.reasons[code]]
        return None

    @property
    def inconsistent(self) -> bool:
        """Whether there is evidence both for and against some atom."""
        return any(-literal in self.reasons for literal in self.reasons)

    def core(self, ids: frozenset[str]) -> frozenset[str] | None:
        """None where these premises give no atom evidence for and against, else themselves."""
        part = ChannelWorld([p for p in self.premises if p.id in ids], (), self.clock, str, closed=self.closed)
        return ids if part.inconsistent else None

    @cached_property
    def conflicts(self) -> Conflicts:
        """Minimal conflict sets and corrections."""
        return find_conflicts(self.ids, self.core)

    def repaired(self, premises: Sequence[Source]) -> bool:
        """Whether changed premises give no atom evidence for and against."""
        return not ChannelWorld(premises, (), self.clock, str, closed=self.closed).inconsistent

    def background_of(self, members: frozenset[str]) -> frozenset[str]:
        """Nothing is assumed here."""
        return frozenset()

    def notes(self) -> tuple[str, ...]:
        """What was assumed of the world."""
        return ("what no premise gives is false",) if self.closed and self._used_absence() else ()

    def _used_absence(self) -> bool:
        return any(step.operation == "closed world" for step in self.writer.steps)

    def consequences(self) -> list[Verdict]:
        """A proof for every literal that a rule or fact gives."""
        return [Verdict(self.writer.cite(reason), None) for reason in tuple(self.reasons.values()) if reason.clause]
