"""Changes of premises that remove every contradiction, best first, each solved again to show it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from cmrn.reasoning.classical import ClassicalWorld
from cmrn.reasoning.conflict import Conflicts
from cmrn.reasoning.formulas import substitute
from cmrn.reasoning.ground import Source
from cmrn.reasoning.limits import Clock
from cmrn.reasoning.proof import Revision
from cmrn.reasoning.theory import And, ForAll, Formula, Implies, Literal, Not, Statement, Term, Variable

__all__ = ["exceptions", "revise"]

MOST_VARIANTS = 16
MOST_REVISIONS = 16
Change = tuple[str, Formula | None]


def _entail(premises: Sequence[Source], formula: Formula, clock: Clock) -> bool:
    """Whether premises entail a formula, by more than contradicting themselves."""
    world = ClassicalWorld(premises, (), (formula,), clock, str)
    return not world.inconsistent and world.decide(0).proof is not None


def _rule(formula: Formula) -> tuple[Variable, Formula, Formula] | None:
    """The variable, body and head of a rule about one individual."""
    if isinstance(formula, ForAll) and len(formula.variables) == 1 and isinstance(formula.part, Implies):
        return formula.variables[0], formula.part.body, formula.part.head
    return None


def exceptions(general: Statement, others: Sequence[Statement], clock: Clock) -> Iterator[tuple[Statement, Formula]]:
    """The rule with an exception for each narrower kind that another rule is about, and that other rule.

    A kind is narrower if the other premises say that all of it is of the rule's kind, and not the other way round.
    """
    rule = _rule(general.formula)
    if rule is None:
        return
    variable, body, head = rule
    premises = [Source(s.id, s.formula) for s in others]
    for other in others:
        narrower = _rule(other.formula)
        if narrower is None:
            continue
        kind: Formula = substitute(narrower[1], dict[Variable, Term]({narrower[0]: variable}))
        downward = ForAll((variable,), Implies(kind, body))
        upward = ForAll((variable,), Implies(body, kind))
        if not _entail(premises, downward, clock) or _entail(premises, upward, clock):
            continue
        excluded = kind.negated() if isinstance(kind, Literal) else Not(kind)
        parts = body.parts if isinstance(body, And) else (body,)
        yield other, ForAll((variable,), Implies(And((*parts, excluded)), head))


def revise(
    statements: Sequence[Statement],
    conflicts: Conflicts,
    repaired: Callable[[Sequence[Source]], bool],
    clock: Clock,
    say: Callable[[Formula], str],
) -> tuple[Revision, ...]:
    """Minimal changes after which the premises conflict no more, as `repaired` finds by solving them again.

    First those that only except a narrower kind from a rule, then those that give premises up: the least trusted first,
    then the fewest, then general rules before what is said of narrower kinds, then in the order of the text.
    """
    by_id = {statement.id: statement for statement in statements}
    weaker = _weaker(by_id, conflicts, clock)
    found: list[tuple[tuple[object, ...], Revision]] = []
    for correction in conflicts.corrections:
        choices = [[(name, f) for f in (*weaker.get(name, ()), None)] for name in sorted(correction)]
        for changes in itertools.islice(itertools.product(*choices), MOST_VARIANTS):
            if repaired(_changed(statements, dict(changes))):
                texts = [say(new) if new else f'drop {name}: "{by_id[name].text}"' for name, new in changes]
                found.append((_rank(changes, by_id, weaker), Revision("; ".join(texts), tuple(changes))))
    found.sort(key=lambda item: item[0])
    return tuple(revision for _, revision in found[:MOST_REVISIONS])


def _weaker(by_id: Mapping[str, Statement], conflicts: Conflicts, clock: Clock) -> dict[str, list[Formula]]:
    """For each premise of a conflict, its forms with an exception."""
    weaker: dict[str, dict[Formula, None]] = {}
    for members in conflicts.sets:
        for name in sorted(members & by_id.keys()):
            others = [by_id[other] for other in sorted(members - {name}) if other in by_id]
            for _, formula in exceptions(by_id[name], others, clock):
                weaker.setdefault(name, {})[formula] = None
    return {name: list(formulas) for name, formulas in weaker.items()}


def _changed(statements: Sequence[Statement], changes: Mapping[str, Formula | None]) -> list[Source]:
    """The premises after a change; None takes one away."""
    changed = ((s, changes.get(s.id, s.formula)) for s in statements)
    return [Source(s.id, formula, s.degree) for s, formula in changed if formula is not None]


def _rank(
    changes: Sequence[Change], by_id: Mapping[str, Statement], weaker: Mapping[str, Sequence[Formula]]
) -> tuple[object, ...]:
    dropped = [name for name, new in changes if new is None]
    order = list(by_id)
    return (
        len(dropped) > 0,
        sum(by_id[name].degree for name in dropped),
        len(changes),
        sum(name not in weaker for name in dropped),
        sorted(order.index(name) for name, _ in changes),
    )
