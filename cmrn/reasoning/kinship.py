"""Who is whose brother, read from stories: kin words, whose they are and whom they name; the rest comes by composition.

A sentence with a kin word that is not made out is named, never passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cmrn.reasoning.compose import Composed, Table, compose
from cmrn.reasoning.lexicon import CLOSED, IRREGULAR_VERBS, PREPOSITIONS, verb_bases, word_set
from cmrn.reasoning.loose_words import AUXILIARIES, PARTS, VERBS
from cmrn.reasoning.segment import Sentence, Token, segment, tokenize

__all__ = ["KIN", "Kin", "KinRead", "read_kin", "relate"]

_PAIRS = {
    "parent": ("father", "mother"), "child": ("son", "daughter"), "sibling": ("brother", "sister"),
    "spouse": ("husband", "wife"), "grandparent": ("grandfather", "grandmother"),
    "grandchild": ("grandson", "granddaughter"), "pibling": ("uncle", "aunt"), "nibling": ("nephew", "niece"),
    "parent-in-law": ("father-in-law", "mother-in-law"), "child-in-law": ("son-in-law", "daughter-in-law"),
    "sibling-in-law": ("brother-in-law", "sister-in-law"),
}  # fmt: skip
KIN = {word: (kind, sex) for kind, words in _PAIRS.items() for sex, word in zip("mf", words, strict=True)}
_SHORT = {"dad": "father", "mom": "mother", "mum": "mother", "grandma": "grandmother", "grandpa": "grandfather",
          "daddy": "father", "mommy": "mother", "granny": "grandmother", "hubby": "husband"}  # fmt: skip
_INVERSE = {"parent": "child", "child": "parent", "grandparent": "grandchild", "grandchild": "grandparent",
            "pibling": "nibling", "nibling": "pibling", "parent-in-law": "child-in-law",
            "child-in-law": "parent-in-law"}  # fmt: skip
_NEUTRAL = {"child": "child", "kid": "child", "spouse": "spouse", "sibling": "sibling", "grandchild": "grandchild",
            "parent": "parent", "children": "child", "kids": "child", "siblings": "sibling", "parents": "parent",
            "grandparents": "grandparent", "grandchildren": "grandchild"}  # fmt: skip
_POSSESSIVE = {"his": "m", "her": "f", "their": "", "hers": "f", "my": "", "our": ""}
_SUBJECT = {"he": "m", "she": "f", "they": ""}
_NAMED = word_set("named called , is was name are were whose who by the of")
_OPENING = word_set("last yesterday today dinner later dear lunch breakfast earlier recently next first things one")


@dataclass(frozen=True)
class Kin:
    """`other` is `person`'s `relation`, as a sentence says, counted from 1.

    guessed: more than one could have been meant.
    """

    person: str
    relation: str
    other: str
    sentence: int
    guessed: bool = False


@dataclass(frozen=True)
class KinRead:
    """What a story says of kin. sex: m or f by name, where told. lost: sentences with a kin word not made out."""

    facts: tuple[Kin, ...]
    sex: Mapping[str, str]
    lost: tuple[Sentence, ...]


@dataclass
class _Story:
    """What has been read so far.

    spoken: names, the latest subject first. open: a kin word still without its name. owners: whose the kin word before
    was. guessed: whether more than one could have been meant.
    """

    names: frozenset[str]
    facts: dict[tuple[str, str, str], Kin] = field(default_factory=dict)
    sex: dict[str, str] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)
    open: tuple[str, str] | None = None
    owners: list[str] = field(default_factory=list)
    guessed: bool = False

    def add(self, person: str, word: str, other: str, number: int) -> bool:
        """Keep that `other` is `person`'s `word`; False where it says nothing of two people."""
        if person == other:
            return False
        relation = _NEUTRAL.get(word, word)
        if word in KIN:
            self.sex.setdefault(other, KIN[word][1])
            if KIN[word][0] == "spouse":
                self.sex.setdefault(person, "f" if word == "husband" else "m")
        self.facts.setdefault((person, relation, other), Kin(person, relation, other, number, self.guessed))
        return True


