from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cmrn.bench.domains_terms import Term, read_terms, term_rows, term_weights
from cmrn.config import CMRNConfig, ExpertConfig
from cmrn.errors import UsageError
from cmrn.model import CMRN
from cmrn.tokenizer import CMRNTokenizer

WORDS = CMRNTokenizer.train(["a group of functions and a court of law and a fever"], 270)


def model(*domains: str) -> CMRN:
    torch.manual_seed(1)
    experts = (*(ExpertConfig(name=name, domains=(name,)) for name in domains), ExpertConfig(name="free"))
    config = CMRNConfig(
        vocab_size=WORDS.vocab_size, d_model=16, head_dim=8, experts=experts, memory_dim=16, memory_heads=2,
        num_blocks=2, temporal_layers=1, routing_k=2, gradient_checkpointing=False, dropout=0.0,
    )  # fmt: skip
    return CMRN(config, WORDS).eval()


def favour(network: CMRN, index: int) -> None:
    """Let one expert be the first choice for everything: its row takes any tag, and the choice sees it first."""
    with torch.no_grad():
        for block in network.blocks:
            routing = block.router.routing_network
            routing.weight_ER.zero_()
            routing.bias_E.zero_()
            routing.bias_E[index] = 9.0


def test_terms_are_read_as_they_are_written(tmp_path: Path) -> None:
    rows = [("MATH", "prime_number"), ("EMOTION", "joy"), ("LEGAL", "tort")]
    (tmp_path / "data" / "routing").mkdir(parents=True)
    lines = "".join(json.dumps({"domain": domain, "term": term}) + "\n" for domain, term in rows)
    (tmp_path / "data" / "routing" / "wordnet_domain_terms.jsonl").write_text(lines)
    assert read_terms(tmp_path) == (Term("prime number", "math"), Term("tort", "legal"))
    with pytest.raises(UsageError):
        read_terms(tmp_path / "nowhere")


def test_a_term_weighs_as_it_does_alone_and_sums_to_one() -> None:
    network = model("math", "medical", "code", "legal")
    texts = ["group", "a court of law and a fever", "x"]
    together = term_weights(network, WORDS, texts)
    alone = torch.cat([term_weights(network, WORDS, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.sum(1), torch.ones(3))


def test_the_expert_with_the_largest_weight_counts_whoever_owns_it() -> None:
    network = model("math", "medical", "code", "legal")
    favour(network, 4)
    terms = [Term("group", "math"), Term("fever", "medical")]
    with torch.no_grad():
        for block in network.blocks:
            block.router.routing_network.bias_E[1] = 5.0
    everyone, four = term_rows(network, terms)
    assert everyone.value in (0.0, 0.5)
    assert four.value == 0.5
    assert four.detail["medical"] == 1.0
    assert four.peer_value == 0.59
    with pytest.raises(UsageError, match="no expert owns code"):
        term_rows(model("math", "medical"), terms)
