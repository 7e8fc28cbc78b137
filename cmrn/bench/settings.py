"""The settings that quality is measured at: a shape of ours, and how it and every peer is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cmrn.bench.text import DOMAINS
from cmrn.config import CMRNConfig, TrainingConfig
from cmrn.errors import UsageError
from cmrn.recipe import load_recipe
from cmrn.strict_yaml import parse

__all__ = ["SETTINGS", "Setting", "apply_overrides", "load_setting"]

SETTINGS = ("e", "small")
E_MODEL: dict[str, Any] = {
    "vocab_size": 8192,
    "d_model": 512,
    "num_blocks": 5,
    "temporal_layers": 1,
    "head_dim": 128,
    "num_experts": 8,
    "expert_types": ["general"],
    "expert_hidden": 384,
    "routing_k": 3,
    "shared_expert": False,
    "memory_dim": 512,
    "memory_heads": 8,
    "memory_blocks": [1, 3],
    "working_memory": 256,
    "dropout": 0.0,
    "gradient_checkpointing": False,
    "domain_loss_weight": 0.01,
}
E_TRAINING: dict[str, Any] = {
    "sequence_length": 1024,
    "batch_size": 16,
    "max_steps": 1953,
    "warmup_steps": 100,
    "learning_rate": 1.2e-2,
    "optimizer": "muon",
    "carry_states": True,
    "routing_temperature_initial": 1.0,
    "weight_decay": 0.1,
    "gradient_clip": 1.0,
}


@dataclass(frozen=True)
class Setting:
    """name: of the setting. model: ours. training: of both sides, but for the learning rate where it is swept."""

    name: str
    model: CMRNConfig
    training: TrainingConfig


def load_setting(name: str, overrides: Sequence[str] = ()) -> Setting:
    """A setting, with `model.field=value` and `training.field=value` overrides.

    `e`: about 18 M active parameters without the embedding, 32 M tokens, 16 texts of 1,024 tokens a step. `small`: the
    shipped recipe of that name as it is.

    Raises:
        UsageError: there is no such setting or field, or a value does not fit its field.
    """
    if name not in SETTINGS:
        raise UsageError(f"no setting {name!r}", where="--setting", hint=f"there are {', '.join(SETTINGS)}")
    if name == "small":
        recipe = load_recipe("small")
        model, training = recipe.model.model_dump(mode="json"), recipe.training.model_dump(mode="json")
    else:
        model, training = dict(E_MODEL), dict(E_TRAINING)
    changed = apply_overrides({"model": model, "training": training}, overrides)
    if name != "small" or changed & {"num_experts", "expert_types"}:
        model["experts"] = _experts(model["num_experts"], model["expert_types"])
    try:
        return Setting(name, CMRNConfig.model_validate(model), TrainingConfig.model_validate(training))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(first["msg"], where="--set " + ".".join(str(each) for each in first["loc"])) from error


def apply_overrides(sections: dict[str, dict[str, Any]], overrides: Sequence[str]) -> set[str]:
    """Put `section.field=value` overrides into the sections; return the names of the fields that were given.

    Raises:
        UsageError: one is not of that form, names another section, or its value is not YAML.
    """
    changed = set()
    for argument in overrides:
        path, equals, text = argument.partition("=")
        section, _, field = path.partition(".")
        if not equals or section not in sections or not field:
            raise UsageError(
                "is not model.field=value or training.field=value", where=f"--set {argument}",
                hint="--set model.working_memory=128",
            )  # fmt: skip
        tree = parse(text, argument)
        if tree.problems:
            raise UsageError(tree.problems[0].message, where=f"--set {argument}")
        sections[section][field] = tree.value
        changed.add(field)
    return changed


def _experts(count: int, types: Sequence[str]) -> list[dict[str, Any]]:
    """One expert a domain as far as they go, then experts that own none; types in turn."""
    owners: list[dict[str, Any]] = [{"name": domain, "domains": [domain]} for domain in DOMAINS[:count]]
    others: list[dict[str, Any]] = [{"name": f"free_{index}"} for index in range(count - len(owners))]
    return [{**each, "type": types[index % len(types)]} for index, each in enumerate([*owners, *others])]
