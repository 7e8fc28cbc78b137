"""For a sentence that was not understood: the nearest form that would be."""

from __future__ import annotations

from collections.abc import Sequence

from cmrn.reasoning.segment import Token

__all__ = ["nearest_form"]

_BY_WORD = {
    "most": "all, some or no: “most” has no place in a proof", "many": "all, some or no", "few": "some or no",
    "several": "some", "usually": "a rule without exceptions", "often": "a rule without exceptions",
    "sometimes": "some", "generally": "a rule without exceptions", "typically": "a rule without exceptions",
    "rarely": "no, or some", "probably": "a plain statement", "possibly": "a plain statement",
    "perhaps": "a plain statement", "maybe": "a plain statement", "likely": "a plain statement",
    "almost": "all, some or no", "nearly": "all, some or no", "may": "can", "might": "can", "because": "A. B.",
    "although": "A, but B", "though": "A, but B", "while": "A, and B", "except": "All A that are not B are C",
    "unless": "A unless B", "if": "If A then B", "than": "A is BIGGER than B", "there": "There is a A that is B",
    "whose": "who have", "his": "a name with 's", "her": "a name with 's", "their": "a name with 's",
    "its": "a name with 's", "everything": "Everything that is A is B", "not": "A is not B",
}  # fmt: skip


def nearest_form(tokens: Sequence[Token], at: int) -> str:
    """A form of sentence that is accepted and comes nearest to the one at hand."""
    words = [token.lower for token in tokens]
    for word in (words[at], *words):
        if word in _BY_WORD:
            return _BY_WORD[word]
    if words[0] in ("every", "each", "any"):
        return "Every A is B"
    if words[0] in ("all", "no", "some"):
        return f"{words[0].capitalize()} As are Bs"
    if words[0] in ("either", "neither"):
        return "A is either B or C"
    return "A is B, A VERBs B, all As are Bs, or if A then B"
