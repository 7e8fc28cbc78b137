"""The order in which rules with negation as failure can be used: what a rule finds absent must be settled before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["components", "find_cycle", "possible_rules", "stratify"]

Rule = tuple[tuple[int, ...], int]


def possible_rules(rules: Sequence[Rule]) -> list[int]:
    """The numbers of the rules whose positive premises could ever hold, were everything negated to hold.

    Literals are ±(atom + 1).
    """
    waiting: dict[int, list[int]] = {}
    missing: list[int] = []
    ready: list[int] = []
    for number, (body, _) in enumerate(rules):
        positive = {literal for literal in body if literal > 0}
        missing.append(len(positive))
        for literal in positive:
            waiting.setdefault(literal, []).append(number)
        if not positive:
            ready.append(number)
    reached: set[int] = set()
    kept: list[int] = []
    while ready:
        number = ready.pop()
        kept.append(number)
        head = rules[number][1]
        if head > 0 and head not in reached:
            reached.add(head)
            for follower in waiting.get(head, ()):
                missing[follower] -= 1
                if missing[follower] == 0:
                    ready.append(follower)
    return sorted(kept)


def stratify(rules: Sequence[Rule]) -> dict[int, int] | list[int]:
    """The level of every literal, or a cycle of literals through an absence where there is no such order.

    A negative literal stands above its atom wherever a rule has it as a premise.
    """
    after: dict[int, list[int]] = {}
    for body, head in rules:
        after.setdefault(head, [])
        for literal in body:
            after.setdefault(literal, []).append(head)
    for literal in [literal for literal in after if literal < 0 and any(literal in body for body, _ in rules)]:
        after.setdefault(-literal, []).append(literal)
    levels: dict[int, int] = {}
    for component in reversed(components(after)):
        inside = set(component)
        for literal in component:
            if literal < 0 and -literal in inside and literal in after.get(-literal, ()):
                return find_cycle(literal, inside, after)
        level = max((levels.get(literal, 0) for literal in component), default=0)
        for literal in component:
            levels[literal] = level
            for follower in after[literal]:
                if follower not in inside:
                    levels[follower] = max(levels.get(follower, 0), level + (follower == -literal))
    return levels


def find_cycle(start: int, inside: set[int], after: Mapping[int, Sequence[int]]) -> list[int]:
    """The shortest way from a negative literal back to it through its own atom."""
    before: dict[int, int] = {}
    frontier = [start]
    while frontier and -start not in before:
        reached = []
        for literal in frontier:
            for follower in after[literal]:
                if follower in inside and follower not in before:
                    before[follower] = literal
                    reached.append(follower)
        frontier = reached
    path = [-start]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]


def components(after: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Strongly connected components, each behind those that it leads to (Tarjan 1972, without recursion)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in after:
        if root in order:
            continue
        work = [(root, iter(after[root]))]
        order[root] = low[root] = len(order)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, followers = work[-1]
            for follower in followers:
                if follower not in order:
                    order[follower] = low[follower] = len(order)
                    stack.append(follower)
                    on_stack.add(follower)
                    work.append((follower, iter(after[follower])))
                    break
                if follower in on_stack:
                    low[node] = min(low[node], order[follower])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    position = stack.index(node)
                    found.append(stack[position:])
                    on_stack.difference_update(stack[position:])
                    del stack[position:]
    return found
