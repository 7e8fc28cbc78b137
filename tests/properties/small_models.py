"""Small models of every kind in float64, and what the properties compare them by."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig, ExpertType
from cmrn.model import CMRN
from cmrn.records import CMRNOutput, CMRNState, TemporalState
from tests.tolerances import assert_close

TYPES: tuple[ExpertType, ...] = typing.get_args(ExpertType)
VOCABULARY = 23


def small_config(types: tuple[ExpertType, ...] = TYPES, **changes: object) -> CMRNConfig:
    experts = [ExpertConfig(name=f"{kind}_{i}", type=kind, domains=[f"d{i}"][: i < 2]) for i, kind in enumerate(types)]
    fields = {"vocab_size": VOCABULARY, "d_model": 8, "head_dim": 4, "experts": experts, "memory_dim": 8,
              "memory_heads": 2, "num_blocks": 2, "temporal_layers": 1, "working_memory": 4, "memory_blocks": (0, 1),
              "router_dim": 4, "expert_hidden": 8, "dropout": 0.0, "gradient_checkpointing": False,
              "max_episode_length": 7, "event_threshold": 1.0}  # fmt: skip
    return CMRNConfig.model_validate(fields | changes)


@st.composite
def configs(draw: st.DrawFn) -> CMRNConfig:
    """Every expert type, one or two experts a token, and every part that can be switched on or off."""
    kind = draw(st.sampled_from([(each, each) for each in TYPES] + [TYPES]))
    return small_config(
        kind,
        routing_k=draw(st.integers(1, 2)),
        routing_strategy=draw(st.sampled_from(["learned", "learned", "hash", "random"])),
        shared_expert=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        temporal_layers=draw(st.integers(1, 2)),
        working_memory=draw(st.sampled_from([0, 1, 4, 9])),
    )


def small_model(config: CMRNConfig | None = None, seed: int = 1, dtype: torch.dtype = torch.float64) -> CMRN:
    """In evaluation; every weight that starts at a constant is moved from it, so that nothing is hidden by a zero."""
    torch.manual_seed(seed)
    model = CMRN(config or small_config()).to(dtype).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(("norm.weight", "bias_E", "strength", "conjunction")):
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_documents(batch: int, length: int, seed: int = 0) -> Tensor:
    """(B,T) ids that rise at random places, row by row; the first document is 0."""
    starts = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.15
    starts[:, 0] = False
    return starts.cumsum(1)


def pieces(length: int, cuts: set[int]) -> Iterator[slice]:
    """The slices that a text is read in."""
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    return (slice(begin, end) for begin, end in itertools.pairwise(edges))


def assert_same_state(actual: CMRNState, expected: CMRNState) -> None:
    """Equal in all that the next chunk can depend on."""
    torch.testing.assert_close(actual.document_B, expected.document_B)
    assert torch.equal(actual.position_B, expected.position_B)
    assert_close(actual.last_hidden_BD, expected.last_hidden_BD)
    for a, e in zip(actual.blocks, expected.blocks, strict=True):
        for mine, theirs in zip(a.temporal, e.temporal, strict=True):
            if isinstance(mine, TemporalState):
                assert_close(mine.memory_BHKV, theirs.memory_BHKV)
                assert_close(mine.tail_BTC, theirs.tail_BTC)
                continue
            for one, other in zip(vars(mine).values(), vars(theirs).values(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        for mine, theirs in ((a.router_tail_BTC, e.router_tail_BTC), (a.ngram_tail_BTC, e.ngram_tail_BTC)):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert_close(mine, theirs)
        assert (a.memory is None) == (e.memory is None)
        if a.memory is not None:
            valid = e.memory.valid_BW[:, None, :, None]
            assert torch.equal(a.memory.valid_BW, e.memory.valid_BW)
            assert_close(a.memory.keys_BHWC * valid, e.memory.keys_BHWC * valid)
            assert_close(a.memory.values_BHWC * valid, e.memory.values_BHWC * valid)
            assert_close(a.memory.tail_BTC, e.memory.tail_BTC)


def assert_same_reading(
    actual: CMRNOutput, expected: CMRNOutput, at: Tensor | slice | tuple[object, ...] = slice(None)
) -> None:
    """Equal logits, routing and events at the places of `expected` and `at` of `actual`."""
    assert_close(actual.logits[at], expected.logits)
    assert_close(actual.routing_weights[at], expected.routing_weights)
    assert torch.equal(actual.event_chain.begins_BT[at], expected.event_chain.begins_BT)
    for mine, theirs in zip(actual.routing, expected.routing, strict=True):
        assert torch.equal(mine.indices_BTK[at], theirs.indices_BTK)


def embedding_gradient(model: CMRN, ids_BT: Tensor, until: int, documents_BT: Tensor | None = None) -> Tensor:
    """(B,T,D) gradient of a random sum of all logits before `until` with respect to each token's embedding."""
    captured: list[Tensor] = []

    def capture(module: object, inputs: object, output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[0]

    hook = model.embedding.register_forward_hook(capture)
    try:
        logits = model(ids_BT, document_ids=documents_BT).logits[:, :until]
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), captured[0])
    return gradient
