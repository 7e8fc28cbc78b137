"""FOLIO (Han et al. 2022), where phrases must be matched: what is learned is judged on stories it was not taught with.

`python -m cmrn.bench.reason_folio FILE OUT` learns the likeness of phrases from the whole of FILE and writes it.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmrn.bench.report import Progress, Row
from cmrn.errors import CMRNError
from cmrn.reasoning.formulas import atoms
from cmrn.reasoning.learned import TAGGER, Learned, nothing_learned
from cmrn.reasoning.likeness import Likeness, Pair, learn_likeness
from cmrn.reasoning.loose import LooseReader
from cmrn.reasoning.loose_phrases import NotFramedError
from cmrn.reasoning.loose_words import Words, learned_verbs
from cmrn.reasoning.reason import examine
from cmrn.reasoning.segment import Token, segment, tokenize
from cmrn.reasoning.tagger import Tagger
from cmrn.reasoning.weights import keep

__all__ = ["Story", "annotated_pairs", "folio_rows", "stories"]

FOLDS = 5
_ATOM = re.compile(r"([A-Z][-\w]*)\s*\(([^()]*)\)")
_VARIABLE = re.compile(r"[t-z]\d?")


@dataclass(frozen=True)
class Story:
    """Premises with their annotation, what is asked of them, with labels, and the fold they are judged in."""

    premises: tuple[str, ...]
    annotation: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]
    fold: int


def stories(file: Path) -> list[Story]:
    """The stories of a file; those that share a premise are judged in one fold."""
    asked: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    annotation: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        one = json.loads(line)
        premises = tuple(premise.strip().removesuffix(".") + "." for premise in one["premises"])
        asked[premises].append((one["conclusion"], one["label"].lower()))
        annotation[premises] = tuple(one["premises-FOL"])
    group: dict[str, int] = {}
    folds = []
    for number, premises in enumerate(asked):
        shared = [group[premise] for premise in premises if premise in group]
        folds.append(shared[0] if shared else number)
        group.update(dict.fromkeys(premises, folds[-1]))
    return [
        Story(premises, annotation[premises], tuple(questions), fold % FOLDS)
        for (premises, questions), fold in zip(asked.items(), folds, strict=True)
    ]


def annotated_pairs(story: Story) -> Iterator[Pair]:
    """Pairs of a story's phrases, the same where annotators wrote one predicate with the same names for both.

    A premise tells what its phrases are where its loose reading has as many as its annotation, in their order.
    """
    if len(story.premises) != len(story.annotation):
        return
    sentences = [_words(premise) for premise in story.premises]
    reader = LooseReader(verbs=learned_verbs(sentences))
    said: dict[tuple[str, ...], set[Words]] = defaultdict(set)
    for words, annotation in zip(sentences, story.annotation, strict=True):
        for key, phrase in _matched(reader, words, _predicates(annotation)):
            said[key].add(phrase)
    keys = list(said)
    for at, key in enumerate(keys):
        phrases = sorted(said[key])
        yield from (Pair(one, two, True) for k, one in enumerate(phrases) for two in phrases[k + 1 :])
        others = [two for other in keys[at + 1 :] for two in said[other]]
        yield from (Pair(one, two, False) for one in phrases for two in others if one != two)


def _words(text: str) -> tuple[Token, ...]:
    found = segment(text)
    tokens = tokenize(found[0]) if len(found) == 1 else ()
    return tuple(token for at, token in enumerate(tokens) if token.text[0].isalnum() or at < len(tokens) - 1)


def _predicates(annotation: str) -> list[tuple[str, ...]]:
    """Each atom as its predicate with the names it is said of besides its subject; variables are left blank."""
    found = []
    for name, inside in _ATOM.findall(annotation):
        terms = [term.strip() for term in inside.split(",")]
        found.append((name, *("" if _VARIABLE.fullmatch(term) else term for term in terms[1:])))
    return found


def _matched(
    reader: LooseReader, words: Sequence[Token], keys: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], Words]]:
    """Each predicate with its phrase; a noun in front that the annotation leaves out is passed over."""
    try:
        found = [atom.predicate for atom in atoms(reader.read(words))] if words else []
    except NotFramedError:
        return
    if len(found) - len(keys) in (0, 1):
        for phrase, key in zip(found[len(found) - len(keys) :], keys, strict=True):
            yield key, reader.phrases[phrase]


def folio_rows(file: Path, progress: Progress) -> list[Row]:
    """Accuracy, and precision on what is called true or false: by rules, with the tagger, and with the likeness too.

    The tagger is taught with sentences of our own; the likeness is learned on the other four fifths of the stories.
    """
    read = stories(file)
    tagger = Tagger.load(TAGGER)
    likenesses = _by_fold(read, progress)
    settings = {
        "by rules": [nothing_learned()] * FOLDS,
        "with learned marks": [Learned(tagger)] * FOLDS,
        "with learned marks and likeness": [Learned(tagger, likeness) for likeness in likenesses],
    }
    rows = []
    for name, learned in settings.items():
        pairs = [pair for story in read for pair in _answers(story, learned[story.fold])]
        rows += _rows(f"FOLIO {name}", pairs)
        progress(f"FOLIO {name}: {rows[-2].value:.1f} % right")
    return rows


def _by_fold(read: Sequence[Story], progress: Progress) -> list[Likeness]:
    known = [(story.fold, pair) for story in read for pair in annotated_pairs(story)]
    return [
        learn_likeness([pair for fold, pair in known if fold != judged], progress=progress) for judged in range(FOLDS)
    ]


def _answers(story: Story, learned: Learned) -> Iterator[tuple[str, str]]:
    """(what is said, the label) of each question."""
    for asked, label in story.asked:
        text = "\n".join([*story.premises, f"True or false: {asked}"])
        try:
            answer = examine(text, learned=lambda: learned)[-1].answer
            yield answer.answer or answer.value or "unknown", label
        except CMRNError:
            yield "unknown", label


def _rows(name: str, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    committed = [said == label for said, label in pairs if said in ("true", "false")]
    right = sum(said == label for said, label in pairs)
    detail = {"questions": len(pairs), "committed": len(committed), "committed_right": sum(committed)}
    sure = sum(committed) / len(committed) * 100 if committed else None
    return [
        Row(f"{name}: accuracy", right / len(pairs) * 100 if pairs else None, "%", limit=100.0, detail=detail),
        Row(f"{name}: right of those called true or false", sure, "%", limit=100.0),
    ]


if __name__ == "__main__":
    taught = [pair for story in stories(Path(sys.argv[1])) for pair in annotated_pairs(story)]
    keep(learn_likeness(taught, progress=print), Path(sys.argv[2]))
