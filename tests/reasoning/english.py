"""Short ways to read a sentence and to ask a text."""

from __future__ import annotations

from cmrn.reasoning.parse import read
from cmrn.reasoning.proof import Answer
from cmrn.reasoning.reason import reason
from cmrn.reasoning.verbalise import say


def said(text: str) -> list[str]:
    """What each premise of the preferred reading says; everything must be understood, in one way."""
    readings = read(text)
    assert len(readings) == 1, [[say(one.formula) for one in r.theory.statements] for r in readings]
    assert not readings[0].not_understood, readings[0].not_understood
    return [say(one.formula) for one in readings[0].theory.statements if one.id.startswith("P")]


def lost(text: str) -> list[tuple[str, str]]:
    """(the sentence, the word it failed at) of all that was not understood."""
    return [(one.text, one.at) for one in read(text)[0].not_understood]


def ask(text: str, world: str = "open") -> Answer:
    """The answer to the one question."""
    return reason(text, "closed" if world == "closed" else "open")
