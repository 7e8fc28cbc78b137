"""How fast rules fire, their reasons kept, and the same programs in clingo; questions of a chain beside it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cmrn.bench.oracles import require, to_clingo
from cmrn.bench.random_theories import X, ask, literal, theory
from cmrn.bench.report import Progress, Row
from cmrn.errors import GuaranteeError
from cmrn.reasoning.chain import Program, chain
from cmrn.reasoning.solve import solve
from cmrn.reasoning.theory import And, Constant, ForAll, Implies, Question, Theory

__all__ = ["speed_rows"]

FLOOR = 50e6
REPEATS = 9
RULES, KINDS, INDIVIDUALS = 2048, 1024, 64
ANN = Constant("ann")


def speed_rows(seed: int, progress: Progress) -> list[Row]:
    """Rule firings a second; and the time to all that follows, and to one answer with its proof, beside clingo's.

    Raises:
        MissingExtraError: clingo is not installed.
        GuaranteeError: clingo finds that something else follows.
    """
    progress(f"{RULES:,} rules over {INDIVIDUALS} individuals")
    program, evidence_LB = _program(seed)
    firings, ours = _best(lambda: chain(program, evidence_LB, reasons=True).steps * RULES * INDIVIDUALS)
    text = _as_clingo(program, evidence_LB)
    progress("the same in clingo")
    follows, theirs = _best(lambda: len(_model(text)))
    if follows != int(chain(program, evidence_LB).values_LB.sum()):
        raise GuaranteeError("clingo finds that something else follows from the rules")
    name = f"{torch.get_num_threads()} threads"
    rows = [
        Row(f"rule firings, reasons kept, {name}", firings / ours / 1e6, "M/s", limit=FLOOR / 1e6),
        Row(f"all that follows from {RULES:,} rules", ours * 1e3, "ms", "clingo", theirs * 1e3),
    ]
    return rows + _question_rows(seed, progress)


def _best(work: Callable[[], int]) -> tuple[int, float]:
    """What the work returns, and the median of its times."""
    times, result = [], 0
    for _ in range(REPEATS):
        started = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - started)
    return result, statistics.median(times)


def _program(seed: int) -> tuple[Program, Tensor]:
    """Rules `two kinds make a third` over many kinds, of which each individual has a few."""
    generator = torch.Generator().manual_seed(seed)
    premises_RK = torch.randint(0, KINDS, (RULES, 2), generator=generator)
    heads_R = torch.randint(0, KINDS, (RULES,), generator=generator)
    evidence_LB = (torch.rand(KINDS, INDIVIDUALS, generator=generator) < 0.3).float()
    return Program(premises_RK, heads_R, torch.ones(RULES), KINDS), evidence_LB


def _as_clingo(program: Program, evidence_LB: Tensor) -> str:
    pairs = zip(program.premises_RK.tolist(), program.heads_R.tolist(), strict=True)
    lines = [f"k{head}(X) :- k{one}(X), k{two}(X)." for (one, two), head in pairs]
    return "\n".join(lines + [f"k{kind}({name})." for kind, name in evidence_LB.nonzero().tolist()])


def _model(text: str) -> set[str]:
    """The atoms of a program's one answer set."""
    control = require("clingo").Control(["--warn=none"])
    control.add("base", [], text)
    control.ground([("base", [])])
    found: set[str] = set()
    control.solve(on_model=lambda model: found.update(map(str, model.symbols(atoms=True))))
    return found


def _question_rows(seed: int, progress: Progress) -> list[Row]:
    """Questions whose proof is a chain, other rules around it: ours with the proof's steps, clingo without."""
    rows = []
    for depth in (5, 25):
        progress(f"questions of depth {depth}")
        known, asked = _chain_theory(random.Random(seed), depth)
        steps, ours = _best(lambda known=known, asked=asked: len(solve(known, asked).steps))  # type: ignore[misc]
        if steps < depth:
            raise GuaranteeError(f"a chain of {depth} was proved in {steps} steps")
        text = to_clingo(known.statements, [ANN])
        _, theirs = _best(lambda text=text: len(_model(text)))  # type: ignore[misc]
        rows.append(Row(f"a question of depth {depth}, proof included", ours * 1e3, "ms", "clingo", theirs * 1e3))
    return rows


def _chain_theory(rng: random.Random, depth: int) -> tuple[Theory, Question]:
    """Kinds that lead from one to the next, as many rules that lead elsewhere, and whether the last is reached."""
    links = [(f"k{at}", f"k{at + 1}") for at in range(depth)]
    links += [(f"k{rng.randrange(depth)}", f"j{at}") for at in range(depth)]
    rng.shuffle(links)
    rules = [ForAll((X,), Implies(And((literal(one, X),)), literal(two, X))) for one, two in links]
    return theory([literal("k0", ANN), *rules], "closed"), ask(literal(f"k{depth}", ANN))
