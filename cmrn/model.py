"""The model: embedding, blocks of temporal layers, memory read, router and experts, and the head."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmrn.alignment import align, document_places
from cmrn.config import CMRNConfig
from cmrn.errors import CMRNError, UsageError
from cmrn.experts import ExpertPool
from cmrn.generation import StopWatch, continue_ids
from cmrn.layers import Linear, Norm, narrow_type, reads_one
from cmrn.loss import IGNORED, token_nats
from cmrn.memory import MemoryAttention
from cmrn.records import (
    BlockRecord,
    BlockState,
    CMRNOutput,
    CMRNState,
    Drawn,
    EventChain,
    Losses,
    Routing,
    Segments,
    TemporalState,
    map_tensors,
)
from cmrn.routing import DynamicRouter, balance_step, domain_loss, expert_load, z_loss
from cmrn.sampling import SamplingConfig
from cmrn.temporal import TemporalAbstraction
from cmrn.tokenizer import CMRNTokenizer

__all__ = ["CMRN", "Block"]


class Block(nn.Module):
    """Temporal layers, a memory read in the blocks chosen for it, then routed experts; each adds to the stream."""

    def __init__(self, config: CMRNConfig, index: int) -> None:
        super().__init__()
        self.temporal = TemporalAbstraction(config)
        self.memory = MemoryAttention(config) if index in config.reading_blocks else None
        self.router = DynamicRouter(config, index)
        self.experts = ExpertPool(config)

    def forward(
        self, x_BTD: Tensor, previous: BlockState | None, segments: Segments, numbers_BT: Tensor
    ) -> tuple[Tensor, BlockRecord]:
        """(x_BTD, what the block did and carries). numbers_BT is what a router without logits hashes."""
        x_BTD, temporal = self.temporal.read(x_BTD, previous.temporal if previous else None, segments)
        memory = None
        if self.memory is not None:
            x_BTD, memory = self.memory(x_BTD, previous and previous.memory, segments)
        routing, router_tail = self.router(x_BTD, previous and previous.router_tail_BTC, segments, numbers_BT)
        x_BTD, ngram_tail, latent = self.experts(x_BTD, routing, previous and previous.ngram_tail_BTC, segments)
        return x_BTD, BlockRecord(routing, latent, BlockState(temporal, memory, router_tail, ngram_tail))


class RouterLosses(nn.Module):
    """The losses of every learned router, means over blocks. owners_GE: whether expert e owns domain g, bool."""

    owners_GE: Tensor

    def __init__(self, owners_GE: Tensor) -> None:
        super().__init__()
        self.register_buffer("owners_GE", owners_GE, persistent=False)

    def forward(self, logits: Sequence[Tensor], domains_BT: Tensor | None, segments: Segments) -> tuple[Tensor, Tensor]:
        """(domain loss, z-loss) of the blocks' logits_BTE, scalars that carry gradient; without labels the first is 0.

        The blocks' logits go through the formulae together: on a GPU many small calls would cost more than the sums.
        """
        logits_LBTE = torch.stack(tuple(logits))
        real_BT = segments.real_BT if segments.real_BT is not None else logits_LBTE.new_ones(logits_LBTE.shape[1:3])
        router_z = z_loss(logits_LBTE, real_BT) / len(logits)
        if domains_BT is None or not len(self.owners_GE):
            return router_z.new_zeros(()), router_z
        domains_BT = domains_BT.masked_fill(~real_BT.bool(), -1)
        return domain_loss(logits_LBTE, domains_BT, self.owners_GE) / len(logits), router_z


class CMRN(nn.Module):
    """A language model without attention over everything: it reads in linear time and carries a state of fixed size.

    >>> model = CMRN(CMRNConfig(vocab_size=300, d_model=32, num_experts=2, memory_dim=32, num_blocks=1))
    >>> model(torch.randint(0, 300, (2, 16))).logits.shape
    torch.Size([2, 16, 300])
    """

    def __init__(self, config: CMRNConfig, tokenizer: CMRNTokenizer | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer, self.reasoning_mode = config, tokenizer, "neural"
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_blocks))
        self.final_norm = Norm(config.d_model, config.layer_norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)
        owners = [[domain in expert.domains for expert in config.named_experts] for domain in config.domains]
        self.router_losses = RouterLosses(torch.tensor(owners, dtype=torch.bool))

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        domain_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        states: CMRNState | None = None,
    ) -> CMRNOutput:
        """Logits for every token, the loss where labels are given, and every block's routing.

        input_ids: (B,T) int64. labels: (B,T), shifted inside, -100 ignored; a document's first token is not scored,
        a chunk's first is, through `states`. attention_mask: (B,T), 0 on padding, on either side or in between.
        domain_ids: (B,) or (B,T), index into config.domains, -1 unlabelled. document_ids: (B,T); everything carried
        starts afresh where it changes. states: a former output's `states`, to read on. Logits, losses and states carry
        gradient.

        Raises:
            UsageError: input_ids is not (B,T) or holds no token, another argument does not fit it, or an id lies
                outside the vocabulary or the domains.
        """
        self._check(input_ids)
        batch, length = input_ids.shape
        _check_shapes(batch, length, labels=labels, attention_mask=attention_mask, document_ids=document_ids)
        self._check_targets(batch, length, labels, domain_ids)
        if states is not None and len(states.position_B) != batch:
            raise UsageError(f"states are of {len(states.position_B)} rows but input_ids has {batch}")
        aligned, document_B = align(attention_mask, document_ids, _before(states, document_ids), batch, length)
        segments, ids_BT = aligned.segments, aligned.apply(input_ids)
        start_B = states.position_B if states else ids_BT.new_zeros(batch)
        place_BT, position_B = document_places(segments, start_B, length)

        x_BTD = self.dropout(self.embedding(ids_BT))
        numbers_BT = place_BT if self.config.routing_strategy == "random" else ids_BT
        records: list[BlockRecord] = []
        for index, block in enumerate(self.blocks):
            previous = states.blocks[index] if states else None
            x_BTD, record = self._run(block, x_BTD, previous, segments, numbers_BT)
            records.append(record)
        hidden_BTD, logits = self._read_out(x_BTD, segments)

        losses = None
        if labels is not None:
            targets = aligned.apply(labels).masked_fill(place_BT == 0, IGNORED)
            nats, scored = self._language(logits, targets, segments, states)
            domains = None if domain_ids is None else aligned.apply(domain_ids.reshape(batch, -1).expand(batch, length))
            losses = self._losses(nats, scored, records, domains, segments)
        events, last = self._events(records[-1].state, states, segments)
        return CMRNOutput(
            logits=aligned.undo(logits),
            loss=losses.total if losses else None,
            losses=losses,
            routing_weights=aligned.undo(torch.stack([record.routing.weights_BTE for record in records]).mean(0)),
            routing=tuple(map_tensors(record.routing, aligned.undo) for record in records),
            event_chain=map_tensors(events, aligned.undo),
            states=CMRNState(
                (*(record.state for record in records[:-1]), last),
                self._last(hidden_BTD, segments, states),
                document_B,
                position_B,
            ),
            drawn=self._draw(input_ids, attention_mask) if states is None else (),
        )

    def set_reasoning_mode(self, mode: str) -> None:
        """`symbolic`: a text read from its start is also reasoned over; `neural`, as at first: it is not.

        In symbolic mode an output's `reasoning_trace` holds the checked steps from the premises in the text, and
        `generate` begins with what follows from them, each conclusion with the premises it rests on.

        Raises:
            UsageError: there is no such mode.
            CMRNError: symbolic mode needs text, and the model has no tokenizer.
        """
        if mode not in ("neural", "symbolic"):
            raise UsageError(f"no reasoning mode {mode!r}", hint="neural or symbolic")
        if mode == "symbolic" and self.tokenizer is None:
            raise CMRNError(
                "symbolic mode reads text, and this model has no tokenizer",
                hint="CMRN.from_pretrained attaches one; or pass CMRN(config, tokenizer)",
            )
        self.reasoning_mode = mode

    def _draw(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> tuple[Drawn, ...]:
        """What follows from each row's text; nothing in neural mode."""
        if self.reasoning_mode != "symbolic" or self.tokenizer is None:
            return ()
        from cmrn.reasoning.draw import draw

        real_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
        rows = [ids_T[real_T.bool()].tolist() for ids_T, real_T in zip(ids_BT, real_BT, strict=True)]
        return tuple(draw(self.tokenizer.decode(row)) for row in rows)

    def _conclude(self, ids_BT: Tensor) -> Tensor:
        """(1,N) ids of the sentences that follow from the prompt; N is 0 in neural mode, or where nothing follows."""
        drawn = self._draw(ids_BT)
        if len(drawn) > 1:
            raise UsageError(f"symbolic mode writes one row at a time, and input_ids has {len(drawn)}")
        text = "".join(f" {sentence}" for row in drawn for sentence in row.conclusions)
        ids = self.tokenizer.encode(text) if self.tokenizer is not None and text else []
        return torch.tensor([ids] * len(ids_BT), dtype=ids_BT.dtype, device=ids_BT.device).reshape(len(ids_BT), -1)

    def _events(self, last: BlockState, states: CMRNState | None, segments: Segments) -> tuple[EventChain, BlockState]:
        """Where the last block's surprise begins events, and its state with the tracker's."""
        temporal: TemporalAbstraction = self.blocks[-1].temporal  # type: ignore[assignment]
        layers = cast(tuple[TemporalState, ...], last.temporal)
        chain, tracked = temporal.track(layers, states.blocks[-1].temporal if states else None, segments)
        return chain, replace(last, temporal=tracked)

    def _run(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, BlockRecord]:
        if self.training and self.config.gradient_checkpointing and torch.is_grad_enabled():
            recomputed: tuple[Tensor, BlockRecord] = checkpoint(block, *inputs, use_reentrant=False)
            return recomputed
        result: tuple[Tensor, BlockRecord] = block(*inputs)
        return result

    def _read_out(self, x_BTD: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """(hidden_BTD, logits_BTV); in one launch where one token a row is read without gradient."""
        if not reads_one(self, x_BTD, segments):
            hidden_BTD = self.final_norm(x_BTD)
            return hidden_BTD, self._logits(hidden_BTD)
        from cmrn.decode_triton import project_one

        norm = self.final_norm
        logits_BV, hidden_BD = project_one(x_BTD[:, 0], norm.weight, norm.eps, [self._head()], narrow_type(x_BTD))
        return hidden_BD[:, None], logits_BV[:, None]

    def _head(self) -> Tensor:
        return self.embedding.weight if self.head is None else self.head.weight

    def _logits(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self._head())

    def _language(
        self, logits_BTV: Tensor, labels_BT: Tensor, segments: Segments, states: CMRNState | None
    ) -> tuple[Tensor, Tensor]:
        """(nats over all scored tokens, how many): each token is scored by the logits at the token before it."""
        if segments.real_BT is not None:
            labels_BT = labels_BT.masked_fill(~segments.real_BT, IGNORED)
        next_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
        nats = token_nats(logits_BTV.flatten(0, 1), next_BT.flatten())
        scored = (next_BT != IGNORED).sum()
        if states is not None:
            nats = nats + token_nats(self._logits(states.last_hidden_BD), labels_BT[:, 0])
            scored = scored + (labels_BT[:, 0] != IGNORED).sum()
        return nats, scored

    def _losses(
        self,
        nats: Tensor,
        scored: Tensor,
        records: Sequence[BlockRecord],
        domains_BT: Tensor | None,
        segments: Segments,
    ) -> Losses:
        config = self.config
        language = nats / scored.clamp(min=1)
        logits = tuple(record.routing.logits_BTE for record in records if record.routing.logits_BTE is not None)
        domain, router_z = self.router_losses(logits, domains_BT, segments) if logits else nats.new_zeros(2).unbind()
        latent = torch.stack([record.latent for record in records]).mean()
        total = language + config.domain_loss_weight * domain + config.z_loss_weight * router_z
        return Losses(total + config.latent_loss_weight * latent, language, domain, router_z, latent, scored)

    def _last(self, hidden_BTD: Tensor, segments: Segments, states: CMRNState | None) -> Tensor:
        if segments.real_BT is None:
            return hidden_BTD[:, -1]
        count_B = segments.real_BT.sum(1)
        last_BD = hidden_BTD[torch.arange(len(count_B), device=count_B.device), (count_B - 1).clamp(min=0)]
        before_BD = torch.zeros_like(last_BD) if states is None else states.last_hidden_BD.to(last_BD.dtype)
        return torch.where(count_B[:, None] > 0, last_BD, before_BD)

    def _check(self, input_ids: Tensor) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise UsageError(f"input_ids has the shape {tuple(input_ids.shape)}; it must be (batch, tokens), not empty")
        _check_range("token id", input_ids, self.config.vocab_size, "vocabulary of {} tokens")

    def _check_targets(self, batch: int, length: int, labels: Tensor | None, domain_ids: Tensor | None) -> None:
        if labels is not None:
            _check_range(
                "label", labels.masked_fill(labels == IGNORED, 0), self.config.vocab_size, "vocabulary of {} tokens"
            )
        if domain_ids is not None:
            if tuple(domain_ids.shape) != (batch,):
                _check_shapes(batch, length, domain_ids=domain_ids)
            if self.config.domains:
                _check_range("domain id", domain_ids.clamp(min=0), len(self.config.domains), "{} domains")

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: Callable[[str], None] | None = None,
    ) -> Tensor:
        """input_ids (B,T) followed by what the model writes, (B, T + new); rows that ended early are padded.

        A row ends at the end-of-text token, at one of the `stop` strings, after max_new_tokens, or when prompt and
        answer have max_length tokens together (128 new ones where neither is given). temperature 0 takes the likeliest
        token. The same seed gives the same text. stream receives the text of a single row as it becomes certain.
        In symbolic mode the first of the new tokens are the conclusions that the prompt's premises allow.

        Raises:
            UsageError: input_ids, a limit or a sampling setting is out of range, or stream or symbolic mode meets
                several rows.
            CMRNError: stop or stream is given and the model has no tokenizer.
        """
        self._check(input_ids.cpu())
        count = _new_tokens(input_ids.shape[1], max_length, max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        watches = self._watches(input_ids.shape[0], stops, stream)
        generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(seed)
        ended, padding = CMRNTokenizer.eos_token_id, CMRNTokenizer.pad_token_id
        pieces, done_B = [input_ids.cpu()], torch.zeros(len(input_ids), dtype=torch.bool)
        was_training = self.training
        self.eval()
        try:
            sampling = SamplingConfig(temperature, top_k, top_p)
            said_BN = self._conclude(input_ids)[:, :count]
            read_BT = torch.cat((input_ids, said_BN), 1)
            written = continue_ids(self, read_BT, count - said_BN.shape[1], sampling, generator)
            for ids_B in itertools.chain(said_BN.cpu().unbind(1), written):
                pieces.append(ids_B.masked_fill(done_B, padding)[:, None])
                done_B = done_B | (ids_B == ended)
                for row, watch in enumerate(watches):
                    if not done_B[row]:
                        watch.push(int(ids_B[row]))
                        done_B[row] = watch.stopped
                if bool(done_B.all()):
                    break
        finally:
            self.train(was_training)
        for watch in watches:
            watch.finish()
        return torch.cat(pieces, 1).to(input_ids.device)

    def _watches(self, rows: int, stop: Sequence[str], stream: Callable[[str], None] | None) -> list[StopWatch]:
        if not stop and stream is None:
            return []
        if self.tokenizer is None:
            raise CMRNError(
                "stop and stream need text, and this model has no tokenizer",
                hint="CMRN.from_pretrained attaches one; or pass CMRN(config, tokenizer)",
            )
        if stream is not None and rows != 1:
            raise UsageError(f"stream follows one row, and input_ids has {rows}")
        return [StopWatch(self.tokenizer, stop, stream) for _ in range(rows)]

    @torch.no_grad()
    def set_routing_temperature(self, temperature: float) -> None:
        """Set every learned router's temperature; it is kept in checkpoints."""
        buffers = [buffer for name, buffer in self.named_buffers() if name.endswith("routing_network.temperature")]
        if buffers:
            torch._foreach_zero_(buffers)
            torch._foreach_add_(buffers, temperature)

    @torch.no_grad()
    def update_balance(self, loads: Sequence[Tensor]) -> None:
        """Move every learned router's balance bias by one step, given each block's `expert_load` (E,)."""
        networks = [block.router.routing_network for block in self.blocks]  # type: ignore[union-attr]
        pairs = [(network.bias_E, load) for network, load in zip(networks, loads, strict=True) if network is not None]  # type: ignore[union-attr]
        for bias_E, load_E in pairs:
            balance_step(bias_E, load_E, self.config.balance_rate)  # type: ignore[arg-type]

    def expert_loads(self, routing: Sequence[Routing], real_BT: Tensor | None = None) -> tuple[Tensor, ...]:
        """(E,) share of the choices each expert received, one a block."""
        return tuple(expert_load(each, real_BT) for each in routing)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> Self:
        """The model in a checkpoint folder, or on the Hugging Face hub (`owner/name`), with its tokenizer attached.

        Raises:
            CheckpointError: there is none, a file is corrupt, or a tensor is missing, unexpected or misshapen.
        """
        from cmrn.pretrained import load_tensors, read_model

        files = read_model(name)
        tokenizer = None if files.tokenizer_json is None else CMRNTokenizer.from_json(files.tokenizer_json)
        model = cls(files.config, tokenizer)
        load_tensors(model, files)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to `folder`, whole or not at all: config, tokenizer, weights, one file an expert, manifest.

        Raises:
            ResourceError: the disk is full; what stood in `folder` before is untouched.
        """
        from cmrn.pretrained import write_model

        write_model(
            folder, self.config, self.state_dict(), None if self.tokenizer is None else self.tokenizer.to_json()
        )


def _before(states: CMRNState | None, document_ids: Tensor | None) -> Tensor | None:
    """The document each row was in; a text read without ids so far is document 0."""
    if states is None or (states.document_B is None and document_ids is None):
        return None
    return torch.zeros_like(states.position_B) if states.document_B is None else states.document_B


def _check_shapes(batch: int, length: int, **arguments: Tensor | None) -> None:
    for name, tensor in arguments.items():
        if tensor is not None and tuple(tensor.shape) != (batch, length):
            raise UsageError(f"{name} has the shape {tuple(tensor.shape)}; input_ids has {(batch, length)}")


def _check_range(name: str, values: Tensor, count: int, whole: str) -> None:
    """Refuse what lies outside [0, count); where looking would hold up a device, the device's own check must do."""
    if values.device.type != "cpu" or not values.numel():
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= count:
        raise UsageError(
            f"{name} {low if low < 0 else high} is outside the {whole.format(count)}",
            hint="ids are those of model.tokenizer; domain ids index into model.config.domains",
        )


def _new_tokens(prompt: int, max_length: int | None, max_new_tokens: int | None) -> int:
    if max_new_tokens is not None and max_new_tokens < 0:
        raise UsageError(f"max_new_tokens is {max_new_tokens}, below 0")
    limits = [] if max_new_tokens is None else [max_new_tokens]
    if max_length is not None:
        if max_length < prompt:
            raise UsageError(
                f"max_length is {max_length} but the prompt has {prompt} tokens already", hint="use max_new_tokens"
            )
        limits.append(max_length - prompt)
    return min(limits, default=128)
