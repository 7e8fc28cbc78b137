"""From a text to its answers: read it, solve every reading, compare them, and say what was not understood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmrn.errors import DataError
from cmrn.reasoning.induction import induce
from cmrn.reasoning.learned import Learned, nothing_learned, shipped
from cmrn.reasoning.lexicon import CLOSED, PREPOSITIONS, singulars
from cmrn.reasoning.limits import Limits
from cmrn.reasoning.loosely import read_loosely
from cmrn.reasoning.parse import read
from cmrn.reasoning.proof import Answer
from cmrn.reasoning.segment import segment, tokenize
from cmrn.reasoning.solve import solve
from cmrn.reasoning.theory import Question, Reading, World
from cmrn.reasoning.verbalise import say

__all__ = [
    "EmptyTextError",
    "NoPremisesError",
    "NotEnglishError",
    "NothingUnderstoodError",
    "Reasoned",
    "TooLongError",
    "examine",
    "reason",
]

LONGEST = 4 << 20
_EVERYTHING = Question("meta", "what follows", 0, 0, None)


class EmptyTextError(DataError):
    """The text holds no words."""


class NoPremisesError(DataError):
    """The text asks and states nothing to answer from."""


class NotEnglishError(DataError):
    """Nothing was understood, and the words are not those of English."""


class NothingUnderstoodError(DataError):
    """No premise was understood; `where` is the first sentence's place."""


class TooLongError(DataError):
    """The text is longer than can be read at once."""


