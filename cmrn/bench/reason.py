"""`cmrn bench reason`: how many questions are answered, how many of those rightly, how long one takes, and more.

A question counts as answered where every sentence was understood. Public development sets are read where the data
root has them; our own problems (`theories.py`) are always there. Other cases: speed beside clingo, what is learned, and
random theories beside z3 and clingo.
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
from cmrn.errors import CMRNError, UsageError
from cmrn.reasoning.learned import nothing_learned, shipped
from cmrn.reasoning.reason import examine

__all__ = ["CASES", "Judged", "Posed", "ReasonOptions", "judge", "run", "shared_sets"]

CASES = ("questions", "speed", "rules", "depth", "clutrr", "folio")
LIMIT_MS = 5.0
_FORWARD_ONLY = frozenset({"ProofWriter OWA D5"})
"""Sets whose answers were made by running rules forward alone; classical logic knows more than they say."""
_TAUGHT = frozenset({"FOLIO"})
"""Sets whose annotations taught what is shipped; here they are read by rules alone, and judged in the case `folio`."""
_LABELS = {"A": "true", "B": "false", "C": "unknown"}


@dataclass(frozen=True)
class ReasonOptions:
    """Where the sets are, how many of each to ask, and how many problems of each of our own families to make.

    cases: what is measured, of CASES. theories: how many random theories to compare with z3 and clingo, from the seed
    `first` on, so that many can be compared in parts.
    """

    data_root: Path = Path(".")
    limit: int = 200
    own: int = 50
    deepest: int = 25
    seed: int = 1
    cases: tuple[str, ...] = ("questions",)
    theories: int = 0
    first: int = 0


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
    """Measure the cases asked for and make the table.

    Raises:
        UsageError: there is no such case, or the set it needs is not under the data root.
        MissingExtraError: z3 or clingo is needed and not installed.
        GuaranteeError: a random theory is answered otherwise than by them.
    """
    unknown = [case for case in options.cases if case not in CASES]
    if unknown:
        raise UsageError(f"no case {unknown[0]!r}", where="--case", hint=f"one of {', '.join(CASES)}")
    rows: list[Row] = []
    notes: list[str] = []
    if options.theories:
        from cmrn.bench.agreement import theory_rows

        rows += theory_rows(options.theories, options.first, progress)
    for case in options.cases:
        rows += _question_rows(options, progress, notes) if case == "questions" else _case_rows(case, options, progress)
    settings = {"limit": options.limit, "own": options.own, "deepest": options.deepest, "seed": options.seed}
    return Report("reason", "CPU", tuple(rows), settings, tuple(notes))


def _case_rows(case: str, options: ReasonOptions, progress: Progress) -> list[Row]:
    if case == "speed":
        from cmrn.bench.reason_speed import speed_rows

        return speed_rows(options.seed, progress)
    from cmrn.bench import reason_learning

    if case == "rules":
        return reason_learning.rule_rows(options.seed, progress)
    if case == "depth":
        return reason_learning.depth_rows(options.seed, progress)
    if case == "folio":
        from cmrn.bench.reason_folio import folio_rows

        return folio_rows(_shared(options.data_root, "folio_train.jsonl.gz"), progress)
    return reason_learning.clutrr_rows(_shared(options.data_root, "clutrr_hops2to4.csv.gz"), options.seed, progress)


def _shared(root: Path, name: str) -> Path:
    """A public set's file.

    Raises:
        UsageError: it is not under the data root.
    """
    folder = _folder(root)
    if folder is None or not (folder / name).is_file():
        raise UsageError(f"{name} is not here", where="--data-root", hint="the folder of reasoning/")
    return folder / name


def _question_rows(options: ReasonOptions, progress: Progress, notes: list[str]) -> list[Row]:
    """Every public set that is there, then our own problems."""
    rows: list[Row] = []
    notes.append(
        "answered: every sentence understood; right: of those answered. Times are of one question, proof included."
    )
    notes += [f"{name}: read without what its annotations taught; see --case folio." for name in sorted(_TAUGHT)]
    notes += [f"{name}: rules run forward alone, as its answers were made." for name in sorted(_FORWARD_ONLY)]
    found = list(shared_sets(options))
    if not found:
        notes.append("No public set is here: --data-root names the folder that holds reasoning/.")
    for name, posed in found:
        progress(f"{name}: {len(posed)} questions")
        rows += _rows(name, posed, contraposition=name not in _FORWARD_ONLY, learned=name not in _TAUGHT)
    made = problems(options.seed, options.own, options.deepest)
    for family in FAMILIES:
        chosen = [Posed(one.text, one.answer) for one in made if one.family == family]
        progress(f"own, {family}: {len(chosen)} questions")
        rows += _rows(f"own, {family}", chosen)
    return rows


def judge(posed: Posed, *, contraposition: bool = True, learned: bool = True) -> Judged:
    """The last question of a text, answered and compared. learned: whether a loose reading may use what was learned."""
    brought = shipped if learned else nothing_learned
    started = time.perf_counter()
    try:
        answer = examine(posed.text, contraposition=contraposition, learned=brought)[-1].answer
    except CMRNError:
        return Judged(False, False, False, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    said = answer.answer or answer.value or "unknown"
    right = said == posed.answer or said.startswith(f"{posed.answer})")
    return Judged(answer.status != "partial", right, said in ("true", "false"), seconds)


def _rows(name: str, posed: list[Posed], *, contraposition: bool = True, learned: bool = True) -> list[Row]:
    judged = [judge(one, contraposition=contraposition, learned=learned) for one in posed]
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
    folder = _folder(options.data_root)
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


def _folder(root: Path) -> Path | None:
    """The folder of the public sets under a data root, None where there is none."""
    return next((one / "reasoning" for one in (root, root / "data") if (one / "reasoning").is_dir()), None)


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
