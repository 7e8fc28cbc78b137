"""From a text to its readings: premises, questions, and every sentence that was not understood, with its place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cmrn.reasoning.hints import nearest_form
from cmrn.reasoning.implicit import implied_statements
from cmrn.reasoning.meaning import Meaning, Referent, RejectedError
from cmrn.reasoning.order import Order, find_order
from cmrn.reasoning.questions import Asked, ask, lead_words, preamble
from cmrn.reasoning.segment import Sentence, Token, segment, tokenize
from cmrn.reasoning.sentences import Clauses
from cmrn.reasoning.syntax import Clause
from cmrn.reasoning.theory import (
    ForAll,
    Formula,
    Iff,
    Implies,
    NotUnderstood,
    Question,
    Reading,
    Statement,
    Theory,
    World,
)
from cmrn.reasoning.vocabulary import Vocabulary, learn

__all__ = ["MOST_READINGS", "read"]

MOST_READINGS = 8
LONGEST_SENTENCE = 150
_IGNORED = ("true", "false", "unknown", "uncertain", "yes", "no", "neither")
_STARTERS = ("if", "given", "suppose", "supposing", "assume", "assuming", "since", "because", "when", "knowing")
_ASSERTING = (("suppose",), ("assume",), ("let", "us", "assume"), ("we", "know"), ("it", "is", "known"), ("given",))


@dataclass(frozen=True)
class _Said:
    """A premise with all its readings: formulas, each with what it assumes."""

    formulas: tuple[tuple[Formula, tuple[str, ...]], ...]
    text: str
    start: int
    end: int


@dataclass
class _Passage:
    """What has been read so far."""

    vocabulary: Vocabulary
    said: list[_Said] = field(default_factory=list)
    questions: list[tuple[Question, int]] = field(default_factory=list)
    lost: list[NotUnderstood] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    spoken: tuple[Referent, ...] = ()
    order: Order | None = None
    scale: str | None = None
    awaiting: str | None = None
    awaited: Sentence | None = None
    options: list[tuple[str, Formula]] = field(default_factory=list)


def read(
    text: str, *, facts: Sequence[str] = (), rules: Sequence[str] = (), world: World = "open"
) -> tuple[Reading, ...]:
    """The readings of a text, at most 8, the preferred first; facts and rules are texts that come before it.

    Offsets count the characters of the text that a sentence stands in.
    """
    sentences = [sentence for piece in (*facts, *rules, text) for sentence in segment(piece)]
    tokens = [tokenize(sentence) for sentence in sentences]
    passage = _Passage(learn([words for words in tokens if len(words) <= LONGEST_SENTENCE]))
    for sentence, words in zip(sentences, tokens, strict=True):
        if words and any(token.text[0].isalnum() for token in words):
            _take(passage, sentence, words)
    _settle(passage)
    places = {(one.text, one.start): number for number, one in reversed(list(enumerate(sentences, 1)))}
    passage.lost = [replace(one, sentence=places.get((one.text, one.start), 0)) for one in passage.lost]
    return tuple(_readings(passage, world))


def _take(passage: _Passage, sentence: Sentence, tokens: tuple[Token, ...]) -> None:
    """Read one sentence as what its place and form say it is."""
    while tokens and not tokens[-1].text[0].isalnum() and tokens[-1].lower not in ("'s",):
        tokens = tokens[:-1]
    if len(tokens) > LONGEST_SENTENCE:
        _lose(passage, sentence, tokens, LONGEST_SENTENCE, f"sentences of at most {LONGEST_SENTENCE} words")
        return
    announced = preamble(sentence.text)
    if announced is not None:
        _settle(passage)
        passage.awaiting, passage.awaited = announced, sentence
        return
    if sentence.option is not None and len(tokens) == 1 and tokens[0].lower in _IGNORED:
        return
    if passage.awaiting == "choice":
        _option(passage, sentence, tokens)
    elif passage.awaiting == "truth":
        passage.awaiting = None
        formulas = _formulas(passage, tokens)
        if isinstance(formulas, NotUnderstood):
            passage.lost.append(replace(formulas, text=sentence.text, start=sentence.start, end=sentence.end))
        else:
            before = passage.awaited or sentence
            question = Question("truth", f"{before.text}? {sentence.text}", before.start, sentence.end, formulas[0][0])
            _pose(passage, question, formulas)
            passage.awaited = None
    elif not _boilerplate(sentence):
        _statement_or_question(passage, sentence, tokens)


def _boilerplate(sentence: Sentence) -> bool:
    """Whether a sentence speaks about the text itself: that paragraphs describe objects in a fixed order."""
    low = sentence.text.lower()
    return low.startswith(("the following paragraph", "the statements are logically consistent"))


def _statement_or_question(passage: _Passage, sentence: Sentence, tokens: tuple[Token, ...]) -> None:
    if passage.order is None:
        passage.order = find_order(tokens)
        if passage.order is not None:
            said = ((passage.order.everywhere(), ()),)
            passage.said.append(_Said(said, sentence.text, sentence.start, sentence.end))
            return
    marked = "?" in sentence.ends
    asked, far = ask(tokens, passage.vocabulary, marked)
    if asked is not None:
        _question(passage, sentence, tokens, asked)
        return
    if marked:
        if not _premised(passage, sentence, tokens):
            _lose(passage, sentence, tokens, far, "Is X Y? Does X VERB? Who VERBs X? What can we conclude?")
        return
    formulas = _formulas(passage, _asserted(tokens))
    if isinstance(formulas, NotUnderstood):
        passage.lost.append(replace(formulas, text=sentence.text, start=sentence.start, end=sentence.end))
    else:
        passage.said.append(_Said(formulas, sentence.text, sentence.start, sentence.end))


def _asserted(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """The words without `suppose that` and its kin in front."""
    low = tuple(token.lower for token in tokens)
    for opener in _ASSERTING:
        if low[: len(opener)] == opener:
            here = len(opener)
            return tokens[here + (low[here : here + 1] == ("that",)) :]
    return tokens


def _lose(passage: _Passage, sentence: Sentence, tokens: Sequence[Token], far: int, hint: str) -> None:
    at = tokens[min(far, len(tokens) - 1)].text if tokens else ""
    passage.lost.append(NotUnderstood(sentence.text, sentence.start, sentence.end, at, hint))


def _formulas(
    passage: _Passage, tokens: tuple[Token, ...]
) -> tuple[tuple[Formula, tuple[str, ...]], ...] | NotUnderstood:
    """Every meaning of a declarative sentence, or where reading stopped."""
    if passage.order is not None:
        placed = passage.order.read(tokens)
        if placed is not None:
            formula, scale = placed
            if passage.scale in (None, scale):
                passage.scale = scale
                return ((formula, ()),)
            return NotUnderstood("", 0, 0, tokens[-1].text, f"the order is by {passage.scale}")
    if not tokens:
        return NotUnderstood("", 0, 0, "", "a sentence")
    parser = Clauses(tokens, passage.vocabulary)
    found = _meanings(passage, parser.sentence())
    if isinstance(found, RejectedError):
        return NotUnderstood("", 0, 0, tokens[min(found.at, len(tokens) - 1)].text, found.hint)
    if not found:
        at = min(parser.far, len(tokens) - 1)
        return NotUnderstood("", 0, 0, tokens[at].text, nearest_form(tokens, at))
    return found


def _meanings(
    passage: _Passage, trees: Sequence[Clause], asks: bool = False
) -> tuple[tuple[Formula, tuple[str, ...]], ...] | RejectedError:
    """The distinct formulas of a sentence's trees; why there is none where all are rejected."""
    found: dict[Formula, tuple[str, ...]] = {}
    rejected: RejectedError | None = None
    spoken = passage.spoken
    for tree in trees:
        meaning = Meaning(passage.vocabulary, passage.spoken, asks=asks)
        try:
            formula = meaning.formula(tree)
        except RejectedError as error:
            rejected = rejected or error
            continue
        if not found:
            spoken = tuple(one for one in meaning.spoken if not one.term.name.islower() or one.noun) or passage.spoken
        found.setdefault(formula, tuple(meaning.assumptions))
    passage.spoken = spoken
    if not found and rejected is not None:
        return rejected
    return tuple(found.items())[:MOST_READINGS]


