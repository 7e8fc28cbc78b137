"""What a prompt's premises lead to, as a model in symbolic mode reports and writes it."""

from __future__ import annotations

from cmrn.errors import CMRNError
from cmrn.reasoning.limits import Limits
from cmrn.reasoning.proof import Answer
from cmrn.reasoning.reason import Reasoned, examine
from cmrn.records import Drawn, ReasoningStep

__all__ = ["draw"]


def draw(text: str, limits: Limits | None = None) -> Drawn:
    """The steps and conclusions that a text's premises give for its questions; a text of none gives none, and says why.

    >>> draw("All birds can fly. Tweety is a bird. Can Tweety fly?").conclusions
    ('Tweety can fly (from P1 and P2).',)
    """
    try:
        found = examine(text, limits=limits)
    except CMRNError as error:
        return Drawn((), (), str(error))
    steps = tuple(step for each in found for step in _steps(each.answer))
    sentences = tuple(dict.fromkeys(sentence for each in found for sentence in _sentences(each)))
    lost = [one.text for one in found[0].reading.not_understood]
    return Drawn(steps, sentences, f"not understood: {'; '.join(lost)}" if lost else None)


def _steps(answer: Answer) -> list[ReasoningStep]:
    return [ReasoningStep(s.id, s.operation, s.premises, s.conclusion, s.degree) for s in answer.steps]


def _sentences(each: Reasoned) -> list[str]:
    """Each proved conclusion as a sentence that names the premises and the assumptions it rests on.

    None where readings differ, or a sentence was not understood that might have said otherwise.
    """
    answer = each.answer
    if answer.status in ("ambiguous", "partial") or not answer.steps:
        return []
    own = {step.id for step in answer.steps}
    assumed = {statement.id: statement.text for statement in answer.assumed}
    rests = sorted({name for step in answer.steps for name in step.premises} - own - assumed.keys(), key=_order)
    reasons = [f"from {_list(rests)}"] if rests else []
    reasons += [f"assuming that {text}" for text in answer.assumptions]
    behind = f" ({'; '.join(reasons)})" if reasons else ""
    return [f"{line[0].upper()}{line[1:]}{behind}." for line in answer.conclusions]


def _order(name: str) -> tuple[int, str]:
    return len(name), name


def _list(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