@dataclass(frozen=True)
class Reasoned:
    """One question's answer with the reading it rests on; others: what other readings answer, where they differ."""

    question: Question | None
    answer: Answer
    reading: Reading
    others: tuple[tuple[Reading, Answer], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The document of the command line's contract."""
        answer = self.answer
        return {
            "kind": answer.kind,
            "answer": answer.answer,
            "value": answer.value,
            "status": answer.status,
            "conclusions": list(answer.conclusions),
            "steps": [
                {"id": step.id, "operation": step.operation, "premises": list(step.premises),
                 "conclusion": step.conclusion, "degree": step.degree}
                for step in answer.steps
            ],
            "assumptions": list(answer.assumptions),
            "contradictions": [{"statements": list(one.statements)} for one in answer.contradictions],
            "revisions": [
                {"text": one.text, "changes": [
                    {"statement": name, "becomes": None if formula is None else say(formula)}
                    for name, formula in one.changes
                ]}
                for one in answer.revisions
            ],
            "not_understood": [
                {"text": one.text, "start": one.start, "end": one.end, "at": one.at, "hint": one.hint,
                 "sentence": one.sentence}
                for one in self.reading.not_understood
            ],
            "question": None if self.question is None else self.question.text,
            "premises": [
                {"id": one.id, "text": one.text, "start": one.start, "end": one.end, "read_as": say(one.formula)}
                for one in self.reading.theory.statements
            ],
            "readings": [
                {"premises": [say(one.formula) for one in reading.theory.statements], "answer": other.answer,
                 "value": other.value}
                for reading, other in self.others
            ],
        }  # fmt: skip


def reason(
    text: str,
    world: World = "open",
    *,
    facts: Sequence[str] = (),
    rules: Sequence[str] = (),
    limits: Limits | None = None,
) -> Answer:
    """The answer to a text's first question, or what follows from it where it asks nothing.

    Raises:
        DataError: as `examine`.

    >>> reason("All birds can fly. Tweety is a bird. Can Tweety fly?").answer
    'true'
    """
    return examine(text, world, facts=facts, rules=rules, limits=limits)[0].answer


def examine(
    text: str,
    world: World = "open",
    *,
    facts: Sequence[str] = (),
    rules: Sequence[str] = (),
    limits: Limits | None = None,
    contraposition: bool = True,
    learned: Callable[[], Learned] = shipped,
) -> tuple[Reasoned, ...]:
    """Every question's answer, in order; one, of what follows, where the text asks nothing.

    contraposition: whether rules are also used from head to body, as in classical logic; without it they only run
    forward. learned: what a loose reading may use beside its rules; only called where the rules do not answer.

    Raises:
        EmptyTextError: there are no words.
        TooLongError: there are more than 4 MiB of them.
        NotEnglishError: the words are not English.
        NothingUnderstoodError: not one premise was understood.
        NoPremisesError: there are only questions.
        ExplosionError, OutOfStepsError, OutOfTimeError, UnstratifiableError: see `solve`.
    """
    pieces = (*facts, *rules, text)
    if not any(character.isalnum() for piece in pieces for character in piece):
        raise EmptyTextError("there is nothing to reason about", hint='cmrn reason "All birds can fly. …"')
    if sum(map(len, pieces)) > LONGEST:
        raise TooLongError(f"the text is longer than {LONGEST >> 20} MiB", hint="split it")
    readings = read(text, facts=facts, rules=rules, world=world)
    may = world == "open" and contraposition
    loose = _loosely(pieces, readings[0], limits, learned) if may and readings[0].not_understood else None
    if loose is not None and not (readings[0].theory.statements and readings[0].questions):
        return (loose,)
    _check(readings[0], pieces)
    count = max(1, len(readings[0].questions))
    found = tuple(_answer(readings, number, limits, contraposition) for number in range(count))
    if may and count == 1 and found[0].answer.answer == "unknown":
        loose = loose or _loosely(pieces, readings[0], limits, learned)
        return found if loose is None else (loose,)
    return found


def _loosely(
    pieces: Sequence[str], reading: Reading, limits: Limits | None, learned: Callable[[], Learned]
) -> Reasoned | None:
    """The answer of a loose reading, by its rules or, failing these, with what was learned; None where it has none.

    It is marked as partial, with what it takes for granted. Where the grammar understood everything, only rules
    between phrases can tell more than it did.
    """
    for bring in (nothing_learned, learned):
        loose = read_loosely(pieces, reading.not_understood, bring)
        found = None if loose is None else _committed(loose, limits, bool(reading.not_understood))
        if found is not None:
            return found
    return None


def _committed(loose: Reading, limits: Limits | None, lost: bool) -> Reasoned | None:
    """The answer of a loose reading where it is true or false without contradiction; None where it is not."""
    question = loose.questions[0]
    answer = solve(loose.theory, question, limits)
    if answer.answer not in ("true", "false") or answer.contradictions:
        return None
    cited = {name for step in answer.steps for name in step.premises}
    bridges = [one.text for one in loose.theory.statements if one.id in cited and one.id.startswith("B")]
    if not (bridges or lost or len(loose.assumptions) > 1):
        return None
    assumptions = (*answer.assumptions, *loose.assumptions, *bridges)
    return Reasoned(question, replace(answer, status="partial", assumptions=assumptions), loose)


def _check(reading: Reading, pieces: Sequence[str]) -> None:
    """Refuse what no answer can be drawn from."""
    if reading.theory.statements:
        return
    lost = reading.not_understood
    if lost and not _is_english(pieces):
        raise NotEnglishError("this does not read as English", hint="premises and questions in plain English")
    premises = [one for one in lost if not one.text.endswith("?")]
    if reading.questions and not premises:
        raise NoPremisesError("there is a question but no premise", hint="say first what is known")
    if lost:
        first = lost[0]
        raise NothingUnderstoodError(
            f"no premise was understood: stopped at “{first.at}” in “{first.text[:80]}”",
            where=f"chars {first.start}-{first.end}",
            hint=f"nearest accepted form: {first.hint}",
        )
    raise NoPremisesError("there is no premise", hint="say first what is known")


def _is_english(pieces: Sequence[str]) -> bool:
    words = [token.lower for piece in pieces for sentence in segment(piece) for token in tokenize(sentence)]
    letters = [word for word in words if word[0].isalpha()]
    return sum(word in CLOSED or word in PREPOSITIONS for word in letters) * 8 >= len(letters) > 0


def _answer(readings: Sequence[Reading], number: int, limits: Limits | None, contraposition: bool) -> Reasoned:
    """The preferred reading's answer, and those of the others where they differ."""
    solved: list[tuple[Reading, Answer]] = []
    for reading in readings:
        question = reading.questions[number] if reading.questions else None
        solved.append((reading, _solve(reading, question, limits, contraposition)))
    first, answer = solved[0]
    others = tuple(pair for pair in solved[1:] if (pair[1].answer, pair[1].value) != (answer.answer, answer.value))
    status = answer.status
    if others:
        status = "ambiguous"
    if first.not_understood:
        status = "partial"
    assumptions = tuple(dict.fromkeys((*answer.assumptions, *first.assumptions)))
    question = first.questions[number] if first.questions else None
    return Reasoned(question, replace(answer, status=status, assumptions=assumptions), first, others)


def _solve(reading: Reading, question: Question | None, limits: Limits | None, contraposition: bool) -> Answer:
    if question is None:
        return solve(reading.theory, _EVERYTHING, limits)
    answer = solve(reading.theory, question, limits, contraposition=contraposition)
    if question.kind == "choice" and answer.value is None:
        guess = induce(reading.theory, question)
        if guess is not None:
            theory, assumed = guess
            again = solve(theory, question, limits)
            answer = replace(again, assumptions=(*again.assumptions, assumed))
    if question.kind == "value" and answer.value is not None:
        answer = replace(answer, value=", ".join(_singular(one, reading) for one in answer.value.split(", ")))
    if question.kind == "choice" and question.formula is None and question.text.lower().startswith("what"):
        answer = replace(answer, kind="value")
    return answer


def _singular(value: str, reading: Reading) -> str:
    """A kind in the singular, as a question for one is answered; a name stays."""
    kinds = {atom for one in reading.theory.statements for atom in one.text.lower().split()}
    if not value.islower() or value.startswith("the "):
        return value
    options = singulars(value, frozenset(kinds))
    return options[0] if options else value
