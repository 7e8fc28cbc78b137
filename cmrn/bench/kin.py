"""Families drawn at random, and paths through them: who is whose uncle is known from the family, never from a table.

A path is drawn as the CLUTRR data set does it (Sinha et al. 2019): two related people, between whom others are put.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Family", "KinPath", "draw_family", "draw_path", "functional_pairs"]

_STARTS = ("Ba", "Ce", "Do", "Fi", "Ga", "He", "Jo", "Ka", "Lu", "Me", "No", "Pe", "Ra", "Su", "To")
_BOYS = tuple(start + end for start in _STARTS for end in ("rid", "mmon", "lvin", "stor", "bert"))
_GIRLS = tuple(start + end for start in _STARTS for end in ("lia", "nna", "rith", "sta", "vina"))
_BY_SEX = {
    "parent": ("father", "mother"), "child": ("son", "daughter"), "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"), "grandparent": ("grandfather", "grandmother"),
    "grandchild": ("grandson", "granddaughter"), "pibling": ("uncle", "aunt"), "nibling": ("nephew", "niece"),
    "parent-in-law": ("father-in-law", "mother-in-law"), "child-in-law": ("son-in-law", "daughter-in-law"),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """People by name. female; parents and spouse of each, where known."""

    female: frozenset[str]
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    spouse: dict[str, str] = field(default_factory=dict)

    def people(self) -> tuple[str, ...]:
        """Everyone, in a fixed order."""
        return tuple(sorted({*self.parents, *self.spouse}))

    def children(self, person: str) -> set[str]:
        """The children of a person."""
        return {name for name, parents in self.parents.items() if person in parents}

    def siblings(self, person: str) -> set[str]:
        """Those who have the same parents."""
        return {name for parent in self.parents.get(person, ()) for name in self.children(parent)} - {person}

    def relations(self) -> Mapping[tuple[str, str], str]:
        """What the second of two people is to the first, for all who have one word for it."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for person in self.people():
            for kind, others in self._kin(person).items():
                for other in others - {person}:
                    found[person, other].add(_BY_SEX[kind][other in self.female])
        return {pair: next(iter(words)) for pair, words in found.items() if len(words) == 1}

    def _kin(self, person: str) -> dict[str, set[str]]:
        parents, children = set(self.parents.get(person, ())), self.children(person)
        partner = {self.spouse[person]} if person in self.spouse else set()
        siblings = self.siblings(person)
        piblings = {one for parent in parents for one in self.siblings(parent)}
        niblings = {child for one in siblings for child in self.children(one)}
        return {
            "parent": parents,
            "child": children,
            "sibling": siblings,
            "spouse": partner,
            "grandparent": {one for parent in parents for one in self.parents.get(parent, ())},
            "grandchild": {one for child in children for one in self.children(child)},
            "pibling": piblings | {self.spouse[one] for one in piblings if one in self.spouse},
            "nibling": niblings | {child for p in partner for one in self.siblings(p) for child in self.children(one)},
            "parent-in-law": {one for p in partner for one in self.parents.get(p, ())},
            "child-in-law": {self.spouse[child] for child in children if child in self.spouse},
        }


@dataclass(frozen=True)
class KinPath:
    """People in a row, what each is to the one before, and what the last is to the first."""

    people: tuple[str, ...]
    relations: tuple[str, ...]
    target: str


def draw_family(rng: random.Random) -> Family:
    """Four generations from one couple; those who marry in bring their parents."""
    boys, girls = rng.sample(_BOYS, len(_BOYS)), rng.sample(_GIRLS, len(_GIRLS))
    family = Family(frozenset(_GIRLS))
    first = (boys.pop(), girls.pop())
    family.spouse.update({first[0]: first[1], first[1]: first[0]})
    couples = [first]
    for generation in range(3):
        following = []
        for couple in couples:
            for _ in range(rng.randint(3, 4) if generation < 2 else 2):
                if len(boys) < 4 or len(girls) < 4:
                    continue
                girl = rng.random() < 0.5
                child, partner = (girls.pop(), boys.pop()) if girl else (boys.pop(), girls.pop())
                family.parents[child] = couple
                if generation == 2:
                    continue
                family.spouse.update({child: partner, partner: child})
                if rng.random() < 0.4:
                    family.parents[partner] = (boys.pop(), girls.pop())
                following.append((child, partner))
        couples = following
    return family


def functional_pairs(families: int = 200, seed: int = 0) -> dict[tuple[str, str], str]:
    """For two relations in a row, the one relation that they can come to; pairs that can come to several are left out.

    Found by looking through many families.
    """
    rng = random.Random(seed)
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for _ in range(families):
        related = draw_family(rng).relations()
        after: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for (one, two), word in related.items():
            after[one].append((two, word))
        for (one, two), word in related.items():
            for three, last in after[two]:
                if three != one:
                    seen[word, last].add(related.get((one, three), ""))
    return {pair: next(iter(words)) for pair, words in seen.items() if len(words) == 1 and words != {""}}


def draw_path(rng: random.Random, family: Family, hops: int, pairs: Mapping[tuple[str, str], str]) -> KinPath | None:
    """A path of so many hops that comes down to one relation pair by pair; None where the draw got stuck."""
    related = family.relations()
    people = list(rng.choice(sorted(related)))
    while len(people) <= hops:
        places = rng.sample(range(len(people) - 1), len(people) - 1)
        options = [(at, one) for at in places for one in family.people() if one not in people
                   and (people[at], one) in related and (one, people[at + 1]) in related
                   and (related[people[at], one], related[one, people[at + 1]]) in pairs]  # fmt: skip
        if not options:
            return None
        at = options[0][0]
        people.insert(at + 1, rng.choice([one for place, one in options if place == at]))
    words = tuple(related[pair] for pair in pairwise(people))
    return KinPath(tuple(people), words, related[people[0], people[-1]])
