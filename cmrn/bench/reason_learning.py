"""What the reasoner learns: hidden rules from noisy examples, long chains from short ones, and kinship."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import random
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from cmrn.bench.hidden_rules import examples_of, f1, hidden_rules, long_chain, right_at_depth, shallow_examples
from cmrn.bench.kin import KinPath, draw_family, draw_path, functional_pairs
from cmrn.bench.report import Progress, Row
from cmrn.reasoning.compose import Table, compose, learn_compositions
from cmrn.reasoning.learn import Examples, Rule, learn_rules

__all__ = ["clutrr_rows", "depth_rows", "rule_rows"]

FLIPS = 0.1
SEEDS = 5
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

    The paths are those that the data set marks, not read from its stories.
    """
    with gzip.open(file) as packed:
        rows = csv.DictReader(io.TextIOWrapper(packed, "utf-8"))
        known = [(tuple(ast.literal_eval(row["edge_types"])), row["target_text"]) for row in rows]
    progress(f"compositions of kinship from {len(known):,} paths")
    short = learn_compositions(path for path in known if len(path[0]) < 4)
    found = [_kin_row("CLUTRR, learned at 2-3 hops, asked at 4", short, (p for p in known if len(p[0]) == 4))]
    table = learn_compositions(known)
    pairs = {pair: word for pair, word in functional_pairs(seed=seed).items() if pair in table}
    rng = random.Random(seed)
    for hops in LONGER:
        progress(f"own families, {hops} hops")
        drawn = [draw_path(rng, draw_family(rng), hops, pairs) for _ in range(MOST_DRAWS // (40 - 3 * hops))]
        asked = [(path.relations, path.target) for path in drawn if isinstance(path, KinPath)]
        found.append(_kin_row(f"own families, learned at 2-4 hops, asked at {hops}", table, asked))
    return found


def _kin_row(name: str, table: Table, asked: Iterable[Path_]) -> Row:
    """The share of paths whose ends are named rightly; those without an answer count as wrong."""
    pairs = [(compose(path, table), target) for path, target in asked]
    right = sum(found is not None and found.relation == target for found, target in pairs)
    answered = sum(found is not None for found, _ in pairs)
    detail = {"paths": len(pairs), "answered": answered, "compositions": len(table)}
    return Row(name, right / len(pairs) * 100 if pairs else None, "%", limit=100.0, detail=detail)
