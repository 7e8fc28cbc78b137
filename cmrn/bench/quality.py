"""`cmrn bench quality`: bits per byte of held-out text beside tuned Transformers, or recall (MQAR) beside attention.

Every figure is a training run of its own, in a process of its own; a run that stands in the results file is not
repeated, so several calls may fill one table. Each side's learning rate is the best of its own sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.counts import llama_of_equal_active, llama_of_equal_total
from cmrn.bench.launch import Machines, launch
from cmrn.bench.report import Progress, Report
from cmrn.bench.runs import Results, RunSpec
from cmrn.bench.settings import Setting, load_setting
from cmrn.bench.table import best_rates, quality_report
from cmrn.bench.text import prepare
from cmrn.bench.variants import cmrn_spec, llama_spec, sizes
from cmrn.errors import UsageError

__all__ = ["QualityOptions", "run", "text_specs"]

ADAMW_SHARE = 0.5
"""AdamW's rates are Muon's times this: its best lies lower (both are swept over as many)."""
OURS = "ours"


@dataclass(frozen=True)
class QualityOptions:
    """What to measure and where.

    variants: names of rows, all by default. seeds: how many, counted up from `seed`. rates: peak learning rates of the
    sweep; the setting's own without `sweep`. equal_time: also train each Llama for as long as ours takes. overrides:
    of the setting, `model.field=value` for ours and `training.field=value` for all. results: the file that runs
    collect in.
    """

    device: str | None = None
    setting: str = "e"
    task: str = "text"
    variants: tuple[str, ...] = ()
    seed: int = 1
    seeds: int = 3
    sweep: bool = False
    rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    equal_time: bool = False
    overrides: tuple[str, ...] = ()
    data_root: Path = Path(".")
    cache: Path = Path("runs/bench")
    results: Path | None = None
    gpus: int | None = None
    per_gpu: int = 1
    prepare_only: bool = False


def run(options: QualityOptions, progress: Progress) -> Report:
    """Do what runs are missing, then make the table.

    Raises:
        UsageError: an unknown setting or variant, or the texts are absent.
    """
    if options.task == "mqar":
        from cmrn.bench.mqar import run as recall

        return recall(options, progress)
    if options.task != "text":
        raise UsageError(f"no task {options.task!r}", where="--task", hint="--task text or --task mqar")
    setting = load_setting(options.setting, options.overrides)
    tokens = prepare(options.data_root, options.cache, setting.model.vocab_size, progress)
    if options.prepare_only:
        return Report("quality", "none", (), {"tokens": str(tokens)}, (f"tokens are in {tokens}",))
    specs = text_specs(setting, tokens.stem.rpartition("-")[2])
    chosen = choose(specs, options)
    results = Results(options.results)
    trained, failed = fill(chosen, options, results, tokens, progress)
    return quality_report("quality", trained, results, seeds_of(options), failed, OURS)


def choose(specs: dict[str, RunSpec], options: QualityOptions) -> dict[str, RunSpec]:
    """The variants asked for, with the first seed; ours always, as the figure the others stand beside.

    Raises:
        UsageError: a name is unknown.
    """
    names = options.variants
    unknown = [name for name in names if name not in specs]
    if unknown:
        raise UsageError(f"no variant {unknown[0]!r}", where="--variant", hint=f"there are {', '.join(specs)}")
    chosen = [name for name in specs if not names or name in (*names, OURS)]
    return {name: with_seed(specs[name], options.seed) for name in chosen}


def seeds_of(options: QualityOptions) -> tuple[int, ...]:
    """The seeds, in order."""
    return tuple(range(options.seed, options.seed + options.seeds))


def fill(
    specs: dict[str, RunSpec],
    options: QualityOptions,
    results: Results,
    tokens: Path | None,
    progress: Progress,
    *,
    largest: bool = False,
) -> tuple[dict[str, RunSpec], list[RunSpec]]:
    """Do the sweep, then every seed at each variant's best rate, then the runs of equal time.

    (the runs at their best rates, those of equal time added; the runs that failed). largest: whether a larger figure
    is better.
    """
    machines = _machines(options)
    failed = []
    if options.sweep:
        sweep = [spec.with_training(learning_rate=rate) for spec in specs.values() for rate in _rates(spec, options)]
        progress(f"sweep: {len(results.missing(sweep))} of {len(sweep)} runs to do")
        failed += launch(sweep, results, machines, tokens, progress)
    trained = best_rates(specs, results, largest=largest)
    failed += _seeds(trained, options, results, machines, tokens, progress)
    if options.equal_time and OURS in specs:
        timed = _equal_time(trained, results)
        failed += _seeds(timed, options, results, machines, tokens, progress)
        trained |= timed
    return trained, failed


def _seeds(
    specs: dict[str, RunSpec],
    options: QualityOptions,
    results: Results,
    machines: Machines,
    tokens: Path | None,
    progress: Progress,
) -> list[RunSpec]:
    runs = [with_seed(spec, seed) for seed in seeds_of(options) for spec in specs.values()]
    progress(f"{len(results.missing(runs))} of {len(runs)} runs to do")
    return launch(runs, results, machines, tokens, progress)


def _machines(options: QualityOptions) -> Machines:
    """The GPUs asked for or found; the CPU where there is none, with its cores shared out."""
    import torch

    found = 0 if options.device == "cpu" else torch.cuda.device_count()
    gpus = found if options.gpus is None else options.gpus
    if gpus > found:
        raise UsageError(f"{gpus} GPUs are asked for, {found} are there", where="--gpus")
    threads = 1 if gpus else max(1, torch.get_num_threads() // options.per_gpu)
    only = (options.device or "").partition(":")[2]
    return Machines(gpus, options.per_gpu, threads, only or None)


def with_seed(spec: RunSpec, seed: int) -> RunSpec:
    """The same run with another seed."""
    return RunSpec(spec.setting, spec.variant, seed, spec.model, spec.training, spec.data, spec.task)


def _rates(spec: RunSpec, options: QualityOptions) -> list[float]:
    share = ADAMW_SHARE if spec.training["optimizer"] == "adamw" else 1.0
    return [rate * share for rate in options.rates]


def _equal_time(specs: dict[str, RunSpec], results: Results) -> dict[str, RunSpec]:
    """Each Llama again, with as many steps as it can take in the seconds that ours trained."""
    ours = results.get(specs[OURS])
    timed = {}
    for name, spec in specs.items():
        theirs = results.get(spec)
        if ours is None or theirs is None or spec.model["kind"] != "llama":
            continue
        steps = round(theirs.steps * ours.seconds / theirs.seconds)
        again = spec.with_training(max_steps=max(steps, spec.training["warmup_steps"] + 1))
        timed[f"{name}, equal time"] = RunSpec(
            again.setting, f"{name}, equal time", again.seed, again.model, again.training, again.data
        )
    return timed


def text_specs(setting: Setting, data: str) -> dict[str, RunSpec]:
    """The rows of the table, by name, with seed 1 and the setting's own learning rate.

    The Llamas keep documents apart, as ours does, which serves them; `packed` ones read across them, which is faster.
    Reading on, rows continue those of the batch before, with the state they left.
    """
    config, length = setting.model, setting.training.sequence_length
    ours = cmrn_spec(config)
    size = sizes(ours)
    reads = len(config.reading_blocks)
    equal = llama_of_equal_active(config, size["active"])
    spread = tuple((2 * i + 1) * equal.layers // (2 * reads) for i in range(reads)) if reads else ()
    window = config.working_memory or length

    def llama(total: bool = False, narrow: bool = False, **options: object) -> dict[str, object]:
        chosen = {"mask_documents": True, "dropout": config.dropout, **options}
        if total:
            return llama_spec(llama_of_equal_total(config, size["active"], size["total"], **chosen))
        shape = config.model_copy(update={"d_model": config.d_model // 4 * 3}) if narrow else config
        return llama_spec(llama_of_equal_active(shape, size["active"], **chosen))

    models = {
        OURS: (ours, "muon"),
        "ours, W = 0": (cmrn_spec(config, working_memory=0), "muon"),
        "ours, W = T": (cmrn_spec(config, working_memory=length), "muon"),
        "Llama, Muon": (llama(), "muon"),
        "Llama, AdamW": (llama(), "adamw"),
        "Llama + conv": (llama(conv=True), "muon"),
        "Llama, packed": (llama(mask_documents=False), "muon"),
        "Llama + conv, packed": (llama(conv=True, mask_documents=False), "muon"),
        "Llama, narrower and deeper": (llama(narrow=True), "muon"),
        "Llama, equal total": (llama(total=True), "muon"),
        f"Llama, window {window}": (llama(window=window, full_layers=spread), "muon"),
    }
    training = setting.training.model_dump(mode="json")
    specs = {
        name: RunSpec(setting.name, name, 1, model, {**training, "optimizer": optimizer}, data)
        for name, (model, optimizer) in models.items()
    }
    other = "ours, each row afresh" if setting.training.carry_states else "ours, reading on"
    again = specs[OURS].with_training(carry_states=not setting.training.carry_states)
    specs[other] = RunSpec(setting.name, other, 1, again.model, again.training, data)
    return specs
