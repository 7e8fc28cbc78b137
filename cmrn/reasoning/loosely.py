"""A whole passage read loosely, for a statement asked about where the grammar did not understand everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from cmrn.reasoning.alignment import NARROWER, Bridge, bridges
from cmrn.reasoning.formulas import atoms, conjoin, constants, rebuild
from cmrn.reasoning.learned import Learned, nothing_learned
from cmrn.reasoning.loose import LooseReader
from cmrn.reasoning.loose_phrases import NotFramedError, X, parts_of
from cmrn.reasoning.loose_words import learned_verbs
from cmrn.reasoning.questions import lead_words, preamble
from cmrn.reasoning.segment import Sentence, Token, segment, tokenize
from cmrn.reasoning.tagged import TaggedReader, marks_of
from cmrn.reasoning.tagger import Tagger
from cmrn.reasoning.theory import (
    Atom,
    Constant,
    ForAll,
    Formula,
    Implies,
    Literal,
    NotUnderstood,
    Question,
    Reading,
    Statement,
    Theory,
    Xor,
)
from cmrn.reasoning.verbalise import say

__all__ = ["read_loosely"]

LOOSELY = "read loosely: phrases are compared as wholes, not taken apart"
BY_MARKS = "read by learned marks"
MOST_SENTENCES = 100
MOST_CHOICES = 4
_HINT = "a subject with all, every, no, some or a name, and one verb phrase"


def read_loosely(
    pieces: Sequence[str], lost: tuple[NotUnderstood, ...], learned: Callable[[], Learned] = nothing_learned
) -> Reading | None:
    """The loose reading of texts that end in a statement asked about (`True or false: …`); None for any other.

    lost: what the grammar did not understand, which the reading keeps, with what it does not frame itself, so that its
    answers stay marked. learned: what else may frame a sentence and bridge phrases; with a likeness, nouns that rules
    are about are taken for granted too.
    """
    sentences = [sentence for piece in pieces for sentence in segment(piece)]
    tokens = [_bare(tokenize(sentence)) for sentence in sentences]
    asked = _asked(sentences, tokens)
    if asked is None or len(sentences) > MOST_SENTENCES:
        return None
    first, statement = asked
    said = [(s, words) for s, words in zip(sentences[:first], tokens[:first], strict=True) if words]
    brought = learned()
    reader = LooseReader(verbs=learned_verbs([words for _, words in said] + [statement]))
    read, by_marks = _read_all(reader, [*(words for _, words in said), statement], brought.tagger)
    if read[-1] is None:
        return None
    unframed = [sentence for (sentence, _), formula in zip(said, read, strict=False) if formula is None]
    read, domains, notes = _domains(read)
    *premises, query = _aliases(read)
    statements = [
        Statement(f"P{number}", formula, sentence.text, sentence.start, sentence.end, "rule")
        for number, (formula, (sentence, _)) in enumerate(zip(premises, said, strict=True), 1)
        if formula is not None
    ]
    if not statements or query is None:
        return None
    used = {atom.predicate for formula in (*premises, query) if formula is not None for atom in atoms(formula)}
    phrases = {name: words for name, words in reader.phrases.items() if name in used}
    names = frozenset(c for formula in (*premises, query) if formula is not None for c in constants(formula))
    statements += [
        Statement(f"B{number}", bridge.formula, bridge.text, 0, 0, "rule", bridge.degree)
        for number, bridge in enumerate(bridges(phrases, domains, names, brought.likeness), 1)
    ]
    statements += [
        Statement(f"B{number}", one.formula, one.text, 0, 0, "rule", one.degree)
        for number, one in enumerate(_taken_for((*premises, query)) if brought.likeness else (), len(statements) + 1)
    ]
    end = sentences[-1]
    question = Question("truth", end.text, end.start, end.end, query)
    marked = [f"{BY_MARKS}: {say(read[at] or query)}" for at in sorted(by_marks)]
    known = {one.start for one in lost}
    dropped = [
        NotUnderstood(one.text, one.start, one.end, one.text.split()[0], _HINT, sentences.index(one) + 1)
        for one in unframed
        if one.start not in known
    ]
    return Reading(Theory(tuple(statements), "open"), (question,), (*lost, *dropped), (LOOSELY, *marked, *notes))


def _bare(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    while tokens and not tokens[-1].text[0].isalnum() and tokens[-1].lower != "'s":
        tokens = tokens[:-1]
    return tokens


def _asked(sentences: Sequence[Sentence], tokens: Sequence[tuple[Token, ...]]) -> tuple[int, tuple[Token, ...]] | None:
    """(how many sentences are premises, the statement asked about); None where the text asks nothing, or otherwise."""
    if not sentences or not tokens[-1]:
        return None
    last = len(sentences) - 1
    if any("?" in sentence.ends and preamble(sentence.text) is None for sentence in sentences):
        return None
    if last and preamble(sentences[last - 1].text) == "truth":
        return last - 1, tokens[last]
    lead = lead_words(tokens[last])
    return (last, tokens[last][lead:]) if lead and len(tokens[last]) > lead else None


def _read_all(
    reader: LooseReader, sentences: Sequence[tuple[Token, ...]], tagger: Tagger | None
) -> tuple[list[Formula | None], set[int]]:
    """(each sentence's formula, which of them the tagger framed).

    Of several formulas it is the one whose phrases the passage has elsewhere too, else the first.
    """
    options = [_choices(reader, words) for words in sentences]
    marked = [() if tagger is None else _marked(reader, words, tagger) for words in sentences]
    seen: Counter[str] = Counter()
    for ruled, learned in zip(options, marked, strict=True):
        seen.update({atom.predicate for formula in (*ruled, *learned) for atom in atoms(formula)})

    def known(formula: Formula) -> float:
        names = [atom.predicate for atom in atoms(formula)]
        return sum(seen[name] > 1 for name in names) / len(names)

    read: list[Formula | None] = []
    by_marks: set[int] = set()
    for at, (ruled, learned) in enumerate(zip(options, marked, strict=True)):
        chosen = max((*ruled, *learned), key=known, default=None)
        read.append(chosen)
        if chosen is not None and chosen not in ruled:
            by_marks.add(at)
    return read, by_marks


def _marked(reader: LooseReader, words: tuple[Token, ...], tagger: Tagger) -> tuple[Formula, ...]:
    """The formula of a sentence by the tagger's marks, if it is sure of them and they make one."""
    marks = marks_of(tagger, words)
    if marks is None:
        return ()
    try:
        return (TaggedReader(reader.phrases, reader.verbs, marks=marks).read(words),)
    except NotFramedError:
        return ()


def _choices(reader: LooseReader, words: tuple[Token, ...]) -> list[Formula]:
    """The formulas of a sentence with its verb at each place where it may stand; the likeliest first."""
    found: list[Formula] = []
    spoken = reader.last
    after = spoken
    for reader.choice in range(MOST_CHOICES):
        reader.last = spoken
        try:
            formula = reader.read(words)
        except NotFramedError:
            continue
        after = reader.last if not found else after
        if formula not in found:
            found.append(formula)
    reader.choice, reader.last = 0, after
    return found


def _domains(read: Sequence[Formula | None]) -> tuple[list[Formula | None], frozenset[str], tuple[str, ...]]:
    """(the formulas without the nouns that only say what is spoken of, these nouns, what that assumes).

    `A device is either old or new` tells nothing of what is nowhere said to be a device; where all that is spoken of
    can be taken for devices, it is.
    """
    limiting: dict[str, None] = {}
    other: set[str] = set()
    for formula in read:
        if isinstance(formula, ForAll) and isinstance(formula.part, Implies):
            for part in parts_of(formula.part.body):
                if isinstance(part, Literal) and part.positive:
                    limiting[part.atom.predicate] = None
                else:
                    other.update(atom.predicate for atom in atoms(part))
            other.update(atom.predicate for atom in atoms(formula.part.head))
        elif formula is not None:
            other.update(atom.predicate for atom in atoms(formula))
    single = {name: _word(name) for name in limiting if " " not in _word(name)}
    dropped = {name for name in single if name not in other}
    changed = [None if formula is None else _without(formula, dropped) for formula in read]
    gone = [single[name] for name in dropped if changed != list(read) and name in single]
    notes = tuple(f"all that is spoken of is taken for “{word}”" for word in sorted(gone))
    return changed, frozenset(single.values()), notes


def _taken_for(read: Sequence[Formula | None]) -> Iterator[Bridge]:
    """That all that is spoken of is what rules begin with: a building, in rules about buildings that are this or that.

    Only of a noun that some rule narrows down, and that nothing concludes or denies.
    """
    narrowed: dict[str, None] = {}
    concluded: set[str] = set()
    for formula in read:
        if isinstance(formula, ForAll) and isinstance(formula.part, Implies):
            first, *rest = parts_of(formula.part.body)
            if rest and isinstance(first, Literal) and first.positive and " " not in _word(first.atom.predicate):
                narrowed[first.atom.predicate] = None
            concluded.update(atom.predicate for atom in atoms(formula.part.head))
        elif isinstance(formula, ForAll):
            concluded.update(atom.predicate for atom in atoms(formula))
    for name in narrowed:
        if name not in concluded:
            text = f"all that is spoken of is “{_word(name)}”"
            yield Bridge(ForAll((X,), Literal(Atom(name, (X,)))), text, NARROWER)


def _word(name: str) -> str:
    return name.removeprefix("is “").removesuffix("”")


def _without(formula: Formula, dropped: set[str]) -> Formula:
    """A rule without the noun that its condition begins with, if something else limits it or it is a choice."""
    if not isinstance(formula, ForAll) or not isinstance(formula.part, Implies):
        return formula
    first, *rest = parts_of(formula.part.body)
    if not isinstance(first, Literal) or not first.positive or first.atom.predicate not in dropped:
        return formula
    head = formula.part.head
    if rest:
        return ForAll(formula.variables, Implies(conjoin(rest), head))
    return ForAll(formula.variables, head) if isinstance(head, Xor) else formula


def _aliases(read: Iterable[Formula | None]) -> list[Formula | None]:
    """The formulas with a surname alone taken for the one full name that ends with it."""
    formulas = list(read)
    names = {c for formula in formulas if formula is not None for c in constants(formula)}
    full: dict[Constant, Constant] = {}
    for name in names:
        longer = [other for other in names if other.name.endswith(" " + name.name)]
        if len(longer) == 1:
            full[name] = longer[0]
    return [None if formula is None else _renamed(formula, full) for formula in formulas]


def _renamed(formula: Formula, full: dict[Constant, Constant]) -> Formula:
    if isinstance(formula, Literal):
        arguments = tuple(full.get(t, t) if isinstance(t, Constant) else t for t in formula.atom.arguments)
        return Literal(Atom(formula.atom.predicate, arguments), formula.positive)
    return rebuild(formula, lambda part: _renamed(part, full))
