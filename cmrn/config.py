"""Configuration records: strict, frozen and free of torch, so that a bad recipe fails before anything heavy loads.

The docstring under a field is its help text, everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

__all__ = [
    "CMRNConfig",
    "DataConfig",
    "ExpertConfig",
    "ExpertType",
    "RoutingStrategy",
    "SourceConfig",
    "TokenizerConfig",
    "TrainingConfig",
]

ExpertType = Literal["general", "symbolic", "pattern", "generative"]
RoutingStrategy = Literal["learned", "hash", "random"]
TemperatureSchedule = Literal["constant", "linear", "cosine"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Names = Annotated[tuple[Name, ...], Strict(False)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class StrictModel(BaseModel):
    """A frozen record that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ExpertConfig(StrictModel):
    """One named expert: its kind, and the domains it owns."""

    name: Name
    """Name of the expert; also the name of its weights' file."""
    type: ExpertType = "general"
    """Inner function: general (SwiGLU), pattern (n-grams), symbolic (fuzzy logic) or generative (latent)."""
    domains: Names = ()
    """Domains this expert owns; labelled text of these domains is steered to it."""


class CMRNConfig(StrictModel):
    """The shape of a model. The first fields are those of the project's seed text, the others the architecture's."""

    vocab_size: Positive = 50_000
    """Number of tokens the tokenizer knows."""
    d_model: Positive = 768
    """Width of the residual stream."""
    num_experts: Positive = 16
    """Number of routed experts; the length of `experts` where that list is given."""
    expert_types: Annotated[tuple[ExpertType, ...], Strict(False), Field(min_length=1)] = (
        "general",
        "symbolic",
        "pattern",
        "generative",
    )
    """Types that unnamed experts cycle through."""
    memory_size: Positive = 1_000_000
    """Most records the long-term memory may hold; without effect until there is one."""
    memory_dim: Positive = 768
    """Width of memory keys and values, heads together."""
    memory_update_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """How far a write moves a near-duplicate record of long-term memory; without effect until there is one."""
    routing_strategy: RoutingStrategy = "learned"
    """How tokens choose experts: learned, hash (of the token id) or random (of the position)."""
    routing_k: Positive = 2
    """Experts that read each token."""
    routing_temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Softmax temperature of the router, reached at the end of training."""
    temporal_layers: Positive = 3
    """Temporal layers in each block; layer i has the timescale 2**i."""
    max_episode_length: Positive = 10_000
    """Longest event, in tokens."""
    dropout: Fraction = 0.1
    """Dropout of each block's branches."""
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    """Epsilon of every normalisation."""
    gradient_checkpointing: bool = True
    """Recompute blocks in the backward pass: less memory, more time; on CUDA a step is then not captured."""

    num_blocks: Positive = 4
    """Blocks, each of temporal layers, perhaps a memory read, and routed experts."""
    head_dim: Positive = 128
    """Width of a temporal head; its state is head_dim x head_dim."""
    temporal_heads: Positive | None = None
    """Heads of a temporal layer; by default as many of head_dim as d_model holds."""
    experts: Annotated[tuple[ExpertConfig, ...], Strict(False), Field(min_length=1)] | None = None
    """Named experts; without it `num_experts` unnamed ones are made."""
    expert_hidden: Positive | None = None
    """Inner width of an expert; by default 4/3 of d_model rounded up to a multiple of 64."""
    shared_expert: bool = True
    """Whether one more expert reads every token, unrouted."""
    memory_blocks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False)] | None = None
    """Blocks (from 0) that read memory; by default about one in four."""
    memory_heads: Positive = 8
    """Heads of a memory read."""
    working_memory: Annotated[int, Field(ge=0)] = 256
    """Entries of working memory: how many tokens back a memory block reads; 0 switches the read off."""
    episodic_memory: Annotated[int, Field(ge=0)] = 0
    """Entries of long-term memory kept on the device for each row and memory block; 0: the model has none."""
    episodic_chunk: Positive = 256
    """Tokens of a chunk, counted from a document's start: its entries are readable once it is complete."""
    episodic_keep: Annotated[int, Field(ge=0)] = 0
    """Entries of a complete chunk that go into long-term memory, the most salient; 0: all."""
    episodic_fade: Annotated[float, Field(ge=0.0)] = 0.0
    """How fast old entries make room, in nats of salience for each e-fold of age; 0: by salience alone."""
    episodic_reads: Annotated[int, Field(ge=0)] = 32
    """Most long-term entries that a token and head read; 0: all that are kept."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding."""
    router_dim: Positive = 64
    """Width of the router's semantic tags."""
    router_span: Annotated[int, Field(ge=0)] = 0
    """Tokens over which the router also averages its tags, since a text's domain shows in many; 0: it does not."""
    event_threshold: Annotated[float, Field(gt=0.0)] = 2.0
    """Standard deviations of surprise above its running mean at which an event begins."""
    domain_loss_weight: Annotated[float, Field(ge=0.0)] = 0.03
    """Weight of the cross-entropy that steers labelled text to the experts owning its domain."""
    z_loss_weight: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight of the router's squared log-partition."""
    latent_loss_weight: Annotated[float, Field(ge=0.0)] = 1e-4
    """Weight of the divergence between the generative experts' latent and a unit normal."""
    salience_loss_weight: Annotated[float, Field(ge=0.0)] = 1e-3
    """Weight of the share of tokens that a memory block finds worth remembering."""
    balance_rate: Annotated[float, Field(ge=0.0)] = 1e-3
    """Step of the balance bias, added to logits for the choice of experts only."""

    @model_validator(mode="before")
    @classmethod
    def _count_experts(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("experts") and "num_experts" not in fields:
            return {**fields, "num_experts": len(fields["experts"])}
        return fields

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.experts is not None and len(self.experts) != self.num_experts:
            raise ValueError(f"num_experts is {self.num_experts} but experts lists {len(self.experts)}")
        names = [expert.name.lower() for expert in self.named_experts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two experts share the name {twice[0]!r} (case is ignored: names are file names)")
        if "shared" in names:
            raise ValueError("the name 'shared' belongs to the shared expert")
        if self.routing_k > self.num_experts:
            raise ValueError(f"routing_k is {self.routing_k} but there are {self.num_experts} experts")
        if self.memory_dim % self.memory_heads:
            raise ValueError(f"memory_dim {self.memory_dim} is not a multiple of memory_heads {self.memory_heads}")
        if self.episodic_memory and not self.working_memory:
            raise ValueError("episodic_memory needs blocks that read memory: working_memory is 0")
        if self.episodic_memory and self.episodic_keep > self.episodic_chunk:
            raise ValueError(f"episodic_keep is {self.episodic_keep} but a chunk has {self.episodic_chunk} tokens")
        if 0 < self.episodic_memory < (self.episodic_keep or self.episodic_chunk):
            raise ValueError(f"episodic_memory {self.episodic_memory} does not hold what is kept of one chunk")
        beyond = [block for block in self.memory_blocks or () if block >= self.num_blocks]
        if beyond:
            raise ValueError(f"memory_blocks names block {beyond[0]} but the last of {self.num_blocks} is "
                             f"{self.num_blocks - 1}")  # fmt: skip
        return self

    @property
    def named_experts(self) -> tuple[ExpertConfig, ...]:
        """The routed experts in order: those listed, or `num_experts` made by cycling through `expert_types`."""
        if self.experts is not None:
            return self.experts
        types = self.expert_types
        return tuple(ExpertConfig(name=f"expert_{i:02d}", type=types[i % len(types)]) for i in range(self.num_experts))

    @property
    def domains(self) -> tuple[str, ...]:
        """Every owned domain, in the order of first mention; `domain_ids` index into it."""
        return tuple(dict.fromkeys(domain for expert in self.named_experts for domain in expert.domains))

    @property
    def num_heads(self) -> int:
        """Temporal heads."""
        return self.temporal_heads or max(1, self.d_model // self.head_dim)

    @property
    def router_width(self) -> int:
        """Numbers that a router row weighs: the tags, and their recent mean where there is one."""
        return self.router_dim * (2 if self.router_span else 1)

    @property
    def hidden(self) -> int:
        """Inner width of an expert."""
        return self.expert_hidden or -(-self.d_model * 4 // 3 // 64) * 64

    @property
    def reading_blocks(self) -> tuple[int, ...]:
        """Blocks that read memory, in order; none where working memory is off."""
        if self.working_memory == 0:
            return ()
        if self.memory_blocks is not None:
            return tuple(sorted(set(self.memory_blocks)))
        count = max(1, self.num_blocks // 4)
        return tuple((2 * i + 1) * self.num_blocks // (2 * count) for i in range(count))


class TokenizerConfig(StrictModel):
    """How the tokenizer comes about: trained on the data, or loaded."""

    vocab_size: Annotated[int, Field(ge=258)] = 4096
    """Tokens to learn: 256 bytes, 2 special tokens, the rest merges."""
    path: str | None = None
    """A tokenizer.json, or a folder holding one, to load instead of training."""


class SourceConfig(StrictModel):
    """One source of text."""

    path: str
    """A path or glob under the data root, builtin://code|math|english|legal, hf://name[?config=C&split=S], or
    quiz://passkey|facts|pairs|associations[?noise=PATH&length=CHARACTERS]: texts that ask about themselves."""
    domain: Name | None = None
    """Domain of this text; by default each record's own `domain` field, if it has one."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """Share of this source in the training mixture, relative to the others."""
    text_field: str = "text"
    """Field of a JSON record that holds the text."""
    limit: Positive | None = None
    """Most documents to read."""


class DataConfig(StrictModel):
    """What to train on."""

    sources: Annotated[tuple[SourceConfig, ...], Strict(False), Field(min_length=1)]
    """Sources of text."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Share of the documents of each domain held out, whole, for evaluation."""
    deduplicate: bool = True
    """Whether near-duplicate documents are removed before the split."""
    phrase_share: Fraction = 0.0
    """Share of training rows made of phrases of 1 to 16 words, each read afresh: they teach the router short texts."""


class TrainingConfig(StrictModel):
    """How to train. The first fields are those of the project's seed text."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 5e-5
    """Peak learning rate."""
    batch_size: Positive = 32
    """Sequences a step."""
    max_steps: Positive = 100_000
    """Steps."""
    memory_update_frequency: Positive = 100
    """Steps between refreshes of the long-term memory's index; without effect until there is one."""
    routing_temperature_schedule: TemperatureSchedule = "cosine"
    """How the router's temperature goes from routing_temperature_initial to the model's routing_temperature."""

    routing_temperature_initial: Annotated[float, Field(gt=0.0)] = 2.0
    """Temperature of the router at the first step."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens a sequence."""
    carry_states: bool = False
    """Whether rows read on where those of the batch before ended, with the state they left; gradients stop there."""
    memory_reach: Annotated[int, Field(ge=0)] = 0
    """Tokens of its own document, before the working memory, that each row may read of long-term memory; 0: none."""
    memory_top_from: Annotated[int, Field(ge=0)] | None = None
    """Step from which long-term reads are limited as in use (episodic_keep, episodic_reads); by default never."""
    micro_batch_size: Positive | None = None
    """Sequences computed at once; a step accumulates as many of these as the batch needs."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Learning rate at the last step, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay of matrices."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw; or muon for the matrices inside the blocks, with adamw for all else."""
    muon_learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Peak learning rate of muon's matrices; by default learning_rate."""
    gradient_clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the matrix products; auto takes bfloat16 where the device computes in it."""
    capture: Literal["auto", "off"] = "auto"
    """auto: on CUDA, compile the blocks and replay a step as one graph; off: call by call. No effect on a CPU."""
    eval_every: Positive = 500
    """Steps between evaluations."""
    eval_tokens: Positive = 16_384
    """Most held-out tokens of each domain read by an evaluation during training; the last one reads all."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints."""
    keep_checkpoints: Positive = 3
    """Checkpoints kept; older ones are removed once a newer one is verified."""