def read_kin(text: str, names: Iterable[str] = ()) -> KinRead:
    """What a story says of kin; `names` are people known by name, beside those whom their capitals show."""
    sentences = segment(text)
    tokens = [tokenize(sentence) for sentence in sentences]
    known = _names(tokens) | frozenset(names)
    sex: dict[str, str] = {}
    for _ in range(2):  # the second time with what the first found out of who is he and who is she
        story = _Story(known, sex=dict(sex))
        said = [_sentence(story, words, number) for number, words in enumerate(tokens, 1)]
        sex = story.sex
    lost = tuple(sentence for sentence, understood in zip(sentences, said, strict=True) if not understood)
    return KinRead(tuple(story.facts.values()), dict(story.sex), lost)


def _names(sentences: Sequence[Sequence[Token]]) -> frozenset[str]:
    """Words with a capital inside a sentence, and first words that come again or have what follows a name behind."""
    found: set[str] = set()
    for tokens in sentences:
        for at, token in enumerate(tokens):
            if not token.text[0].isupper() or token.lower in CLOSED | PREPOSITIONS or kin_word(token.lower):
                continue
            following = tokens[at + 1].lower if at + 1 < len(tokens) else ""
            named = following in ("'s", "'", "and", "who") or (following == "," and not token.lower.endswith("ly"))
            if at or named or (_verbal(following) and token.lower not in _OPENING):
                found.add(token.text)
    return frozenset(found)


def _verbal(word: str) -> bool:
    """Whether a word may be a verb behind its subject."""
    known = word in AUXILIARIES or word in IRREGULAR_VERBS or word in PARTS or word in VERBS
    return known or word.endswith("ed") or (word.endswith("s") and any(base in VERBS for base in verb_bases(word)))


def kin_word(word: str) -> str | None:
    """The kin word that a word is, in the singular; None for any other."""
    word = _SHORT.get(word, word)
    if word in KIN or word in _NEUTRAL:
        return word
    one = {"wives": "wife"}.get(word, word.removesuffix("s"))
    return one if one in KIN else _SHORT.get(one)


def _sentence(story: _Story, tokens: Sequence[Token], number: int) -> bool:
    """Read one sentence; False where a kin word in it was not made out."""
    people = [at for at, token in enumerate(tokens) if token.text in story.names]
    understood = True
    _sexes(story, tokens, people)
    if story.open is not None and people:
        understood = _answered(story, tokens, people, number)
    story.owners = []
    _married(story, tokens, people, number)
    for at, token in enumerate(tokens):
        word = kin_word(token.lower)
        if word is not None:
            understood &= _mention(story, tokens, at, word, people, number)
    fresh = [tokens[at].text for at in people]
    if fresh:
        story.spoken = list(dict.fromkeys([*fresh, *story.spoken]))
    return understood


def _married(story: _Story, tokens: Sequence[Token], people: list[int], number: int) -> None:
    """`Ann is married to Bob`, `Ann and Bob have been married for years`."""
    at = next((at for at, token in enumerate(tokens) if token.lower in ("married", "marries")), None)
    if at is None or not people or people[0] > at:
        return
    story.guessed = False
    before, behind = [k for k in people if k < at], [k for k in people if k > at]
    if len(before) == 2 and tokens[before[0] + 1].lower == "and" and before[1] == before[0] + 2:
        story.add(tokens[before[0]].text, "spouse", tokens[before[1]].text, number)
    elif len(before) == 1 and behind and behind[0] - at <= 2:
        story.add(tokens[before[0]].text, "spouse", tokens[behind[0]].text, number)


def _answered(story: _Story, tokens: Sequence[Token], people: list[int], number: int) -> bool:
    """`Her name is Ann`, `Ann is the son's name`: the name of whom the sentence before spoke of."""
    assert story.open is not None
    person, word = story.open
    story.open = None
    if any(token.lower in ("name", "named", "called") for token in tokens) and len(people) == 1:
        return story.add(person, word, tokens[people[0]].text, number)
    return True


def _mention(story: _Story, tokens: Sequence[Token], at: int, word: str, people: list[int], number: int) -> bool:
    """Read one kin word: whose it is, and who is called so."""
    story.guessed = False
    alike = _alike(story, tokens, at)
    if len(alike) > 1:
        return all(story.add(one, word, two, number) for one in alike for two in alike if one != two)
    owners = _owners(story, tokens, at, people)
    bearers = _bearers(story, tokens, at)
    story.owners = owners or story.owners
    if owners and bearers:
        made = [story.add(owner, word, bearer, number) for owner in owners for bearer in bearers if owner != bearer]
        return bool(made) or not _tells(tokens, at)
    if owners and at + 2 >= len(tokens):
        story.open = (owners[0], word)
    return not _tells(tokens, at)


