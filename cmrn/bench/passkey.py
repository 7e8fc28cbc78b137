"""A number hidden in a long text and asked for at its end (Mohtashami and Jaggi 2023, "Landmark Attention", 4.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from cmrn.bench.memory_text import Hay, Question, hidden
from cmrn.data.encoding import TextEncoder
from cmrn.data.quizzes import KEY_FORM, KEY_QUESTION

__all__ = ["DEPTHS", "passkey_questions"]

DEPTHS = tuple((2 * place + 1) / 20 for place in range(10))
KEY = "pass key"


def passkey_questions(
    hay: Hay, length: int, tokenizer: TextEncoder, seed: int, depths: Sequence[float] = DEPTHS, each: int = 1
) -> list[Question]:
    """`each` texts of exactly `length` tokens for every depth, with a number of five digits of its own."""
    generator = random.Random(f"passkey {length} {seed}")
    questions = []
    for depth in depths:
        for _ in range(each):
            value = str(generator.randrange(10_000, 100_000))
            statement = KEY_FORM.format(key=KEY, value=value)
            start = generator.randrange(len(hay.tokens))
            asked = KEY_QUESTION.format(key=KEY)
            questions.append(hidden(hay, start, length, [(depth, statement)], asked, f" {value}", tokenizer))
    return questions
