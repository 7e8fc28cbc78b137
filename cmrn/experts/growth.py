"""A model's table of tensors with an expert more, an expert less, or an expert of another name.

An expert is its weights in every block, one row of every block's router (`weight_ER`, and `bias_E`, which counts for
the choice only), and an entry of the configuration. Pattern experts share a block's n-gram features: the first such
expert brings them, the last takes them away. Everything else is the backbone, which none of these functions touches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.errors import UsageError
from cmrn.experts.module import ExpertModule
from cmrn.layers import CausalConv

__all__ = [
    "ExpertParts",
    "backbone_fingerprint",
    "drawn_parts",
    "expert_named",
    "group_named",
    "hash_tensors",
    "parts_of",
    "renamed_expert",
    "with_expert",
    "without_expert",
]

WEIGHT, BIAS = "router.routing_network.weight_ER", "router.routing_network.bias_E"
NGRAM = "experts.ngram.weight"
SHAPE_FIELDS = ("vocab_size", "d_model", "num_blocks", "router_dim", "routing_k", "layer_norm_eps")
NGRAM_WIDTH = 3


@dataclass(frozen=True)
class ExpertParts:
    """One expert, apart from a model.

    weights: of every block, `blocks.<i>.<name in the expert>`. ngrams: `blocks.<i>`, the features a pattern expert
    reads, else empty. rows_LR: its router row in each of L blocks. bias_L: what is added to its logits for the choice.
    """

    config: ExpertConfig
    weights: dict[str, Tensor]
    ngrams: dict[str, Tensor]
    rows_LR: Tensor
    bias_L: Tensor


def expert_named(config: CMRNConfig, name: str) -> tuple[int, ExpertConfig]:
    """(place among the experts, the expert).

    Raises:
        UsageError: there is none of that name.
    """
    for index, expert in enumerate(config.named_experts):
        if expert.name == name:
            return index, expert
    raise UsageError(
        f"the model has no expert {name!r}", hint=f"it has {', '.join(each.name for each in config.named_experts)}"
    )


def group_named(config: CMRNConfig, name: str) -> tuple[str, ...]:
    """The expert of that name; where there is none, all that own the domain of that name and no other.

    Raises:
        UsageError: there is neither.
    """
    experts = config.named_experts
    owners = tuple(expert.name for expert in experts if expert.domains == (name,))
    if owners and all(expert.name != name for expert in experts):
        return owners
    expert_named(config, name)
    return (name,)


def drawn_parts(config: CMRNConfig, expert: ExpertConfig, seed: int) -> ExpertParts:
    """A new expert of this model's shape: weights drawn, router rows zero, nothing added for the choice."""
    weights: dict[str, Tensor] = {}
    ngrams: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for block in range(config.num_blocks):
            module = ExpertModule(config.d_model, config.hidden, expert.type)
            weights |= {f"blocks.{block}.{key}": value for key, value in module.state_dict().items()}
            if expert.type == "pattern":
                ngrams[f"blocks.{block}"] = CausalConv(config.d_model, NGRAM_WIDTH).weight.detach()
    rows_LR = torch.zeros(config.num_blocks, config.router_width)
    return ExpertParts(expert, weights, ngrams, rows_LR, torch.zeros(config.num_blocks))


def parts_of(config: CMRNConfig, tensors: Mapping[str, Tensor], name: str) -> ExpertParts:
    """The expert of that name, its tensors copied.

    Raises:
        UsageError: there is none, or the router is not learned.
    """
    index, expert = expert_named(config, name)
    _check_learned(config)
    weights: dict[str, Tensor] = {}
    ngrams: dict[str, Tensor] = {}
    for block in range(config.num_blocks):
        prefix = _prefix(block, name)
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        weights |= {f"blocks.{block}.{key}": value.clone() for key, value in own.items()}
        if expert.type == "pattern":
            ngrams[f"blocks.{block}"] = tensors[f"blocks.{block}.{NGRAM}"].clone()
    rows_LR, bias_L = (
        torch.stack([tensors[f"blocks.{block}.{key}"][index] for block in range(config.num_blocks)])
        for key in (WEIGHT, BIAS)
    )
    return ExpertParts(expert, weights, ngrams, rows_LR, bias_L)