def _alike(story: _Story, tokens: Sequence[Token], at: int) -> list[str]:
    """Who is told to be kin of one another: `Ann and Bea are sisters`, `the brothers Abe and Ben`."""
    if not tokens[at].lower.endswith("s") or KIN.get(kin_word(tokens[at].lower) or "", ("sibling",))[0] != "sibling":
        return []
    start = _start(tokens, at)
    before = [token.lower for token in tokens[max(0, start - 1) : start]]
    if before in (["are"], ["were"]) and start > 3 and tokens[start - 3].lower == "and":
        return [tokens[k].text for k in (start - 4, start - 2) if tokens[k].text in story.names]
    if before in ([], ["the"], ["two"]):
        behind = [token for token in tokens[at + 1 : at + 5] if token.lower != ","]
        if len(behind) > 2 and behind[1].lower == "and":
            return [token.text for token in (behind[0], behind[2]) if token.text in story.names]
    return []


def _tells(tokens: Sequence[Token], at: int) -> bool:
    """Whether a kin word without a name beside it might still say who is whose: a name is close by."""
    return any(token.text[0].isupper() and token.lower not in CLOSED for token in tokens[at + 1 : at + 7])


def _start(tokens: Sequence[Token], at: int) -> int:
    """Where a kin word's phrase begins: adjectives before it passed over."""
    while at > 0 and _is_adjective(tokens[at - 1]):
        at -= 1
    return at


def _is_adjective(token: Token) -> bool:
    if token.lower == "other":
        return True
    closed = token.lower in CLOSED or token.lower in PREPOSITIONS
    return token.text.isalpha() and token.text.islower() and not closed and kin_word(token.lower) is None


def _owners(story: _Story, tokens: Sequence[Token], at: int, people: list[int]) -> list[str]:
    """Whose kin it is: the name before `'s`, the one of `of`, or whom `his` or `has a` stands for."""
    start = _start(tokens, at)
    before = tokens[start - 1].lower if start else ""
    if before in ("'s", "'", "’") and start > 1 and tokens[start - 2].text in story.names:
        return [tokens[start - 2].text]
    if before == "and" and story.owners:
        return story.owners
    if before in _POSSESSIVE or (before in ("for", "with") and tokens[start].lower == tokens[at].lower):
        return _antecedents(story, tokens, start - 1, people)
    behind = _behind_of(story, tokens, at)
    if behind is not None:
        return [behind]
    if before in ("a", "an", "one", "two", "three"):
        held = {token.lower for token in tokens[max(0, start - 4) : start - 1]}
        if held & {"has", "had", "have", "with"}:
            return _antecedents(story, tokens, start - 1, people)
    if start == at and at - 1 in people:
        return [tokens[at - 1].text]
    return []


def _behind_of(story: _Story, tokens: Sequence[Token], at: int) -> str | None:
    """The name of `father of Ann` and `father of the lovely Ann`."""
    if at + 1 >= len(tokens) or tokens[at + 1].lower not in ("of", "to"):
        return None
    for token in tokens[at + 2 : at + 6]:
        if token.text in story.names:
            return token.text
        if token.lower not in ("the", "a", "his", "her") and not _is_adjective(token):
            return None
    return None


def _antecedents(story: _Story, tokens: Sequence[Token], at: int, people: list[int]) -> list[str]:
    """Whom a pronoun stands for: the subject of its sentence, else the one spoken of last, of the pronoun's sex."""
    sex = _POSSESSIVE.get(tokens[at].lower, "")
    here = [tokens[place].text for place in people if place < at]
    if tokens[at].lower == "their" and len(here) > 1:
        return list(dict.fromkeys(here[:2]))
    order = list(dict.fromkeys([*here, *story.spoken]))
    fitting = [name for name in order if not sex or story.sex.get(name, sex) == sex]
    near = {name for name in here if name in fitting} or fitting[:2]
    story.guessed = len(near) > 1
    return fitting[:1]


