"""The model: embedding, blocks of temporal layers, memory read, router and experts, and the head."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmrn.alignment import align, document_places
from cmrn.arguments import check_ids, check_shapes, check_targets, document_before, new_tokens
from cmrn.block import Block, RouterLosses, last_hidden
from cmrn.config import CMRNConfig
from cmrn.errors import CMRNError, UsageError
from cmrn.generation import continue_ids, watches
from cmrn.layers import Linear, Norm, narrow_type, reads_one
from cmrn.loss import IGNORED, token_nats
from cmrn.memory import EpisodicMemory, PersistentMemory
from cmrn.memory.recall import Recall, recall_reading, recall_writing
from cmrn.recollect import recollect
from cmrn.records import (
    BlockRecord,
    BlockState,
    CMRNOutput,
    CMRNState,
    Drawn,
    EventChain,
    LongReading,
    Losses,
    Routing,
    Segments,
    TemporalState,
    map_tensors,
)
from cmrn.routing import balance_step, expert_load
from cmrn.sampling import SamplingConfig
from cmrn.temporal import TemporalAbstraction
from cmrn.tokenizer import CMRNTokenizer

if TYPE_CHECKING:
    from cmrn.memory.entry import Hit
    from cmrn.memory.passages import Passages

__all__ = ["CMRN", "Block"]


class CMRN(nn.Module):
    """A language model without attention over everything: it reads in linear time and carries a state of fixed size.

    >>> model = CMRN(CMRNConfig(vocab_size=300, d_model=32, num_experts=2, memory_dim=32, num_blocks=1))
    >>> model(torch.randint(0, 300, (2, 16))).logits.shape
    torch.Size([2, 16, 300])
    """

    def __init__(self, config: CMRNConfig, tokenizer: CMRNTokenizer | None = None) -> None:
        super().__init__()
        self.config, self.tokenizer, self.reasoning_mode = config, tokenizer, "neural"
        self.episodic = EpisodicMemory(config) if config.episodic_memory else None
        self.memory_system: PersistentMemory | Passages | None = None
        self.long_reading: LongReading | None = None
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
        update_memory: bool = False,
        use_memory: bool | None = None,
    ) -> CMRNOutput:
        """Logits for every token, the loss where labels are given, and every block's routing.

        input_ids: (B,T) int64. labels: (B,T), shifted inside, -100 ignored; a document's first token is not scored,
        a chunk's first is, through `states`. attention_mask: (B,T), 0 on padding, on either side or in between.
        domain_ids: (B,) or (B,T), index into config.domains, -1 unlabelled. document_ids: (B,T); everything carried
        starts afresh where it changes. states: a former output's `states`, to read on. Logits, losses and states carry
        gradient. update_memory: the episodic memory takes in what is read, as it is read; without `states` that is a
        new document. use_memory: whether what it holds is read; by default in evaluation, and where it is updated.

        Raises:
            UsageError: input_ids is not (B,T) or holds no token, another argument does not fit it, or an id lies
                outside the vocabulary or the domains; or the model has no long-term memory and is to use it.
        """
        check_ids(input_ids, self.config)
        batch, length = input_ids.shape
        check_shapes(batch, length, labels=labels, attention_mask=attention_mask, document_ids=document_ids)
        check_targets(batch, length, labels, domain_ids, self.config)
        if states is not None and len(states.position_B) != batch:
            raise UsageError(f"states are of {len(states.position_B)} rows but input_ids has {batch}")
        aligned, document_B = align(attention_mask, document_ids, document_before(states, document_ids), batch, length)
        segments, ids_BT = aligned.segments, aligned.apply(input_ids)
        start_B = states.position_B if states else ids_BT.new_zeros(batch)
        place_BT, position_B = document_places(segments, start_B, length)
        recall = self._recall(place_BT, start_B, segments, states, update_memory, use_memory)

        x_BTD = self.dropout(self.embedding(ids_BT))
        numbers_BT = place_BT if self.config.routing_strategy == "random" else ids_BT
        records: list[BlockRecord] = []
        for index, block in enumerate(self.blocks):
            previous = states.blocks[index] if states else None
            x_BTD, record = self._run(block, x_BTD, previous, segments, numbers_BT, recall)
            records.append(record)
        hidden_BTD, logits = self._read_out(x_BTD, segments)

        losses = None
        if labels is not None:
            targets = aligned.apply(labels).masked_fill(place_BT == 0, IGNORED)
            nats, scored = self._language(logits, targets, segments, states)
            domains = None if domain_ids is None else aligned.apply(domain_ids.reshape(batch, -1).expand(batch, length))
            losses = self._losses(nats, scored, records, domains, segments)
        if recall is not None and recall.writes:
            recall.stored.advance(length)
        events, last = self._events(records[-1], states, segments)
        return CMRNOutput(
            logits=aligned.undo(logits),
            loss=losses.total if losses else None,
            losses=losses,
            routing_weights=aligned.undo(torch.stack([record.routing.weights_BTE for record in records]).mean(0)),
            routing=tuple(map_tensors(record.routing, aligned.undo) for record in records),
            event_chain=map_tensors(replace(events, stream_BTD=hidden_BTD.detach()), aligned.undo),
            states=CMRNState(
                (*(record.state for record in records[:-1]), last),
                last_hidden(hidden_BTD, segments, states),
                document_B,
                position_B,
                None if recall is None or recall.origin_B is None else recall.origin_B,
            ),
            drawn=self._draw(input_ids, attention_mask) if states is None else (),
            memory_hits=tuple(map_tensors(record.read, aligned.undo) for record in records if record.read is not None),
            episodic=self._episodic_size(),
            archived=self._archived_size(),
        )

    def set_long_reading(self, reading: LongReading | None) -> None:
        """From now on each row reads long-term entries of its own document, which its states carry; None: no more.

        So a model is trained to use long-term memory, and measured exactly: gradient reaches what was stored, as far as
        the states carry it. The episodic memory is not involved, unless a call asks for it.

        Raises:
            UsageError: the model has no long-term memory.
        """
        if reading is not None:
            self._need_memory()
        self.long_reading = reading

    def reset_memory(self) -> None:
        """Forget all that the episodic memory holds; the text store is left alone."""
        if self.episodic is not None:
            self.episodic.reset()

    def _need_memory(self) -> EpisodicMemory:
        if self.episodic is None:
            raise UsageError("this model has no long-term memory", hint="train one with model.episodic_memory above 0")
        return self.episodic

    def _archived_size(self) -> tuple[int, int, float, float]:
        archive = None if self.episodic is None else self.episodic.archive
        return (0, 0, 0.0, 0.0) if archive is None else archive.sizes()

    def _episodic_size(self) -> tuple[int, int, int]:
        if self.episodic is None:
            return (0, 0, 0)
        stats = self.episodic.stats()
        return (stats.entries, stats.capacity, stats.bytes)

    def _recall(
        self,
        place_BT: Tensor,
        position_B: Tensor,
        segments: Segments,
        states: CMRNState | None,
        update: bool,
        use: bool | None,
    ) -> Recall | None:
        """How long-term memory is read by this call; None where it is not."""
        memory = self._need_memory() if update or use else self.episodic
        if update and memory is not None:
            return recall_writing(memory, place_BT, position_B, segments, goes_on=states is not None)
        if self.long_reading is not None and use is None:
            return Recall(place_BT, position_B, reading=self.long_reading)
        if use is False or memory is None or (use is None and self.training) or not memory.tokens:
            return None
        return recall_reading(memory, place_BT, position_B, states)

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

    def _events(
        self, record: BlockRecord, states: CMRNState | None, segments: Segments
    ) -> tuple[EventChain, BlockState]:
        """Where the last block's surprise begins events, and its state with the tracker's."""
        if record.events is not None:
            return record.events, record.state
        temporal: TemporalAbstraction = self.blocks[-1].temporal  # type: ignore[assignment]
        layers = cast(tuple[TemporalState, ...], record.state.temporal)
        chain, tracked = temporal.track(layers, states.blocks[-1].temporal if states else None, segments)
        return chain, replace(record.state, temporal=tracked)

    def _run(self, block: nn.Module, *inputs: Any) -> tuple[Tensor, BlockRecord]:
        writes = inputs[-1] is not None and inputs[-1].writes
        if self.training and self.config.gradient_checkpointing and torch.is_grad_enabled() and not writes:
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
        total = total + config.latent_loss_weight * latent
        gates = [record.gate for record in records if record.gate is not None]
        salience = torch.stack(gates).mean() if gates else None
        if salience is not None:
            total = total + config.salience_loss_weight * salience
        return Losses(total, language, domain, router_z, latent, scored, salience)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        use_memory: bool | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: Callable[[str], None] | None = None,
        states: CMRNState | None = None,
        watch: Callable[[CMRNOutput], None] | None = None,
        recalled: Callable[[Sequence[Hit]], object] | None = None,
    ) -> Tensor:
        """input_ids (B,T) followed by what the model writes, (B, T + new); rows that ended early are padded.

        A row ends at the end-of-text token, at one of the `stop` strings, after max_new_tokens, or when prompt and
        answer have max_length tokens together (128 new ones where neither is given). temperature 0 takes the likeliest
        token. The same seed gives the same text. stream receives the text of a single row as it becomes certain.
        In symbolic mode the first of the new tokens are the conclusions that the prompt's premises allow.
        use_memory: True recalls passages of `memory_system` that are near to the prompt and reads them before it;
        False reads no long-term memory; otherwise what the episodic memory holds is read. states: of a text that the
        prompt goes on with. watch: receives the output that each of the drawn tokens is drawn from. recalled: receives
        the passages that were recalled, nearest first.

        Raises:
            UsageError: input_ids, a limit or a sampling setting is out of range, stream or symbolic mode meets several
                rows, or there is no memory to use.
            CMRNError: stop or stream is given, or passages are recalled, and the model has no tokenizer.
            CheckpointError: the store is of another encoder, or was deleted while in use.
        """
        check_ids(input_ids.cpu(), self.config)
        count = new_tokens(input_ids.shape[1], max_length, max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        each_row = watches(self.tokenizer, input_ids.shape[0], stops, stream)
        generator = None if seed is None else torch.Generator(input_ids.device).manual_seed(seed)
        ended, padding = CMRNTokenizer.eos_token_id, CMRNTokenizer.pad_token_id
        pieces, done_B = [input_ids.cpu()], torch.zeros(len(input_ids), dtype=torch.bool)
        was_training, readable = self.training, None if self.episodic is None else self.episodic.readable
        self.eval()
        try:
            sampling = SamplingConfig(temperature, top_k, top_p)
            said_BN = self._conclude(input_ids)[:, :count]
            read_BT = torch.cat((input_ids, said_BN), 1)
            states = self._remember(input_ids, use_memory, states, recalled)
            reader = self if use_memory is not False else partial(self, use_memory=False)
            written = continue_ids(reader, read_BT, count - said_BN.shape[1], sampling, generator, states, watch)
            for ids_B in itertools.chain(said_BN.cpu().unbind(1), written):
                pieces.append(ids_B.masked_fill(done_B, padding)[:, None])
                done_B = done_B | (ids_B == ended)
                for row, each in enumerate(each_row):
                    if not done_B[row]:
                        each.push(int(ids_B[row]))
                        done_B[row] = each.stopped
                if bool(done_B.all()):
                    break
        finally:
            self.train(was_training)
            if self.episodic is not None:
                self.episodic.readable = readable
        for each in each_row:
            each.finish()
        return torch.cat(pieces, 1).to(input_ids.device)

    def _remember(
        self,
        input_ids: Tensor,
        use_memory: bool | None,
        states: CMRNState | None,
        tell: Callable[[Sequence[Hit]], object] | None,
    ) -> CMRNState | None:
        """What the prompt goes on from, once what it brings to mind was read."""
        if not use_memory:
            return states
        if self.memory_system is None:
            self._need_memory()
            return states
        recalled = recollect(self, input_ids, states)
        if tell is not None:
            tell(recalled.hits)
        if self.episodic is not None:
            self.episodic.readable = recalled.namespaces
        return recalled.states

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
