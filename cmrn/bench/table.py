"""From collected runs to the rows of a report: best learning rates, means over seeds, paired gaps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cmrn.bench.report import Report, Row
from cmrn.bench.runs import Result, Results, RunSpec

__all__ = ["ablation_report", "best_rates", "gather", "quality_report", "spread"]

NO_GDN = (
    "fla's Gated DeltaNet is not among the peers: its backward refuses Triton 3.4 to 3.7.0 on Hopper, where it would "
    "be wrong."
)


def best_rates(specs: Mapping[str, RunSpec], results: Results, *, largest: bool = False) -> dict[str, RunSpec]:
    """Each variant at the learning rate that gave seed 1 its best mean; at its own rate where none was tried."""
    best = {}
    for name, spec in specs.items():
        tried = {rate: found for rate in results.rates(spec) if (found := _at(spec, rate, results)) is not None}
        chosen = min(tried, key=lambda rate: _badness(tried[rate], largest), default=spec.rate)
        best[name] = spec.with_training(learning_rate=chosen)
    return best


def _at(spec: RunSpec, rate: float, results: Results) -> Result | None:
    return results.get(spec.with_training(learning_rate=rate))


def _badness(result: Result, largest: bool) -> float:
    mean = result.figures["mean"]
    if not math.isfinite(mean):
        return math.inf
    return -mean if largest else mean


def gather(spec: RunSpec, results: Results, seeds: Iterable[int]) -> dict[int, Result]:
    """The results of a run's seeds, by seed."""
    found = {}
    for seed in seeds:
        result = results.get(RunSpec(spec.setting, spec.variant, seed, spec.model, spec.training, spec.data, spec.task))
        if result is not None:
            found[seed] = result
    return found


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None for fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def quality_report(
    bench: str,
    specs: Mapping[str, RunSpec],
    results: Results,
    seeds: Sequence[int],
    failed: Sequence[RunSpec],
    base: str,
    unit: str = "bits/byte",
) -> Report:
    """A row for each figure of `base` beside each other variant's, and one for each variant's speed."""
    runs = {name: gather(spec, results, seeds) for name, spec in specs.items()}
    rows: list[Row] = []
    for name, found in runs.items():
        if name != base and found and runs[base]:
            rows += _beside(runs[base], name, found, unit)
            rows += _with_context(runs[base], name, found, unit)
    if not rows and runs[base]:
        rows += [*_alone(runs[base], unit), *_with_context(runs[base], base, runs[base], unit)]
    rows += [_speed(name, found, runs[base], specs[name], results) for name, found in runs.items() if found]
    some = next((result for found in runs.values() for result in found.values()), None)
    return Report(
        bench,
        some.where.get("device", "unknown") if some else "none",
        tuple(rows),
        _settings(specs[base], runs),
        (*_notes(specs, runs, results), *(f"failed: {spec.variant}, seed {spec.seed}" for spec in failed)),
    )


def ablation_report(
    specs: Mapping[str, RunSpec], results: Results, seeds: Sequence[int], failed: Sequence[RunSpec], base: str
) -> Report:
    """For each part, the mean without it beside the mean with it: what it was worth is in the detail."""
    runs = {name: gather(spec, results, seeds) for name, spec in specs.items()}
    whole = runs[base]
    rows: list[Row] = []
    for name, found in runs.items():
        if not found or not whole:
            continue
        figures = [run.figures["mean"] for run in found.values()]
        gaps = [found[seed].figures["mean"] - whole[seed].figures["mean"] for seed in found if seed in whole]
        detail = {
            "worth": statistics.mean(gaps) if gaps else None,
            "worth_spread": spread(gaps),
            "domains": {
                domain: statistics.mean(run.figures[domain] for run in found.values())
                for domain in next(iter(found.values())).figures
            },
        }
        peer = statistics.mean(run.figures["mean"] for run in whole.values())
        rows.append(Row(name, statistics.mean(figures), "bits/byte", base, peer, None, spread(figures), detail))
    rows += [_speed(name, found, whole, specs[name], results) for name, found in runs.items() if found]
    some = next((result for found in runs.values() for result in found.values()), None)
    notes = (
        "Each part is taken out or changed and the model trained anew, with the seeds and the learning rate of the "
        "whole (swept apart with --sweep). The events have no row: they are read off the state and feed nothing back.",
        *(_notes(specs, runs, results)[2:]),
        *(f"failed: {spec.variant}, seed {spec.seed}" for spec in failed),
    )
    device = some.where.get("device", "unknown") if some else "none"
    return Report("ablate", device, tuple(rows), _settings(specs[base], runs), notes)