def with_expert(
    config: CMRNConfig, tensors: Mapping[str, Tensor], parts: ExpertParts
) -> tuple[CMRNConfig, dict[str, Tensor]]:
    """The model with one more expert, the last; the other tensors are those given, not copied.

    Raises:
        UsageError: the name is taken or none, the router is not learned, or the n-gram features are not those that
            the expert reads.
    """
    _check_learned(config)
    grown = _with_experts(config, (*config.named_experts, parts.config))
    table = dict(tensors)
    for block in range(config.num_blocks):
        prefix = f"blocks.{block}."
        for key, value in parts.weights.items():
            if key.startswith(prefix):
                table[_prefix(block, parts.config.name) + key.removeprefix(prefix)] = value
        for key, part in ((WEIGHT, parts.rows_LR[block]), (BIAS, parts.bias_L[block])):
            old = tensors[prefix + key]
            table[prefix + key] = torch.cat([old, part[None].to(old)])
        ngram = parts.ngrams.get(f"blocks.{block}")
        if ngram is not None and not torch.equal(table.setdefault(prefix + NGRAM, ngram), ngram):
            raise UsageError(
                f"the pattern expert {parts.config.name!r} reads other n-gram features than those of this model",
                hint="a model's pattern experts share them: add it to a model without pattern experts",
            )
    return grown, table


def without_expert(
    config: CMRNConfig, tensors: Mapping[str, Tensor], name: str
) -> tuple[CMRNConfig, dict[str, Tensor]]:
    """The model without that expert: bit for bit what it was before the expert was added.

    Raises:
        UsageError: there is none of that name, too few would remain, or the router is not learned.
    """
    index, _ = expert_named(config, name)
    _check_learned(config)
    left = tuple(expert for expert in config.named_experts if expert.name != name)
    if len(left) < config.routing_k:
        raise UsageError(f"{config.routing_k} experts read each token, so none of {len(left) + 1} can be removed")
    shrunk = _with_experts(config, left)
    gone = tuple(_prefix(block, name) for block in range(config.num_blocks))
    table = {key: value for key, value in tensors.items() if not key.startswith(gone)}
    for block in range(config.num_blocks):
        for key in (f"blocks.{block}.{WEIGHT}", f"blocks.{block}.{BIAS}"):
            table[key] = torch.cat([tensors[key][:index], tensors[key][index + 1 :]])
        if not any(expert.type == "pattern" for expert in left):
            table.pop(f"blocks.{block}.{NGRAM}", None)
    return shrunk, table


def renamed_expert(
    config: CMRNConfig, tensors: Mapping[str, Tensor], name: str, new: str
) -> tuple[CMRNConfig, dict[str, Tensor]]:
    """The model with an expert of another name; what it owns and where it stands stay.

    Raises:
        UsageError: there is none of that name, or the new one is taken or no name.
    """
    index, expert = expert_named(config, name)
    experts = list(config.named_experts)
    experts[index] = expert.model_copy(update={"name": new})
    changed = _with_experts(config, experts)
    table = dict(tensors)
    for block in range(config.num_blocks):
        old = _prefix(block, name)
        for key in [key for key in table if key.startswith(old)]:
            table[_prefix(block, new) + key.removeprefix(old)] = table.pop(key)
    return changed, table


def backbone_fingerprint(config: CMRNConfig, tensors: Mapping[str, Tensor]) -> str:
    """What an expert fits: a hash of every tensor but the experts' and their router rows, and of the shapes.

    Models grown from one whose rest was frozen have the same.
    """
    own = (WEIGHT, BIAS, NGRAM)
    rest = {key: value for key, value in tensors.items() if ".experts.experts." not in key and not key.endswith(own)}
    shape = "".join(f"{field}={getattr(config, field)};" for field in SHAPE_FIELDS) + f"hidden={config.hidden}"
    shape += f";router_span={config.router_span}" if config.router_span else ""
    return hashlib.sha256(f"{shape}|{hash_tensors(rest)}".encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a table of tensors, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _prefix(block: int, name: str) -> str:
    return f"blocks.{block}.experts.experts.{name}."


def _check_learned(config: CMRNConfig) -> None:
    if config.routing_strategy != "learned":
        raise UsageError(
            f"with {config.routing_strategy} routing every expert's tokens depend on how many there are",
            where="routing_strategy",
            hint="experts are added to, removed from and taken from models with learned routing",
        )


def _with_experts(config: CMRNConfig, experts: Sequence[ExpertConfig]) -> CMRNConfig:
    """The configuration with these experts; unlisted where they are those it would make by itself."""
    fields = config.model_dump() | {"num_experts": len(experts), "experts": None}
    if config.model_validate(fields).named_experts == tuple(experts):
        return config.model_validate(fields)
    try:
        return config.model_validate(fields | {"experts": [expert.model_dump() for expert in experts]})
    except ValidationError as error:
        told = error.errors()[0]
        if told["type"] == "string_pattern_mismatch":
            raise UsageError(f"names are letters, digits, - and _, at most 64: {told['input']!r}") from error
        what = told["msg"].removeprefix("Value error, ")
        hint = "cmrn expert ls lists the names; cmrn expert rename gives another"
        raise UsageError(f"no such expert can be: {what}", where="experts", hint=hint) from error