def _question(passage: _Passage, sentence: Sentence, tokens: tuple[Token, ...], asked: Asked) -> None:
    _settle(passage)
    base = Question("meta", sentence.text, sentence.start, sentence.end, None)
    if asked.kind == "meta":
        _meta(passage, sentence, tokens, asked, base)
        return
    meanings = _meanings(passage, asked.trees, lead_words(tokens) == 0)
    options = []
    for words, tree in asked.options:
        one = _meanings(passage, (tree,), True)
        if isinstance(one, RejectedError) or not one:
            _lose(passage, sentence, tokens, 0, "one thing asked at a time")
            return
        options.append((words, one[0][0]))
    if isinstance(meanings, RejectedError):
        _lose(passage, sentence, tokens, meanings.at, meanings.hint)
    elif asked.kind == "color":
        passage.questions.append((replace(base, kind="choice", options=tuple(options)), 0))
    else:
        kind = {"truth": "truth", "choice": "choice", "value": "value"}[asked.kind]
        question = replace(base, kind=kind, formula=meanings[0][0], options=tuple(options))  # type: ignore[arg-type]
        _pose(passage, question, meanings)


def _meta(passage: _Passage, sentence: Sentence, tokens: Sequence[Token], asked: Asked, base: Question) -> None:
    count = len(passage.said)
    number = asked.premise if asked.premise >= 0 else count
    if number > count:
        _lose(passage, sentence, tokens, len(tokens) - 1, f"there are {count} premises")
        return
    passage.questions.append((replace(base, about=f"P{number}" if number else asked.subject), 0))


