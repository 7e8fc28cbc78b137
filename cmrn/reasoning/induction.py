"""The one guess that is made, and said: things of one kind are alike, so the latest example settles the question."""

from __future__ import annotations

from dataclasses import replace

from cmrn.reasoning.lexicon import plural
from cmrn.reasoning.theory import Atom, Constant, ForAll, Implies, Literal, Question, Statement, Theory, Variable

__all__ = ["induce"]


def induce(theory: Theory, question: Question) -> tuple[Theory, str] | None:
    """(the theory with a rule drawn from its latest example, what that assumes); None where nothing is alike."""
    asked = [formula for _, formula in question.options if isinstance(formula, Literal) and formula.positive]
    if len(asked) != len(question.options) or len({literal.atom.arguments for literal in asked}) != 1:
        return None
    subject = asked[0].atom.arguments
    wanted = {literal.atom.predicate for literal in asked}
    facts = [one for one in theory.statements if isinstance(one.formula, Literal) and one.formula.positive]
    atoms = [(one, one.formula.atom) for one in facts if isinstance(one.formula, Literal)]
    kinds = [atom.predicate for _, atom in atoms if atom.arguments == subject and atom.predicate not in wanted]
    best: tuple[int, str, Atom, Statement] | None = None
    for kind in kinds:
        alike = {atom.arguments: at for at, (_, atom) in enumerate(atoms) if atom.predicate == kind}
        for statement, atom in atoms:
            if atom.arguments in alike and atom.arguments != subject and atom.predicate in wanted:
                rank = alike[atom.arguments]
                if best is None or rank > best[0]:
                    best = (rank, kind, atom, statement)
    if best is None:
        return None
    _, kind, atom, statement = best
    variable = Variable("x")
    rule = ForAll((variable,), Implies(Literal(Atom(kind, (variable,))), Literal(Atom(atom.predicate, (variable,)))))
    example = atom.arguments[0]
    name = example.name if isinstance(example, Constant) else "one"
    text = f"{plural(kind)} are like {name} ({statement.id}): {atom.predicate.removeprefix('is ')}"
    added = Statement("I1", rule, text, 0, 0, "rule")
    return replace(theory, statements=(*theory.statements, added)), f"by example: {text}"
