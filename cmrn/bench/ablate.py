"""`cmrn bench ablate`: what each part of the model is worth, by training it without that part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cmrn.bench.quality import OURS, QualityOptions, choose, fill, seeds_of
from cmrn.bench.report import Progress, Report
from cmrn.bench.runs import Results, RunSpec
from cmrn.bench.settings import Setting, load_setting
from cmrn.bench.table import ablation_report, best_rates
from cmrn.bench.text import prepare
from cmrn.bench.variants import cmrn_spec

__all__ = ["AblateOptions", "ablation_specs", "run"]


@dataclass(frozen=True)
class AblateOptions(QualityOptions):
    """As those of quality; the variants are parts."""


def run(options: AblateOptions, progress: Progress) -> Report:
    """Do what runs are missing, then print what each part was worth in bits per byte and in speed.

    Without a sweep every part is tried at the best learning rate that the results hold for the whole model.

    Raises:
        UsageError: an unknown setting or part, or the texts are absent.
    """
    setting = load_setting(options.setting, options.overrides)
    tokens = prepare(options.data_root, options.cache, setting.model.vocab_size, progress)
    if options.prepare_only:
        return Report("ablate", "none", (), {"tokens": str(tokens)}, (f"tokens are in {tokens}",))
    specs = choose(ablation_specs(setting, tokens.stem.rpartition("-")[2]), options)
    results = Results(options.results)
    rate = best_rates({OURS: specs[OURS]}, results)[OURS].rate
    specs = {name: spec.with_training(learning_rate=rate) for name, spec in specs.items()}
    trained, failed = fill(specs, options, results, tokens, progress)
    return ablation_report(trained, results, seeds_of(options), failed, OURS)


def ablation_specs(setting: Setting, data: str) -> dict[str, RunSpec]:
    """The whole model and, by name, the same with one part off or changed; all else, the rate included, as it is."""
    config = setting.model
    models = {
        OURS: cmrn_spec(config),
        "temporal layers off": cmrn_spec(config, ["no-temporal"]),
        "memory off": cmrn_spec(config, working_memory=0),
        "routing by hash": cmrn_spec(config, routing_strategy="hash"),
        "routing at random": cmrn_spec(config, routing_strategy="random"),
        "no domain labels": cmrn_spec(config, domain_loss_weight=0.0),
        "no balance": cmrn_spec(config, balance_rate=0.0),
        "convolutions off": cmrn_spec(config, ["no-convolution"]),
        "one dense layer for experts": cmrn_spec(config, ["dense"], routing_strategy="hash"),
    }
    if config.shared_expert:
        chosen = min(config.routing_k + 1, config.num_experts)
        models["one more routed for the shared"] = cmrn_spec(config, shared_expert=False, routing_k=chosen)
    elif config.routing_k > 1:
        models["one shared for the last routed"] = cmrn_spec(config, shared_expert=True, routing_k=config.routing_k - 1)
    if config.temporal_layers > 1:
        models["one timescale"] = cmrn_spec(config, ["one-timescale"])
    if {expert.type for expert in config.named_experts} != {"general"}:
        general = [{**expert.model_dump(mode="json"), "type": "general"} for expert in config.named_experts]
        models["general experts only"] = cmrn_spec(config, experts=general)
    training = setting.training.model_dump(mode="json")
    specs = {name: RunSpec(setting.name, name, 1, model, training, data) for name, model in models.items()}
    if setting.training.carry_states:
        specs["each row read afresh"] = replace(
            specs[OURS].with_training(carry_states=False), variant="each row afresh"
        )
    return specs
