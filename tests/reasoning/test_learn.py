from __future__ import annotations

import random

import pytest
import torch

from cmrn.bench.hidden_rules import examples_of, f1, hidden_rules, long_chain, right_at_depth, shallow_examples
from cmrn.bench.kin import draw_family, draw_path, functional_pairs
from cmrn.reasoning.chain import Program, chain, compile_rules
from cmrn.reasoning.compose import compose, learn_compositions
from cmrn.reasoning.learn import Examples, learn_rules, train_weights


def test_hidden_rules_are_recovered_from_noisy_examples() -> None:
    hidden = hidden_rules(1)
    learned = learn_rules(examples_of(hidden, 200, 0.1, 1))
    assert f1(hidden, {(rule.body, rule.head) for rule in learned}) >= 0.95
    assert all(0.6 < rule.degree <= 1 for rule in learned)


@pytest.mark.slow
def test_rules_that_need_each_other_are_changed_together() -> None:
    hidden = hidden_rules(6)
    learned = {(rule.body, rule.head) for rule in learn_rules(examples_of(hidden, 200, 0.1, 6))}
    assert {((12, 50), 46), ((46, 50), 44)} <= learned
    assert f1(hidden, learned) >= 0.95


def test_noise_alone_teaches_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    evidence_LN = (torch.rand(16, 100, generator=generator) < 0.3).float()
    observed_LN = (torch.rand(16, 100, generator=generator) < 0.1).float()
    examples = Examples(evidence_LN, observed_LN, torch.ones(16, 100, dtype=torch.bool))
    assert learn_rules(examples) == ()


@pytest.mark.slow
def test_short_chains_teach_long_ones() -> None:
    hidden = long_chain(0, 25)
    learned = learn_rules(shallow_examples(hidden, 600, 0.1, 0, depth=3), depth=3)
    assert right_at_depth(hidden, [(rule.body, rule.head) for rule in learned], 200, 0) >= 0.95
    assert right_at_depth(hidden, [(rule.body, rule.head) for rule in learned[:-1]], 200, 0) <= 0.6


def test_gradient_finds_the_rule_and_hardened_modes_agree() -> None:
    hidden = hidden_rules(2, count=4, atoms=12, given=8, deepest=2)
    examples = examples_of(hidden, 200, 0.05, 2)
    options = [*hidden.rules, *(((2 * atom,), head) for _, head in hidden.rules for atom in (6, 7))]
    options = list(dict.fromkeys(options))
    weights_C = train_weights(examples, options, flips=0.05, depth=2)
    assert [rule for rule, weight in zip(options, weights_C, strict=True) if weight > 0.5] == list(hidden.rules)
    program = compile_rules(options, 24)
    hard = Program(program.premises_RK, program.heads_R, (weights_C > 0.5).float(), 24)
    proof = chain(hard, examples.evidence_LN, mode="proof").values_LB
    assert torch.equal(proof, chain(hard, examples.evidence_LN, mode="train").values_LB)


def test_compositions_reach_beyond_what_was_shown() -> None:
    shown = [(("father", "father"), "grandfather"), (("mother", "son"), "brother"), (("brother", "father"), "father"),
             (("mother", "son", "father", "father"), "grandfather")]  # fmt: skip
    table = learn_compositions(shown)
    doubtful = {**table, ("brother", "brother"): {"brother": 0.9}}
    found = compose(("mother", "son", "brother", "father", "father"), doubtful)
    assert found is not None
    assert (found.relation, found.degree, len(found.steps)) == ("grandfather", 1.0, 4)
    less = compose(("mother", "son", "brother"), doubtful)
    assert less is not None
    assert (less.relation, less.degree) == ("brother", 0.9)
    assert compose(("aunt", "father"), table) is None


def test_a_long_path_tells_the_pair_it_comes_down_to() -> None:
    table = learn_compositions([(("a", "b"), "c"), (("a", "b", "d"), "e")])
    assert table["c", "d"] == {"e": 1.0}


def test_families_and_their_paths_are_true() -> None:
    pairs = functional_pairs(40)
    assert pairs["father", "mother"] == "grandmother"
    assert ("aunt", "daughter") not in pairs
    rng = random.Random(3)
    paths = [draw_path(rng, draw_family(rng), 4, pairs) for _ in range(40)]
    known = [path for path in paths if path is not None]
    assert known
    table = learn_compositions([(pair, word) for pair, word in pairs.items()])
    for path in known:
        found = compose(path.relations, table)
        assert found is not None
        assert found.relation == path.target