def _beside(ours: Mapping[int, Result], name: str, theirs: Mapping[int, Result], unit: str) -> list[Row]:
    """The mean first, then each domain; gaps are taken seed by seed."""
    figures = next(iter(ours.values())).figures
    rows = []
    for figure in sorted(figures, key=lambda each: (each != "mean", each)):
        mine, other = ([run.figures[figure] for run in runs.values()] for runs in (ours, theirs))
        paired = [(ours[seed].figures[figure], theirs[seed].figures[figure]) for seed in ours if seed in theirs]
        gaps = [100 * (a / b - 1) for a, b in paired]
        detail: dict[str, Any] = {
            "seeds": len(mine),
            "peer_seeds": len(other),
            "peer_spread": spread(other),
            "gap_percent": statistics.mean(gaps) if gaps else None,
            "gap_spread": spread(gaps),
        }
        rows.append(Row(figure, statistics.mean(mine), unit, name, statistics.mean(other), None, spread(mine), detail))
    return rows


def _alone(ours: Mapping[int, Result], unit: str) -> list[Row]:
    figures = next(iter(ours.values())).figures
    values = {figure: [run.figures[figure] for run in ours.values()] for figure in figures}
    return [Row(name, statistics.mean(each), unit, spread=spread(each)) for name, each in values.items()]


def _with_context(ours: Mapping[int, Result], name: str, theirs: Mapping[int, Result], unit: str) -> list[Row]:
    """The mean with what lies before a window as context: states carried, or windows that overlap by half."""
    mine, other = ([run.carried["mean"] for run in runs.values() if run.carried] for runs in (ours, theirs))
    if not mine or not other:
        return []
    paired = [(ours[seed].carried, theirs[seed].carried) for seed in ours if seed in theirs]
    gaps = [100 * (a["mean"] / b["mean"] - 1) for a, b in paired if a and b]
    detail = {
        "peer_spread": spread(other),
        "gap_percent": statistics.mean(gaps) if gaps else None,
        "gap_spread": spread(gaps),
    }
    return [
        Row("mean, more context", statistics.mean(mine), unit, name, statistics.mean(other), None, spread(mine), detail)
    ]


def _speed(name: str, found: Mapping[int, Result], ours: Mapping[int, Result], spec: RunSpec, results: Results) -> Row:
    """Training tokens a second of a variant beside ours, with what the run was."""
    speeds = [run.tokens_per_s for run in found.values()]
    mine = [run.tokens_per_s for run in ours.values()]
    first = next(iter(found.values()))
    tried = sorted(results.rates(spec))
    detail = {
        **first.sizes,
        "learning_rate": spec.rate,
        "rates_tried": tried,
        "steps": first.steps,
        "tokens": first.tokens,
        "seconds": statistics.mean(run.seconds for run in found.values()),
        "commits": sorted({run.where.get("commit", "unknown") for run in found.values()}),
        "code": sorted({run.where.get("code", "unknown") for run in found.values()}),
    }
    return Row(f"training, {name}", statistics.mean(speeds), "tokens/s", "ours",
               statistics.mean(mine) if mine else None, None, spread(speeds), detail)  # fmt: skip


def _settings(spec: RunSpec, runs: Mapping[str, Mapping[int, Result]]) -> dict[str, Any]:
    everything = [result for found in runs.values() for result in found.values()]
    return {
        "setting": spec.setting,
        "data": spec.data,
        "model": spec.model,
        "training": spec.training,
        "commits": sorted({result.where.get("commit", "unknown") for result in everything}),
        "versions": next(({k: v for k, v in result.where.items() if k != "code"} for result in everything), {}),
    }


def _notes(specs: Mapping[str, RunSpec], runs: Mapping[str, Mapping[int, Result]], results: Results) -> list[str]:
    notes = []
    if any(spec.task == "text" for spec in specs.values()):
        notes += [
            "Held-out documents are read in windows of the training length, from nothing in each. `more context`: ours "
            "carries its state from window to window, at no further cost; a Llama reads windows that overlap by half, "
            "whose second half is scored, at twice the work.",
            NO_GDN,
        ]
    for name, spec in specs.items():
        tried = sorted(results.rates(spec))
        if len(tried) > 2 and spec.rate in (tried[0], tried[-1]):
            notes.append(f"{name}: its best learning rate, {spec.rate:g}, lies at the edge of its sweep.")
    counts = {len(found) for found in runs.values() if found}
    if len(counts) > 1:
        notes.append("Not every variant has all its seeds.")
    return notes