def _pose(passage: _Passage, question: Question, meanings: tuple[tuple[Formula, tuple[str, ...]], ...]) -> None:
    """Ask a question in each of its meanings."""
    for rank, (formula, assumed) in enumerate(meanings):
        if rank == 0:
            passage.assumptions += [text for text in assumed if text not in passage.assumptions]
        passage.questions.append((replace(question, formula=formula), rank))


def _option(passage: _Passage, sentence: Sentence, tokens: tuple[Token, ...]) -> None:
    formulas = _formulas(passage, tokens)
    if isinstance(formulas, NotUnderstood):
        passage.lost.append(replace(formulas, text=sentence.text, start=sentence.start, end=sentence.end))
    else:
        label = f"{sentence.option}) " if sentence.option else ""
        passage.options.append((label + sentence.text, formulas[0][0]))


def _settle(passage: _Passage) -> None:
    """Close a question whose options have all been read."""
    sentence, awaiting = passage.awaited, passage.awaiting
    passage.awaited = passage.awaiting = None
    if sentence is None or (awaiting is None and not passage.options):
        return
    if passage.options:
        question = Question("choice", sentence.text, sentence.start, sentence.end, None, tuple(passage.options))
        passage.questions.append((question, 0))
        passage.options = []
    else:
        passage.lost.append(NotUnderstood(sentence.text, sentence.start, sentence.end, "", "a statement behind it"))


def _premised(passage: _Passage, sentence: Sentence, tokens: tuple[Token, ...]) -> bool:
    """Read `If A, and B, but C, what …?` as premises A, B, C and a question; False where it is not that."""
    start = 1 if tokens[0].lower in _STARTERS else 0
    start += tokens[start : start + 1] != () and tokens[start].lower == "that"
    commas = [at for at, token in enumerate(tokens) if token.lower == ","]
    for comma in reversed(commas):
        behind = tokens[comma + 1 :]
        if behind and behind[0].lower in ("then", "so", "and"):
            behind = behind[1:]
        asked, _ = ask(behind, passage.vocabulary, False) if behind else (None, 0)
        if asked is None:
            continue
        pieces = _clauses(passage, tokens[start:comma])
        if pieces is None:
            continue
        for piece, formulas in pieces:
            text = sentence.text[piece[0].start - sentence.start : piece[-1].end - sentence.start]
            passage.said.append(_Said(formulas, text, piece[0].start, piece[-1].end))
        words = sentence.text[behind[0].start - sentence.start :]
        _question(passage, Sentence(words, behind[0].start, sentence.end, sentence.ends), behind, asked)
        return True
    return False


_Pieces = list[tuple[tuple[Token, ...], tuple[tuple[Formula, tuple[str, ...]], ...]]]


def _clauses(passage: _Passage, tokens: tuple[Token, ...]) -> _Pieces | None:
    """The words cut at commas into sentences that are each understood; None where they cannot be."""
    if not tokens:
        return []
    while tokens and tokens[0].lower in ("and", "but", "if", ","):
        tokens = tokens[1:]
    cuts = [at for at, token in enumerate(tokens) if token.lower in (",", "and", "but")] + [len(tokens)]
    for cut in cuts:
        piece = tokens[:cut]
        formulas = _formulas(passage, piece) if piece else None
        if formulas is None or isinstance(formulas, NotUnderstood):
            continue
        rest = _clauses(passage, tokens[cut:])
        if rest is not None:
            return [(piece, formulas), *rest]
    return None


def _readings(passage: _Passage, world: World) -> Iterator[Reading]:
    """The combinations of what each sentence may mean, at most 8, the first choice of each first."""
    ranks = [range(len(said.formulas)) for said in passage.said]
    asked = {question.start: rank for question, rank in passage.questions}
    chosen = sorted(itertools.islice(itertools.product(*ranks, range(max(asked.values(), default=0) + 1)), 64), key=sum)
    for picks in chosen[:MOST_READINGS]:
        statements = []
        assumptions = list(passage.assumptions)
        for number, (said, pick) in enumerate(zip(passage.said, picks, strict=False), 1):
            formula, assumed = said.formulas[pick]
            assumptions += [text for text in assumed if text not in assumptions]
            kind = "rule" if isinstance(formula, ForAll | Implies | Iff) else "fact"
            statements.append(
                Statement(f"P{number}", formula, said.text, said.start, said.end, kind)  # type: ignore[arg-type]
            )
        questions = tuple(
            question for question, rank in passage.questions if rank == min(picks[-1], asked[question.start])
        )
        formulas = [statement.formula for statement in statements]
        extra, reasons = implied_statements(formulas, [q.formula for q in questions if q.formula is not None])
        theory = Theory((*statements, *extra), world)
        yield Reading(theory, questions, tuple(passage.lost), (*assumptions, *reasons))