def _bearers(story: _Story, tokens: Sequence[Token], at: int) -> list[str]:
    """Who is called so: the name behind it, or before it in `Ann, Bob's sister` and `Ann is Bob's sister`."""
    here = at + 1
    if _behind_of(story, tokens, at) is not None:
        return _named_before(story, tokens, at)
    if here < len(tokens) and tokens[here].lower == "'s":
        here += 1
        if here >= len(tokens) or tokens[here].lower != "name":
            return _named_before(story, tokens, at)
    while here < len(tokens) and tokens[here].lower in _NAMED:
        here += 1
    if here >= len(tokens) or tokens[here].text not in story.names:
        return _named_before(story, tokens, at)
    found = [tokens[here].text]
    if tokens[at].lower.endswith("s") or tokens[at].lower == "children":
        while (
            here + 2 < len(tokens) and tokens[here + 1].lower in ("and", ",") and tokens[here + 2].text in story.names
        ):
            here += 2
            found.append(tokens[here].text)
    following = [token.lower for token in tokens[here + 1 : here + 5]]
    if following[:1] == ["'s"] and any(kin_word(word) for word in following[1:]):
        return _named_before(story, tokens, at)
    return found


def _named_before(story: _Story, tokens: Sequence[Token], at: int) -> list[str]:
    """`Ann` of `Ann , Bob's sister` and `Ann is the younger sister of Bob`."""
    start = _start(tokens, at)
    here = start - 1
    if here >= 1 and tokens[here].lower in ("'s", "'", "’"):
        here -= 2
    elif here >= 0 and tokens[here].lower in (*_POSSESSIVE, "the", "a", "an"):
        here -= 1
    if here >= 2 and tokens[here].lower == "of" and tokens[here - 1].lower == "one":
        here -= 2
    if here < 1 or tokens[here].lower not in ("is", "was", ",", "as"):
        return []
    while here > 1 and tokens[here - 1].lower in ("who", ","):
        here -= 1
    return [tokens[here - 1].text] if tokens[here - 1].text in story.names else []


def _sexes(story: _Story, tokens: Sequence[Token], people: list[int]) -> None:
    """What pronouns tell of whoever alone they can stand for: the one person before them in their sentence."""
    for at, token in enumerate(tokens):
        sex = _POSSESSIVE.get(token.lower) or _SUBJECT.get(token.lower) or ("m" if token.lower == "him" else "")
        here = {tokens[place].text for place in people if place < at}
        if sex and len(here) == 1:
            story.sex.setdefault(here.pop(), sex)


def relate(read: KinRead, one: str, two: str, table: Table) -> Composed | None:
    """What `two` is to `one`, by the shortest ways between them through a table of compositions.

    None where no way leads there, or the ways say different things equally well.
    """
    steps = _steps(read)
    for most in range(1, 7):
        votes: dict[str, float] = defaultdict(float)
        best: dict[str, Composed] = {}
        for path in _ways(steps, one, two, most):
            found = Composed(path[0], 1.0, ()) if len(path) == 1 else compose(path, table)
            if found is not None and _fits(found.relation, read.sex.get(two)):
                votes[found.relation] += found.degree
                best.setdefault(found.relation, found)
        if votes:
            top = max(votes.values())
            winners = [word for word, vote in votes.items() if vote == top]
            return best[winners[0]] if len(winners) == 1 else None
    return None


def _fits(relation: str, sex: str | None) -> bool:
    return relation not in KIN or sex is None or KIN[relation][1] == sex


def _steps(read: KinRead) -> Mapping[str, dict[str, set[str]]]:
    """For each person, what others are to them: as told, and turned round."""
    steps: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for fact in read.facts:
        kind = KIN[fact.relation][0] if fact.relation in KIN else fact.relation
        steps[fact.person][fact.other] |= _words(kind, read.sex.get(fact.other) or KIN.get(fact.relation, ("", ""))[1])
        steps[fact.other][fact.person] |= _words(_INVERSE.get(kind, kind), read.sex.get(fact.person))
    return steps


def _words(kind: str, sex: str | None) -> set[str]:
    """The kin words of a kind for a person of that sex; both where it is not known."""
    male, female = _PAIRS[kind]
    return {"m": {male}, "f": {female}}.get(sex or "", {male, female})


def _ways(
    steps: Mapping[str, dict[str, set[str]]], one: str, two: str, length: int, seen: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Every way of that many steps that meets nobody twice, as the relations along it."""
    for other, words in steps.get(one, {}).items():
        if other in seen or (other == two) != (length == 1):
            continue
        for word in sorted(words):
            if length == 1:
                yield (word,)
            else:
                yield from ((word, *rest) for rest in _ways(steps, other, two, length - 1, (*seen, one)))
