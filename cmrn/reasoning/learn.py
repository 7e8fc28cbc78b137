"""Rules learned from examples of what was given and what then held, some of it seen wrongly.

Candidates are weighted by gradient through chaining in train mode, hardened, and searched over in proof mode for the
rules that describe the examples in the fewest words. Letters as in `chain`, and N examples, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmrn.reasoning.chain import Program, chain, compile_rules

__all__ = ["Examples", "LearnedRule", "Rule", "learn_rules", "train_weights"]

Rule = tuple[tuple[int, ...], int]
LONGEST_BODY = 2
MOST_CANDIDATES = 48
MOST_ROUNDS = 6


@dataclass(frozen=True)
class Examples:
    """evidence_LN: what each example was given. observed_LN: what then was seen to hold. seen_LN: where one looked.

    The first two are floats in {0, 1}, the third bool. Literals are those of `chain`: two channels an atom.
    """

    evidence_LN: Tensor
    observed_LN: Tensor
    seen_LN: Tensor

    def scored_LN(self) -> Tensor:
        """Bool, the observations that rules must explain: those seen and not given."""
        return self.seen_LN & (self.evidence_LN == 0)


@dataclass(frozen=True)
class LearnedRule:
    """Premises and a head, as literals; degree: the share of the examples in which the body held and the head did."""

    body: tuple[int, ...]
    head: int
    degree: float


def learn_rules(examples: Examples, *, flips: float = 0.1, depth: int = 3) -> tuple[LearnedRule, ...]:
    """The rules of at most two premises that best explain the examples, in the order of their heads.

    flips: the share of observations that are wrong; depth: the longest chain of rules that the examples show. Rules
    pay for their length, so one that explains only what chance would is left out.
    """
    values_LN = torch.maximum(examples.evidence_LN, examples.observed_LN * examples.seen_LN)
    found: list[Rule] = []
    options: list[Rule] = []
    for number in range(MOST_ROUNDS):
        options = list(dict.fromkeys((*options, *_propose(examples, values_LN, flips, number > 0))))
        before = found
        if number == 0 and options:
            weights_C = train_weights(examples, options, flips=flips, depth=depth)
            found = [rule for rule, weight in zip(options, weights_C.tolist(), strict=True) if weight > 0.5]
        by_head = _by_head((*options, *found))
        found = _descend(found, by_head, examples, flips, depth)
        if set(found) == set(before):
            found = _widened(found, by_head, examples, flips, depth)
        values_LN = _closure(found, examples, depth)
        if set(found) == set(before):
            break
    return tuple(_graded(rule, values_LN, examples, flips) for rule in sorted(found, key=lambda one: (one[1], one[0])))


def train_weights(
    examples: Examples, rules: Sequence[Rule], *, flips: float = 0.1, depth: int = 3, steps: int = 120
) -> Tensor:
    """(C,) weights in [0, 1] of candidate rules that make what chaining concludes the likeliest, by gradient.

    The likelihood allows for observations being wrong; every rule pays for its weight.
    """
    program = compile_rules(rules, len(examples.evidence_LN))
    logits_C = torch.zeros(len(rules), requires_grad=True)
    optimizer = torch.optim.Adam([logits_C], lr=0.1)
    scored_LN = examples.scored_LN()
    for _ in range(steps):
        weighted = Program(program.premises_RK, program.heads_R, logits_C.sigmoid(), program.literals)
        values_LN = chain(weighted, examples.evidence_LN, mode="train", most_steps=depth).values_LB
        likely_LN = flips + (1 - 2 * flips) * values_LN
        nats_LN = torch.where(examples.observed_LN > 0, likely_LN, 1 - likely_LN).log()
        loss = -nats_LN[scored_LN].sum() + logits_C.sigmoid().sum() * math.log(len(examples.evidence_LN))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits_C.detach().sigmoid()


def _propose(examples: Examples, values_LN: Tensor, flips: float, explained: bool) -> list[Rule]:
    """For each literal, the bodies of one and two premises under which it is seen far more often than elsewhere.

    explained: values are what follows from rules, and what they explain is left aside.
    """
    count = len(values_LN)
    pairs_P2 = torch.combinations(torch.arange(count), LONGEST_BODY)
    both_PN = values_LN[pairs_P2[:, 0]] * values_LN[pairs_P2[:, 1]]
    bodies = [(i,) for i in range(count)] + [tuple(pair) for pair in pairs_P2.tolist()]
    held_CN = torch.cat((values_LN, both_PN))
    scored_LN = examples.scored_LN().to(held_CN.dtype)
    if explained:
        scored_LN = scored_LN * (1 - values_LN)
    hits_CL = held_CN @ (scored_LN * examples.observed_LN).T
    tries_CL = held_CN @ scored_LN.T
    rate_L = (scored_LN * examples.observed_LN).sum(1) / scored_LN.sum(1).clamp(min=1)
    rate_L = rate_L.clamp(flips, 1 - flips)
    share_CL = (hits_CL / tries_CL.clamp(min=1)).clamp(flips, 1 - flips)
    gains_CL = hits_CL * (share_CL / rate_L).log() + (tries_CL - hits_CL) * ((1 - share_CL) / (1 - rate_L)).log()
    gains_CL = gains_CL.where(share_CL > rate_L, 0.0)
    options: list[Rule] = []
    for head in range(count):
        order = gains_CL[:, head].argsort(descending=True)[: 2 * MOST_CANDIDATES].tolist()
        good = [bodies[c] for c in order if gains_CL[c, head] > 0 and head not in bodies[c]]
        good = [body for body in good if head ^ 1 not in body][:MOST_CANDIDATES]
        options += [(body, head) for body in good]
    return options


def _by_head(rules: Iterable[Rule]) -> dict[int, list[Rule]]:
    found: dict[int, list[Rule]] = {}
    for rule in dict.fromkeys(rules):
        found.setdefault(rule[1], []).append(rule)
    return found


def _widened(
    rules: list[Rule], by_head: Mapping[int, Sequence[Rule]], examples: Examples, flips: float, depth: int
) -> list[Rule]:
    """The rules after a change of two heads at once, settled, that shortens the description; else the same ones."""
    best = _cost(rules, examples, flips, depth)
    tried = {frozenset(rules)}
    for pair, kicked in _kicked(rules, by_head, examples, flips, depth):
        if frozenset(kicked) in tried:
            continue
        tried.add(frozenset(kicked))
        changed = _descend(kicked, {head: by_head[head] for head in pair}, examples, flips, depth)
        if _cost(changed, examples, flips, depth) < best - 1e-6:
            return changed
    return rules


def _descend(
    rules: list[Rule], by_head: Mapping[int, Sequence[Rule]], examples: Examples, flips: float, depth: int
) -> list[Rule]:
    """The rules after every single change of these heads that shortens the description of the examples."""
    best = _cost(rules, examples, flips, depth)
    improved = True
    while improved:
        improved = False
        for head, choices in by_head.items():
            for changed in _changes(rules, head, choices, examples, flips, depth):
                cost = _cost(changed, examples, flips, depth)
                if cost < best - 1e-6:
                    rules, best, improved = changed, cost, True
                    break
        if not improved:
            for changed in _moved(rules, by_head):
                cost = _cost(changed, examples, flips, depth)
                if cost < best - 1e-6:
                    rules, best, improved = changed, cost, True
                    break
    return rules


def _kicked(
    rules: list[Rule], by_head: Mapping[int, Sequence[Rule]], examples: Examples, flips: float, depth: int
) -> Iterator[tuple[tuple[int, int], list[Rule]]]:
    """Two heads, one of which a rule for the other needs, with rule sets where they change at once.

    They trade places, or the rules of both are found anew, the one's before the other's.
    """
    heads = {head for _, head in rules}
    pairs = sorted({(min(i, head), max(i, head)) for body, head in rules for i in body if i in heads})
    for one, other in pairs:
        trade = {one: other, other: one}
        own = [rule for rule in rules if rule[1] in trade]
        rest = [rule for rule in rules if rule[1] not in trade]
        traded = [(tuple(sorted(trade.get(i, i) for i in body)), trade[head]) for body, head in own]
        yield (one, other), list(dict.fromkeys((*rest, *traded)))
        for first, second in ((one, other), (other, one)):
            anew = _anew(rest, first, by_head[first], examples, flips, _closure(rest, examples, depth))
            both = _anew(anew, second, by_head[second], examples, flips, _closure(anew, examples, depth))
            yield (one, other), both


def _anew(
    rules: Sequence[Rule], head: int, choices: Sequence[Rule], examples: Examples, flips: float, values_LN: Tensor
) -> list[Rule]:
    """The rules with those that cover best what was seen of a head in place of its own; values: what follows so far."""
    signs_N = (2 * examples.observed_LN[head] - 1) * examples.scored_LN()[head]
    options = list(dict.fromkeys(choices))
    held_CN = torch.stack([_holds(rule, values_LN) for rule in options])
    words_C = torch.tensor([1.0 + len(body) for body, _ in options])
    gains_CN = held_CN * signs_N * math.log((1 - flips) / flips)
    chosen = _cover(held_CN, gains_CN, words_C * math.log(len(values_LN)))
    return [*(rule for rule in rules if rule[1] != head), *(options[c] for c in chosen)]


def _moved(rules: Sequence[Rule], heads: Container[int]) -> Iterator[list[Rule]]:
    """Rule sets in which a rule concludes what its head leads to or comes from, alone or without one rule of these."""
    linked: dict[int, set[int]] = {}
    for body, head in rules:
        for premise in body:
            linked.setdefault(premise, set()).add(head)
            linked.setdefault(head, set()).add(premise)
    for rule in [one for one in rules if one[1] in heads]:
        for head in sorted(linked.get(rule[1], set()) - set(rule[0])):
            moved = [(rule[0], head) if one == rule else one for one in rules]
            if len(set(moved)) == len(moved):
                yield moved
                near = [one for one in rules if one != rule and one[1] in (rule[1], head)]
                yield from ([one for one in moved if one != dropped] for dropped in near)


def _changes(
    rules: list[Rule], head: int, choices: Sequence[Rule], examples: Examples, flips: float, depth: int
) -> list[list[Rule]]:
    """Rule sets that differ for one head: without a rule, with one more, with one in place of another, or all anew."""
    values_LN = _closure(rules, examples, depth)
    signs_N = (2 * examples.observed_LN[head] - 1) * examples.scored_LN()[head]
    own = [rule for rule in rules if rule[1] == head]
    free = [rule for rule in dict.fromkeys(choices) if rule not in own]
    held_CN = torch.stack([_holds(rule, values_LN) for rule in free]) if free else values_LN.new_zeros(0, len(signs_N))
    found: list[list[Rule]] = []
    for left_out in (None, *own):
        kept = [rule for rule in rules if rule != left_out]
        others = [rule for rule in own if rule != left_out]
        covered_N = torch.stack([_holds(rule, values_LN) for rule in others]).amax(0) if others else 0 * signs_N
        gains_C = held_CN @ (signs_N * (1 - covered_N))
        order = gains_C.argsort(descending=True)[:4].tolist()
        found += [[*kept, free[c]] for c in order]
        if left_out is not None:
            found.append(kept)
    return [*found, _anew(rules, head, choices, examples, flips, values_LN)]


def _cover(held_CN: Tensor, gains_CN: Tensor, costs_C: Tensor) -> list[int]:
    """Candidates taken one by one, each the one that gains most on the examples not yet covered, while one gains."""
    free_N = torch.ones_like(held_CN[0])
    chosen: list[int] = []
    while True:
        net_C = gains_CN @ free_N - costs_C
        best = int(net_C.argmax())
        if net_C[best] <= 0:
            return chosen
        chosen.append(best)
        free_N = free_N * (1 - held_CN[best])


def _holds(rule: Rule, values_LN: Tensor) -> Tensor:
    return values_LN[list(rule[0])].amin(0)


def _cost(rules: Sequence[Rule], examples: Examples, flips: float, depth: int) -> float:
    """Nats to tell the rules and, given what follows from them, the observations."""
    values_LN = _closure(rules, examples, depth)
    wrong = (values_LN != examples.observed_LN) & examples.scored_LN()
    words = sum(1 + len(body) for body, _ in rules)
    return float(wrong.sum()) * math.log((1 - flips) / flips) + words * math.log(len(values_LN))


def _closure(rules: Sequence[Rule], examples: Examples, depth: int) -> Tensor:
    if not rules:
        return examples.evidence_LN
    return chain(compile_rules(rules, len(examples.evidence_LN)), examples.evidence_LN, most_steps=depth).values_LB


def _graded(rule: Rule, values_LN: Tensor, examples: Examples, flips: float) -> LearnedRule:
    """The rule with its degree, freed of the flips: seen true in a share s, it holds in (s − f) / (1 − 2f)."""
    held_N = (_holds(rule, values_LN) > 0) & examples.scored_LN()[rule[1]]
    share = float(examples.observed_LN[rule[1]][held_N].mean()) if bool(held_N.any()) else 1.0
    return LearnedRule(rule[0], rule[1], min(1.0, max(0.0, (share - flips) / (1 - 2 * flips))))
