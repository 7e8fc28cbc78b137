"""`cmrn bench reason`: how many questions are answered, how many of those rightly, and how long one takes.

A question counts as answered where every sentence was understood. Public development sets are read where the data
root has them; our own problems (`theories.py`) are always there.
"""

from __future__ import annotations

import gzip
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.report import Progress, Report, Row
from cmrn.bench.theories import FAMILIES, problems
from cmrn.errors import CMRNError
from cmrn.reasoning.reason import examine

__all__ = ["Judged", "Posed", "ReasonOptions", "judge", "run", "shared_sets"]

LIMIT_MS = 5.0
_FORWARD_ONLY = frozenset({"ProofWriter OWA D5"})
"""Sets whose answers were made by running rules forward alone; classical logic knows more than they say."""
_LABELS = {"A": "true", "B": "false", "C": "unknown"}


@dataclass(frozen=True)
class ReasonOptions:
    """Where the sets are, how many of each to ask, and how many problems of each of our own families to make."""

    data_root: Path = Path(".")
    limit: int = 200
    own: int = 50
    deepest: int = 25
    seed: int = 1


@dataclass(frozen=True)
class Posed:
    """A text with its question and the right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Judged:
    """What came of one: whether it was answered, rightly, with a commitment to true or false, and in what time."""

    answered: bool
    right: bool
    committed: bool
    seconds: float


def run(options: ReasonOptions, progress: Progress) -> Report:
    """Ask every set, then our own problems, and make the table."""
    rows: list[Row] = []
    notes = [
        "answered: every sentence understood; right: of those answered. Times are of one question, proof included."
    ]
    notes += [f"{name}: rules run forward alone, as its answers were made." for name in sorted(_FORWARD_ONLY)]
    found = list(shared_sets(options))
    if not found:
        notes.append("No public set is here: --data-root names the folder that holds reasoning/.")
    for name, posed in found:
        progress(f"{name}: {len(posed)} questions")
        rows += _rows(name, posed, contraposition=name not in _FORWARD_ONLY)
    made = problems(options.seed, options.own, options.deepest)
    for family in FAMILIES:
        chosen = [Posed(one.text, one.answer) for one in made if one.family == family]
        progress(f"own, {family}: {len(chosen)} questions")
        rows += _rows(f"own, {family}", chosen)
    settings = {"limit": options.limit, "own": options.own, "deepest": options.deepest, "seed": options.seed}
    return Report("reason", "CPU, one thread", tuple(rows), settings, tuple(notes))


def judge(posed: Posed, *, contraposition: bool = True) -> Judged:
    """The last question of a text, answered and compared."""
    started = time.perf_counter()
    try:
        answer = examine(posed.text, contraposition=contraposition)[-1].answer
    except CMRNError:
        return Judged(False, False, False, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    said = answer.answer or answer.value or "unknown"
    right = said == posed.answer or said.startswith(f"{posed.answer})")
    return Judged(answer.status != "partial", right, said in ("true", "false"), seconds)


def _rows(name: str, posed: list[Posed], *, contraposition: bool = True) -> list[Row]:
    judged = [judge(one, contraposition=contraposition) for one in posed]
    answered = [one for one in judged if one.answered]
    committed = [one for one in answered if one.committed]
    share = sum(one.right for one in answered) / len(answered) * 100 if answered else None
    sure = sum(one.right for one in committed) / len(committed) * 100 if committed else None
    detail = {"questions": len(judged), "answered": len(answered), "committed": len(committed), "committed_right": sure}
    times = [one.seconds * 1e3 for one in judged]
    return [
        Row(f"{name}: right", share, "%", limit=100.0, detail=detail),
        Row(f"{name}: answered", len(answered) / len(judged) * 100, "%", limit=100.0),
        Row(f"{name}: median time", statistics.median(times), "ms", limit=LIMIT_MS),
    ]


def shared_sets(options: ReasonOptions) -> Iterator[tuple[str, list[Posed]]]:
    """The public sets that are there, each with its first `limit` questions."""
    roots = (options.data_root, options.data_root / "data")
    folder = next((root / "reasoning" for root in roots if (root / "reasoning").is_dir()), None)
    if folder is None:
        return
    readers: tuple[tuple[str, str, Callable[[Path], Iterator[Posed]]], ...] = (
        ("ProntoQA 5 hops", "prontoqa_5hop_dev.json.gz", _labelled),
        ("ProofWriter OWA D5", "proofwriter_owa_d5_dev.json.gz", _labelled),
        ("LogicalDeduction", "logical_deduction_train.json.gz", _options),
        ("bAbI 15", "qa15_basic-deduction_train.txt", _babi),
        ("bAbI 16", "qa16_basic-induction_train.txt", _babi),
        ("FOLIO", "folio_train.jsonl.gz", _folio),
    )
    for name, file, read in readers:
        if (folder / file).is_file():
            yield name, [posed for _, posed in zip(range(options.limit), read(folder / file), strict=False)]


def _labelled(path: Path) -> Iterator[Posed]:
    for one in json.loads(gzip.decompress(path.read_bytes())):
        yield Posed(f"{one['context']}\n{one['question']}", _LABELS[one["answer"]])


def _options(path: Path) -> Iterator[Posed]:
    for one in json.loads(gzip.decompress(path.read_bytes())):
        yield Posed("\n".join([one["context"], one["question"], *one["options"]]), one["answer"])


def _babi(path: Path) -> Iterator[Posed]:
    """Each question with the lines of its story before it; its answer is the second column."""
    story: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number, _, said = line.partition(" ")
        story = [] if number == "1" else story
        question, *answer = said.split("\t")
        if answer:
            yield Posed("\n".join([*story, question.strip()]), answer[0])
        else:
            story.append(said)


def _folio(path: Path) -> Iterator[Posed]:
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        one = json.loads(line)
        sentences = [premise.strip().removesuffix(".") + "." for premise in one["premises"]]
        yield Posed("\n".join([*sentences, f"True or false: {one['conclusion']}"]), one["label"].lower())
