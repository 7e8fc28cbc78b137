"""Key-value retrieval: one of 75 random identifiers is asked for (Liu et al. 2023, "Lost in the Middle")."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cmrn.bench.memory_text import Question
from cmrn.data.encoding import TextEncoder
from cmrn.data.quizzes import PAIR_QUESTION, PAIRS_BEGIN, pairs_object
from cmrn.errors import DataError, UsageError

__all__ = ["pair_questions", "read_pairs"]

FILE = "kv_retrieval_75.jsonl.gz"
Pairs = tuple[tuple[tuple[str, str], ...], str, str]


def read_pairs(folder: Path) -> tuple[Pairs, ...]:
    """(records, key asked for, its value) of every line.

    Raises:
        UsageError: the file is not there.
        DataError: a line is not of that form.
    """
    path = folder / FILE
    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="--data-root names the folder that holds long_context")
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                records = tuple((str(key), str(value)) for key, value in fields["ordered_kv_records"])
                found.append((records, str(fields["key"]), str(fields["value"])))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"not a record of keys and values: {error}", where=f"{path}:{number}") from error
    return tuple(found)


def pair_questions(pairs: Sequence[Pairs], tokenizer: TextEncoder, seed: int, count: int) -> list[Question]:
    """`count` of the records as texts, the key asked for at the end."""
    generator = random.Random(f"pairs {seed}")
    questions = []
    for records, key, value in generator.sample(list(pairs), min(count, len(pairs))):
        text = PAIRS_BEGIN + pairs_object(records) + "\n\n" + PAIR_QUESTION.format(key=key)
        asked, told = (np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch([text, value]))
        questions.append(Question(np.concatenate([asked, told]), len(told)))
    return questions
