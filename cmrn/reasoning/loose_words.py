"""What a phrase that no grammar takes apart comes down to: its words of content, in their base forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from cmrn.reasoning.lexicon import BE, IRREGULAR_VERBS, MODALS, singulars, verb_bases, word_set
from cmrn.reasoning.segment import Token

__all__ = [
    "AUXILIARIES",
    "PARTS",
    "VERBS",
    "Words",
    "is_participle",
    "is_verb_form",
    "learned_verbs",
    "lemma",
    "lemmas",
]

Words = tuple[str, ...]
AUXILIARIES = BE | MODALS | word_set("do does did has have had may might been being")
_DROPPED = BE | word_set(
    "a an the been being do does did person people someone somebody one something thing things everyone who whom "
    "that which he she they it him her them his their its also very really either both will would shall then so "
    "'s or and to of as there always"
)
_KEPT = word_set(
    "news physics mathematics politics olympics sports morning evening during something nothing species "
    "king ring string spring wing thing being"
)
PARTS = {
    "written": "write", "wrote": "write", "taken": "take", "took": "take", "given": "give",
    "gave": "give", "made": "make", "known": "know", "knew": "know", "sold": "sell", "built": "build",
    "born": "bear", "won": "win", "held": "hold", "led": "lead", "grown": "grow", "grew": "grow", "bought": "buy",
    "spoken": "speak", "spoke": "speak", "eaten": "eat", "ate": "eat", "driven": "drive", "drove": "drive",
    "found": "find", "founded": "found", "lost": "lose", "kept": "keep", "left": "leave", "sung": "sing",
    "sang": "sing", "seen": "see", "saw": "see", "worn": "wear", "chosen": "choose", "fallen": "fall",
    "fought": "fight", "taught": "teach", "thought": "think", "became": "become", "began": "begin",
    "begun": "begin", "came": "come", "went": "go", "gone": "go", "ran": "run", "met": "meet", "paid": "pay",
    "read": "read", "said": "say", "sent": "send", "spent": "spend", "understood": "understand", "broke": "break",
    "broken": "break", "drawn": "draw", "drew": "draw", "shown": "show",
}  # fmt: skip
VERBS = word_set(
    "have work go take drive drink live own like love want need play eat make write read study attend visit speak use "
    "buy sell produce hold win know think believe travel move perform sing run walk swim fly teach learn enjoy prefer "
    "grow provide include contain help cause become remain stay come give get spend joke lay carry ship publish "
    "direct manage belong cost store fight beat complete develop design support require value host lead serve hire "
    "order wear receive join graduate major exist follow fall rise cook watch listen stop start begin end lift train "
    "chase see hunt bark sleep smoke clean show send bring call dream care worry hate fear trust admire suffer die "
    "kill attack break fix build create discover invent paint draw record release tour star act appear feature earn "
    "pay owe borrow lend save invest choose decide plan intend try fail succeed pass apply accept reject offer "
    "deserve treat respect raise feed plant water pick harvest compete practice exercise talk chat text post share "
    "participate engage involve relate refer mean say tell ask answer hear feel look seem sound taste smell do lose "
    "find locate border divide measure weigh last occur happen solve commit reduce increase experience communicate "
    "memorize prosecute hand land lack ride regret ski surf skate bike"
)
_BEFORE_VERBS = word_set("can cannot will would must should could they he she do does did")
_NO_VERBS = AUXILIARIES | word_set(
    "not never either neither both also the a an all no only always often very regularly it he she they in on at by "
    "for with"
)


def lemma(word: str) -> str:
    """The base form of a word, by rule; the same for a noun's plural, a verb's third person, past and -ing form."""
    if word in PARTS:
        return PARTS[word]
    if word in IRREGULAR_VERBS:
        return IRREGULAR_VERBS[word]
    if word == "men" or word in _KEPT or not word.isalpha() or len(word) < 4:
        return "man" if word == "men" else word.replace("-", "")
    if not word.endswith("s"):
        word = next(iter(singulars(word)), word)
    elif word.endswith("ves") and singulars(word)[:1] and singulars(word)[0].endswith("f"):
        word = singulars(word)[0]
    elif word.endswith("ies"):
        word = word[:-3] + "y"
    elif not word.endswith(("ss", "us", "is")):
        word = word[: -2 if word.endswith(("sses", "xes", "ches", "shes", "zzes", "oes")) else -1]
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2 and re.search(r"[aeiouy]", stem):
            return _unended(stem)
    return word


def _unended(stem: str) -> str:
    """The verb of a stem that lost -ing or -ed: work, driv(e), stop(p), carr(y)."""
    if stem in VERBS:
        return stem
    if stem + "e" in VERBS:
        return stem + "e"
    if stem.endswith("i"):
        return stem[:-1] + "y"
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
        return stem[:-1]
    if re.search(r"([aeiou][cgvsz]|[lr][cgvs]|at|[^aeiou]l|u[rst])$", stem):
        return stem + "e"
    return stem


def lemmas(tokens: Sequence[Token]) -> Words:
    """The base forms of the words of content, in order; words that only build the sentence fall away."""
    kept = [
        t for t in tokens if t.text[0].isalnum() and (t.lower not in _DROPPED or (t.text == "A" and t is not tokens[0]))
    ]
    if len(kept) > 1 and kept[0].lower in ("have", "has", "had") and _is_perfect(kept[1].lower):
        kept = kept[1:]
    return tuple(token.lower if token.text[0].isupper() and at else lemma(token.lower) for at, token in enumerate(kept))


def _is_perfect(word: str) -> bool:
    return word.endswith(("ed", "en")) or word in PARTS


def is_participle(word: str) -> bool:
    """Whether a word has the form of a participle, such as `living`, `owned` or `born`."""
    return (
        word.endswith(("ed", "ing")) and len(word) > 4 and word[-3:] != "eed" and word not in _KEPT
    ) or word in PARTS


def learned_verbs(sentences: Sequence[Sequence[Token]]) -> frozenset[str]:
    """The base forms of words that a passage uses where only a verb can stand: behind not, can, will, to, they, who."""
    found = set()
    for tokens in sentences:
        for before, token in pairwise(tokens):
            if before.lower in _BEFORE_VERBS and token.lower.isalpha() and token.lower not in _NO_VERBS:
                found.add(lemma(token.lower))
    return frozenset(found)


def is_verb_form(token: Token, following: str, learned: frozenset[str] = frozenset()) -> bool:
    """Whether a word may be a finite verb where one is looked for; `learned` are the passage's own verbs."""
    word = token.lower
    if word in learned or any(base in learned for base in verb_bases(word)):
        return token.text[0].islower()
    if word in AUXILIARIES or word in IRREGULAR_VERBS:
        return True
    if not word.isalpha() or not token.text[0].islower():
        return False
    if word in VERBS or word in PARTS or any(base in VERBS for base in verb_bases(word)):
        return True
    return word.endswith("ed") and len(word) > 4 and following not in BE
