"""The pool of experts against running every expert on every token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.experts import ExpertModule, ExpertPool
from cmrn.layers import CausalConv
from cmrn.records import Routing, Segments
from cmrn.routing import choose_experts, reference
from tests.tolerances import assert_close

TYPES = ("general", "symbolic", "pattern", "generative")
LENGTH = 11


def make_pool(**changes: object) -> ExpertPool:
    torch.manual_seed(6)
    experts = [ExpertConfig(name=f"{kind}_{i}", type=kind) for i, kind in enumerate((*TYPES, "pattern"))]
    fields = {"vocab_size": 9, "d_model": 6, "experts": experts, "expert_hidden": 8, "dropout": 0.0}
    return ExpertPool(CMRNConfig.model_validate(fields | changes)).double()


def make_routing(k: int, seed: int = 0) -> Routing:
    random = torch.Generator().manual_seed(seed)
    logits_BTE = torch.randn(2, LENGTH, 5, dtype=torch.float64, generator=random).requires_grad_()
    return choose_experts(logits_BTE, torch.zeros(5), torch.tensor(1.0), k, noisy=False)


def stream() -> Tensor:
    return torch.randn(2, LENGTH, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def dense(pool: ExpertPool, x_BTD: Tensor, routing: Routing, segments: Segments) -> Tensor:
    """Every expert on every token of the stream, weighted by its gate."""
    u_ND = pool.norm(x_BTD).flatten(0, 1)
    assert isinstance(pool.ngram, CausalConv)
    ngrams_ND = pool.ngram(pool.norm(x_BTD), None, segments)[0].flatten(0, 1)

    def reads(expert: ExpertModule) -> Callable[[Tensor], Tensor]:
        part = slice(6, 12) if expert.expert_type == "pattern" else slice(0, 6)
        return lambda both_N: expert(both_N[:, part])[0]

    both_N = torch.cat([u_ND, ngrams_ND], -1)
    experts = [reads(expert) for expert in pool.experts.values()]
    y_ND = reference.mixture(both_N, routing.indices_BTK.flatten(0, 1), routing.gates_BTK.flatten(0, 1), experts)
    if pool.shared is not None:
        y_ND = y_ND + pool.shared(u_ND)[0]
    return x_BTD + y_ND.view_as(x_BTD)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pool_equals_every_expert_on_every_token(k: int, shared: bool) -> None:
    pool, x_BTD = make_pool(shared_expert=shared, routing_k=k).eval(), stream().requires_grad_()
    routing = make_routing(k)
    start_BT = torch.zeros(2, LENGTH, dtype=torch.bool)
    start_BT[0, 5] = True
    segments = Segments(None, start_BT)
    names, leaves = zip(*pool.named_parameters(), strict=True)
    results = []
    for y_BTD in (pool(x_BTD, routing, None, segments)[0], dense(pool, x_BTD, routing, segments)):
        wanted = (x_BTD, routing.logits_BTE, *leaves)
        gradients = torch.autograd.grad(y_BTD.square().sum(), wanted, allow_unused=True, retain_graph=True)
        results.append((y_BTD, *gradients))
    for name, actual, expected in zip(("output", "x", "logits", *names), *results, strict=True):
        assert name.endswith("log_sigma") or expected is not None, name
        if expected is not None:
            assert_close(actual, expected)


@pytest.mark.parametrize("cut", [1, 2, 6])
def test_a_split_stream_gives_the_same(cut: int) -> None:
    pool, x_BTD, routing = make_pool().eval(), stream(), make_routing(2)
    whole, last, _ = pool(x_BTD, routing, None, Segments())

    def part(begin: int, end: int) -> Routing:
        fields = (routing.weights_BTE, routing.indices_BTK, routing.gates_BTK, routing.logits_BTE)
        return Routing(*(field[:, begin:end] for field in fields))

    first, tail, _ = pool(x_BTD[:, :cut], part(0, cut), None, Segments())
    second, tail, _ = pool(x_BTD[:, cut:], part(cut, LENGTH), tail, Segments())
    assert_close(torch.cat([first, second], 1), whole)
    assert_close(tail, last)


def test_frozen_expert_gets_no_gradient_and_passes_it_on() -> None:
    pool, x_BTD, routing = make_pool(), stream().requires_grad_(), make_routing(5)
    pool.experts["general_0"].requires_grad_(False)
    y_BTD, _, _ = pool(x_BTD, routing, None, Segments())
    (y_BTD - x_BTD).square().sum().backward()
    for name, expert in pool.experts.items():
        for parameter in expert.parameters():
            assert (parameter.grad is None) == (name == "general_0")
    assert x_BTD.grad is not None
    assert x_BTD.grad.any()


def test_every_chosen_weight_gets_gradient() -> None:
    pool, routing = make_pool(), make_routing(5)
    y_BTD, _, latent = pool(stream(), routing, None, Segments())
    (y_BTD.square().sum() + latent).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pool.parameters())


def test_pattern_experts_alone_read_ngrams() -> None:
    pool, x_BTD = make_pool().eval(), stream().requires_grad_()
    for expert, name in enumerate(pool.experts):
        indices_BTK = torch.full((2, LENGTH, 1), expert)
        routing = Routing(torch.ones(2, LENGTH, 5), indices_BTK, torch.ones(2, LENGTH, 1), None)
        y_BTD, _, _ = pool(x_BTD, routing, None, Segments())
        (gradient,) = torch.autograd.grad(y_BTD[0, 6].sum(), x_BTD)
        reached = gradient[0].abs().sum(-1).nonzero()[:, 0].tolist()
        assert reached == ([4, 5, 6] if name.startswith("pattern") else [6])


def test_without_pattern_experts_there_is_no_ngram_convolution() -> None:
    pool = make_pool(experts=[ExpertConfig(name="a"), ExpertConfig(name="b")], num_experts=2)
    assert pool.ngram is None


def test_latent_divergence_is_the_mean_over_real_tokens_of_generative_experts() -> None:
    experts = [ExpertConfig(name=name, type="generative") for name in ("a", "b")]
    pool, x_BTD = make_pool(experts=experts).eval(), stream()
    indices_BTK = torch.tensor([0] * 3 + [1] * (LENGTH - 3)).view(1, LENGTH, 1).expand(2, -1, -1)
    routing = Routing(torch.ones(2, LENGTH, 2), indices_BTK, torch.ones(2, LENGTH, 1), None)
    real_BT = torch.arange(LENGTH) < torch.tensor([[8], [0]])
    _, _, latent = pool(x_BTD, routing, None, Segments(real_BT, None))
    u_BTD = pool.norm(x_BTD)
    divergences = [pool.experts["ab"[int(indices_BTK[0, t, 0])]](u_BTD[0, t : t + 1])[1] for t in range(8)]
    assert_close(latent, torch.cat(divergences).mean())


def test_latent_divergence_of_other_experts_is_zero() -> None:
    pool = make_pool(experts=[ExpertConfig(name="a"), ExpertConfig(name="b")], num_experts=2)
    indices_BTK = torch.zeros(2, LENGTH, 1, dtype=torch.int64)
    routing = Routing(torch.ones(2, LENGTH, 2), indices_BTK, torch.ones(2, LENGTH, 1), None)
    assert pool(stream(), routing, None, Segments())[2].item() == 0.0


def test_dropout_acts_in_training_only() -> None:
    pool, x_BTD, routing = make_pool(dropout=0.5), stream(), make_routing(2)
    pool.experts.eval()
    outputs = [pool(x_BTD, routing, None, Segments())[0] for _ in range(2)]
    assert not torch.equal(*outputs)
    pool.eval()
    assert torch.equal(*(pool(x_BTD, routing, None, Segments())[0] for _ in range(2)))
