"""`cmrn reason`: what follows from premises in plain English, with a proof that was checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmrn_cli.console import Settings, console, notice, sanitize, write_line
from cmrn_cli.model import read_text
from cmrn_cli.output import write_json

if TYPE_CHECKING:
    from rich.tree import Tree

    from cmrn.reasoning.proof import Step
    from cmrn.reasoning.reason import Reasoned

__all__ = ["EXAMPLES", "reason"]

EXAMPLES = (
    'cmrn reason "All birds can fly. Tweety is a bird. Can Tweety fly?" --proof',
    'cmrn reason "Every cat is a pet. Tom is a cat. Is Tom a pet?" --json',
    'echo "Bob is kind or red. Bob is not red. Is Bob kind?" | cmrn reason - --exit-status',
)
_EXIT = {"true": 0, "false": 20, "unknown": 21, "both": 22, None: 23}
_MOST_NODES = 2000


def reason(
    settings: Settings,
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="Premises and questions; - reads stdin.")],
    facts: Annotated[
        list[Path] | None, typer.Option("--facts", metavar="F", help="A file of facts. May be repeated.")
    ] = None,
    rules: Annotated[
        list[Path] | None, typer.Option("--rules", metavar="F", help="A file of rules. May be repeated.")
    ] = None,
    world: Annotated[
        str, typer.Option("--world", metavar="W", help="open: what is not said is unknown; closed: it is false.")
    ] = "open",
    proof: Annotated[bool, typer.Option("--proof", help="Show the proof as a tree.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 3 if anything was not understood, or read loosely.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.001, metavar="S", help="Most seconds for each question.")
    ] = None,
    exit_status: Annotated[
        bool, typer.Option("--exit-status", help="Exit 0 true, 20 false, 21 unknown, 22 both, 23 no truth value.")
    ] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="F", help="Write the answer as one HTML page.")] = None,
) -> None:
    """Answer questions about premises in plain English; each step can be checked."""
    from cmrn.errors import UsageError

    if world not in ("open", "closed"):
        raise UsageError(f"no world {world!r}", where="--world", hint="--world open or --world closed")
    whole = read_text(text)

    from cmrn.reasoning.limits import Limits
    from cmrn.reasoning.reason import examine

    limits = Limits() if timeout is None else Limits(seconds=timeout)
    found = examine(
        whole,
        "closed" if world == "closed" else "open",
        facts=[_read(path, "--facts") for path in facts or ()],
        rules=[_read(path, "--rules") for path in rules or ()],
        limits=limits,
    )
    if html is not None:
        from cmrn_cli.reason_page import write_page

        write_page(html, found)
        notice(settings, f"wrote {html}")
    if settings.json:
        write_json(_document(found))
    else:
        for each in found:
            _show(settings, each, proof)
        _show_lost(settings, found[0])
    if strict:
        _refuse_partial(found)
    if exit_status:
        raise typer.Exit(_EXIT[found[0].answer.answer])


def _refuse_partial(found: tuple[Reasoned, ...]) -> None:
    """Refuse an answer that leaves a sentence out or rests on a loose reading.

    Raises:
        DataError: there is such an answer; names the first sentence, or the question.
    """
    from cmrn.errors import DataError

    lost = found[0].reading.not_understood
    if lost:
        raise DataError(
            f"{len(lost)} of the sentences were not understood, the first at “{lost[0].at}”",
            where=f"chars {lost[0].start}-{lost[0].end}",
            hint=f"nearest accepted form: {lost[0].hint}",
        )
    loose = next((each for each in found if each.answer.status == "partial"), None)
    if loose is not None and loose.question is not None:
        raise DataError(
            "the answer rests on a loose reading: see what it assumed",
            where=f"chars {loose.question.start}-{loose.question.end}",
            hint="say what is assumed as a premise of its own",
        )


def _read(path: Path, option: str) -> str:
    """The text of a file.

    Raises:
        UsageError: there is no such file.
        DataError: it is not UTF-8.
    """
    from cmrn.errors import DataError, UsageError

    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: byte {error.start}", where=str(path)) from error
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}", where=f"{option} {path}") from error


def _document(found: tuple[Reasoned, ...]) -> dict[str, object]:
    """The first question's answer; where there are several, every answer under `answers` too."""
    document = dict(found[0].to_json())
    if len(found) > 1:
        document["answers"] = [each.to_json() for each in found]
    return document


def _show(settings: Settings, each: Reasoned, proof: bool) -> None:
    answer = each.answer
    verdict = answer.answer or answer.value or ("; ".join(answer.conclusions) if answer.kind == "meta" else None)
    if settings.quiet:
        write_line(sanitize(verdict or "nothing follows", one_line=True))
        return
    asked = f"{sanitize(each.question.text, one_line=True)}: " if each.question is not None else ""
    mark = "" if answer.status == "ok" else f" ({answer.status})"
    write_line(f"{asked}{sanitize(verdict or 'nothing follows', one_line=True)}{mark}")
    if answer.answer is not None:
        for line in answer.conclusions:
            write_line(f"  {sanitize(line, one_line=True)}")
    for reading, other in each.others:
        difference = [one.text for one in reading.theory.statements if one not in each.reading.theory.statements]
        words = "; ".join(difference) or "the question"
        write_line(f"  read otherwise ({sanitize(words, one_line=True)}): {other.answer or other.value or 'unknown'}")
    if proof and answer.steps:
        console(settings).print(_tree(each))
    for line in answer.assumptions:
        write_line(f"  assumed: {sanitize(line, one_line=True)}")
    for one in answer.contradictions:
        write_line(f"  cannot all hold: {', '.join(one.statements)}")
    for revision in answer.revisions:
        write_line(f"  repair: {sanitize(revision.text, one_line=True)}")


def _show_lost(settings: Settings, first: Reasoned) -> None:
    for one in first.reading.not_understood:
        place = f"sentence {one.sentence}, " if one.sentence else ""
        notice(settings, f"not understood: {place}chars {one.start}-{one.end}, at “{sanitize(one.at, one_line=True)}”: "
                         f"{sanitize(one.text, one_line=True)}\n  nearest accepted form: {one.hint}")  # fmt: skip


def _tree(each: Reasoned) -> Tree:
    """The proof from its conclusion down to the premises; a step that was shown is named again, not repeated."""
    from rich.text import Text
    from rich.tree import Tree

    answer = each.answer
    steps = {step.id: step for step in answer.steps}
    premises = {one.id: one.text for one in each.reading.theory.statements}
    used = {premise for step in answer.steps for premise in step.premises}
    roots = [step.id for step in answer.steps if step.id not in used] or [answer.steps[-1].id]
    top = Tree("proof")
    shown: set[str] = set()
    pending = [(name, top) for name in reversed(roots)]
    while pending and len(shown) < _MOST_NODES:
        name, parent = pending.pop()
        step = steps.get(name)
        again = name in shown
        label = _label(name, step, premises, again)
        node = parent.add(Text(sanitize(label, one_line=True)))
        if step is not None and not again:
            shown.add(name)
            pending += [(premise, node) for premise in reversed(step.premises)]
    return top


def _label(name: str, step: Step | None, premises: dict[str, str], again: bool) -> str:
    if step is None:
        return f"{name}  {premises.get(name, 'assumed')}"
    if again:
        return f"{name}  as above"
    degree = "" if step.degree == 1 else f"  degree {step.degree:.2f}"
    return f"{name}  {step.conclusion}  [{step.operation}]{degree}"
