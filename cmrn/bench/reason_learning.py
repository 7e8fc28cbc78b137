"""What the reasoner learns: hidden rules from noisy examples, long chains from short ones, and kinship."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.hidden_rules import examples_of, f1, hidden_rules, long_chain, right_at_depth, shallow_examples
from cmrn.bench.kin import KinPath, draw_family, draw_path, functional_pairs
from cmrn.bench.report import Progress, Row
from cmrn.reasoning.compose import Table, compose, learn_compositions
from cmrn.reasoning.kinship import read_kin, relate
from cmrn.reasoning.learn import Examples, Rule, learn_rules

__all__ = ["clutrr_rows", "depth_rows", "rule_rows"]

FLIPS = 0.1
SEEDS = 5
FOLDS = 5
DEPTH, DEEPEST = 3, 25
LONGER = (5, 6, 8, 10)
MOST_DRAWS = 3_000
Path_ = tuple[tuple[str, ...], str]


def rule_rows(seed: int, progress: Progress) -> list[Row]:
    """F1 of 20 hidden rules from 200 examples of which one observation in ten is wrong, over five seeds."""
    scores, times = [], []
    for number in range(SEEDS):
        hidden = hidden_rules(seed + number)
        started = time.perf_counter()
        learned = _learned(examples_of(hidden, 200, FLIPS, seed + number))
        times.append(time.perf_counter() - started)
        scores.append(f1(hidden, learned) * 100)
        progress(f"20 hidden rules, seed {seed + number}: F1 {scores[-1]:.1f} %")
    detail = {"scores": scores, "seconds": times, "flips": FLIPS, "examples": 200}
    return [
        Row("20 hidden rules from 200 noisy examples: F1", statistics.mean(scores), "%", limit=100.0,
            spread=statistics.stdev(scores), detail=detail),
    ]  # fmt: skip


def depth_rows(seed: int, progress: Progress) -> list[Row]:
    """Chains learned where no example shows more than three steps, asked at 25."""
    shares = []
    for number in range(SEEDS):
        hidden = long_chain(seed + number, DEEPEST)
        learned = _learned(shallow_examples(hidden, 600, FLIPS, seed + number, DEPTH))
        shares.append(right_at_depth(hidden, sorted(learned), 200, seed + number) * 100)
        progress(f"trained at depth {DEPTH}, seed {seed + number}: right at depth {DEEPEST} {shares[-1]:.1f} %")
    detail = {"shares": shares, "flips": FLIPS, "examples": 600}
    return [
        Row(f"trained at depth {DEPTH}, right at depth {DEEPEST}", statistics.mean(shares), "%", limit=100.0,
            spread=statistics.stdev(shares), detail=detail),
    ]  # fmt: skip


def _learned(examples: Examples) -> set[Rule]:
    return {(rule.body, rule.head) for rule in learn_rules(examples, flips=FLIPS, depth=DEPTH)}


def clutrr_rows(file: Path, seed: int, progress: Progress) -> list[Row]:
    """Compositions of kinship learned from CLUTRR's paths, judged on longer ones: its own, and those of our families.

    First by the paths that the data set marks, then from its stories as they are told.
    """
    told = _stories(file)
    known = [(story.path, story.target) for story in told]
    progress(f"compositions of kinship from {len(known):,} paths")
    short = learn_compositions(path for path in known if len(path[0]) < 4)
    found = [_kin_row("CLUTRR, learned at 2-3 hops, asked at 4", short, (p for p in known if len(p[0]) == 4))]
    found += _told_rows(told)
    table = learn_compositions(known)
    pairs = {pair: word for pair, word in functional_pairs(seed=seed).items() if pair in table}
    rng = random.Random(seed)
    for hops in LONGER:
        progress(f"own families, {hops} hops")
        drawn = [draw_path(rng, draw_family(rng), hops, pairs) for _ in range(MOST_DRAWS // (40 - 3 * hops))]
        asked = [(path.relations, path.target) for path in drawn if isinstance(path, KinPath)]
        found.append(_kin_row(f"own families, learned at 2-4 hops, asked at {hops}", table, asked))
    return found


@dataclass(frozen=True)
class _Told:
    """A story, who is asked about (what is the second to the first?), its marked path, and the answer."""

    text: str
    one: str
    two: str
    path: tuple[str, ...]
    target: str


def _stories(file: Path) -> list[_Told]:
    """CLUTRR's stories without the brackets that mark their names."""
    with gzip.open(file) as packed:
        rows = csv.DictReader(io.TextIOWrapper(packed, "utf-8"))
        told = []
        for row in rows:
            one, two = ast.literal_eval(row["query"])
            text = row["story"].replace("[", "").replace("]", "")
            told.append(_Told(text, one, two, tuple(ast.literal_eval(row["edge_types"])), row["target_text"]))
    return told


def _told_rows(told: list[_Told]) -> list[Row]:
    """Stories by their number of hops, each with compositions from paths of 2-3 hops of the other four fifths."""
    said: dict[int, list[tuple[bool, bool, bool]]] = defaultdict(list)
    for fold in range(FOLDS):
        rest = (story for at, story in enumerate(told) if at % FOLDS != fold)
        table = learn_compositions((story.path, story.target) for story in rest if len(story.path) < 4)
        for story in told[fold::FOLDS]:
            read = read_kin(story.text, (story.one, story.two))
            answer = relate(read, story.one, story.two, table)
            sure = not read.lost and not any(fact.guessed for fact in read.facts)
            right = answer is not None and answer.relation == story.target
            said[len(story.path)].append((right, answer is not None, sure))
    rows = []
    for hops, outcomes in sorted(said.items()):
        answered = [right for right, any_, _ in outcomes if any_]
        unmarked = [right for right, any_, sure in outcomes if any_ and sure]
        detail = {"stories": len(outcomes), "answered": len(answered), "right": sum(answered),
                  "unmarked": len(unmarked), "unmarked_right": sum(unmarked)}  # fmt: skip
        name = f"CLUTRR stories from text, {hops} hops"
        rows.append(Row(f"{name}: right", sum(answered) / len(outcomes) * 100, "%", limit=100.0, detail=detail))
        share = sum(unmarked) / len(unmarked) * 100 if unmarked else None
        rows.append(Row(f"{name}: right of those answered without a mark", share, "%", limit=100.0))
    return rows


def _kin_row(name: str, table: Table, asked: Iterable[Path_]) -> Row:
    """The share of paths whose ends are named rightly; those without an answer count as wrong."""
    pairs = [(compose(path, table), target) for path, target in asked]
    right = sum(found is not None and found.relation == target for found, target in pairs)
    answered = sum(found is not None for found, _ in pairs)
    detail = {"paths": len(pairs), "answered": answered, "compositions": len(table)}
    return Row(name, right / len(pairs) * 100 if pairs else None, "%", limit=100.0, detail=detail)
