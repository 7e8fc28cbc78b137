"""Words: the closed classes English builds sentences from, and the number of nouns and verbs, nonce words included."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

__all__ = [
    "BE",
    "CLOSED",
    "COMMON_ADJECTIVES",
    "IRREGULAR_VERBS",
    "MODALS",
    "PREPOSITIONS",
    "PRIVATIVE",
    "PRONOUNS",
    "guessed_singular",
    "indefinite",
    "is_plural_form",
    "plural",
    "singulars",
    "third_person",
    "verb_bases",
    "word_set",
]


def word_set(text: str) -> frozenset[str]:
    """The words of a text, which spaces part."""
    return frozenset(text.split())


BE = word_set("is are am was were be")
MODALS = word_set("can could will would must should shall")
PRONOUNS = word_set("it they he she them him her")
PREPOSITIONS = word_set(
    "in on at to from of for with by about into onto near under over above below behind beside between through against "
    "inside outside during before after toward towards across along around without within as among upon"
)
CLOSED = (
    BE
    | MODALS
    | PRONOUNS
    | word_set(
        "a an the all every each any no some most many few several only both either neither nor and or but not if then "
        "unless iff when whenever who that which whom whose whoever what where why how there this these those do does "
        "did cannot never always something someone somebody anything anyone anybody everything everyone everybody "
        "nothing nobody none than because since while so therefore thus hence though although may might has have had "
        "except other another such exactly least more less else itself himself herself themselves his their its my "
        "your our we i you us me 's usually often sometimes rarely generally typically probably possibly perhaps maybe "
        "likely almost nearly half one two three four five six seven eight nine ten"
    )
)
PRIVATIVE = word_set(
    "fake former alleged toy counterfeit artificial pretend ex-president future supposed imaginary would-be fictional "
    "fictitious hypothetical imitation mock sham bogus so-called nonexistent"
)
COMMON_ADJECTIVES = word_set(
    "red green blue white black brown yellow orange purple pink gray grey big small large little tall short long old "
    "young new nice kind smart rough round quiet cold hot warm cool furry happy sad angry shy sour sweet bitter spicy "
    "loud wooden metallic transparent opaque luminous dull bright dark feisty amenable aggressive mean fast slow "
    "strong weak rich poor good bad clean dirty heavy light soft hard wet dry thick thin deep shallow wide narrow "
    "fruity floral earthy liquid mortal real natural human edible poisonous dangerous famous popular cute fat lazy "
    "brave calm clever funny gentle honest hungry thirsty tired sick healthy wild tame young bald blind deaf American "
    "male female deadly tiny huge giant golden silver striped spotted fierce friendly noisy sleepy wise careful"
)
_ZERO = word_set("sheep fish deer series species aircraft bison moose salmon trout swine offspring spacecraft")
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "louse": "lice", "goose": "geese",
    "foot": "feet", "tooth": "teeth", "ox": "oxen", "person": "people", "wolf": "wolves", "leaf": "leaves",
    "knife": "knives", "life": "lives", "wife": "wives", "half": "halves", "self": "selves", "elf": "elves",
    "shelf": "shelves", "calf": "calves", "loaf": "loaves", "thief": "thieves", "scarf": "scarves", "hoof": "hooves",
    "dwarf": "dwarves", "cactus": "cacti", "fungus": "fungi", "nucleus": "nuclei", "alumnus": "alumni",
    "octopus": "octopuses", "stimulus": "stimuli", "radius": "radii", "crisis": "crises", "thesis": "theses",
    "analysis": "analyses", "hypothesis": "hypotheses", "oasis": "oases", "axis": "axes", "phenomenon": "phenomena",
    "criterion": "criteria", "datum": "data", "bacterium": "bacteria", "medium": "media", "index": "indices",
    "vertex": "vertices", "matrix": "matrices", "appendix": "appendices", "larva": "larvae", "alga": "algae",
    "formula": "formulae", "vertebra": "vertebrae", "die": "dice", "quiz": "quizzes", "hero": "heroes",
    "potato": "potatoes", "tomato": "tomatoes", "echo": "echoes", "bus": "buses", "gas": "gases", "lens": "lenses",
    "virus": "viruses", "movie": "movies", "cookie": "cookies", "pie": "pies", "tie": "ties", "zombie": "zombies",
    "house": "houses", "horse": "horses", "nurse": "nurses", "spouse": "spouses", "blouse": "blouses",
    "clause": "clauses", "cause": "causes", "muse": "muses", "purse": "purses", "rose": "roses", "nose": "noses",
    "base": "bases", "case": "cases", "vase": "vases", "phase": "phases", "axe": "axes", "cache": "caches",
    "calf-bound": "calf-bound", "cafe": "cafes", "shoe": "shoes", "canoe": "canoes", "toe": "toes",
}  # fmt: skip
_SINGULAR_OF = {many: one for one, many in _IRREGULAR.items()} | {"formulas": "formula", "persons": "person"}
# Endings of Latin, Greek and other plurals, each with those of its singulars. Used only where the passage has one.
_FOREIGN = (("i", "us"), ("ae", "a"), ("a", "um"), ("a", "on"), ("ices", "ex"), ("ices", "ix"), ("es", "is"),
            ("men", "man"), ("eaux", "eau"), ("ves", "f"), ("ves", "fe"), ("en", ""), ("im", ""), ("oxen", "ox"),
            ("eese", "oose"), ("eeth", "ooth"), ("ice", "ouse"), ("zzes", "z"), ("x", ""))  # fmt: skip
_FOREIGN_ENDS = tuple({many for many, _ in _FOREIGN})
IRREGULAR_VERBS = {
    "has": "have", "does": "do", "goes": "go", "flies": "fly", "tries": "try", "cries": "cry", "carries": "carry",
    "is": "be", "had": "have", "did": "do", "went": "go", "ate": "eat", "saw": "see", "knew": "know", "took": "take",
    "gave": "give", "made": "make", "won": "win", "lost": "lose", "wrote": "write", "found": "find", "left": "leave",
    "ran": "run", "came": "come", "bought": "buy", "sold": "sell", "told": "tell", "met": "meet", "led": "lead",
    "built": "build", "taught": "teach", "caught": "catch", "held": "hold", "kept": "keep", "felt": "feel",
    "dies": "die", "lies": "lie", "ties": "tie",
}  # fmt: skip
_SIBILANT = re.compile(r"(s|x|z|ch|sh)$")


def plural(noun: str) -> str:
    """The plural of a noun's last word; the words before it stay."""
    before, gap, word = noun.rpartition(" ")
    return before + gap + _plural_word(word)


def _plural_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _ZERO:
        return word
    if word.endswith("man") and word not in ("human", "german", "roman", "shaman", "talisman"):
        return word[:-3] + "men"
    if _SIBILANT.search(word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def singulars(word: str, seen: Iterable[str] = ()) -> tuple[str, ...]:
    """The nouns that a word may be the plural of, the likeliest first; `seen` are the passage's words.

    Empty where nothing says that the word is a plural.
    """
    vocabulary = seen if isinstance(seen, frozenset | set | dict) else frozenset(seen)
    if word in _ZERO:
        return (word,)
    regular = list(_regular_singulars(word))
    if word in _SINGULAR_OF:
        one = _SINGULAR_OF[word]
        return (one,) if one in vocabulary else (*(other for other in regular if other in vocabulary), one)
    known = [one for one in regular if one in vocabulary]
    if not known and word.endswith(_FOREIGN_ENDS):
        foreign = [
            word[: -len(many)] + one for many, one in _FOREIGN if word.endswith(many) and len(word) > len(many) + 1
        ]
        known = [one for one in foreign if one in vocabulary and one != word]
    return tuple(dict.fromkeys([*known, *regular]))


def _regular_singulars(word: str) -> Iterator[str]:
    """By rule, the likeliest first."""
    if word.endswith("men") and len(word) > 4 and word not in ("specimen", "abdomen", "acumen", "regimen", "stamen"):
        yield word[:-3] + "man"
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return
    if word.endswith("ies") and len(word) > 4:
        yield word[:-3] + "y"
        yield word[:-1]
    elif re.search(r"(uses|sses|xes|zes|ches|shes|ises|oses)$", word):
        yield word[:-2]
        yield word[:-1]
    elif word.endswith("es") and len(word) > 4:
        yield word[:-1]
        yield word[:-2]
    elif not re.search(r"(us|is|ous)$", word):
        yield word[:-1]


def guessed_singular(word: str) -> str:
    """The noun of a plural that only its place shows, such as `all lorpi are`."""
    for many, one in (("i", "us"), ("ae", "a"), ("a", "um"), ("ices", "ix")):
        if word.endswith(many):
            return word[: -len(many)] + one
    return word


def is_plural_form(word: str, seen: Iterable[str] = ()) -> bool:
    """Whether a word may be a plural by its form or by what else the passage holds."""
    return bool(singulars(word, seen))


def third_person(base: str) -> str:
    """fly -> flies, chase -> chases, have -> has; only the first word of a phrase changes."""
    word, gap, rest = base.partition(" ")
    special = {"have": "has", "do": "does", "go": "goes", "be": "is"}
    if word in special:
        return special[word] + gap + rest
    if _SIBILANT.search(word):
        return word + "es" + gap + rest
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies" + gap + rest
    return word + "s" + gap + rest


def verb_bases(word: str, seen: Iterable[str] = ()) -> tuple[str, ...]:
    """The verbs that a word may be the third person of, those the passage holds first; empty where it is none."""
    if word in IRREGULAR_VERBS:
        return (IRREGULAR_VERBS[word],)
    if len(word) < 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return ()
    options = [word[:-3] + "y"] if word.endswith("ies") else []
    if re.search(r"(sses|xes|zzes|ches|shes|oes)$", word):
        options += [word[:-2], word[:-1]]
    else:
        options += [word[:-1], *([word[:-2]] if word.endswith("ses") else [])]
    vocabulary = frozenset(seen) if not isinstance(seen, frozenset | set | dict) else seen
    return tuple(sorted(dict.fromkeys(options), key=lambda base: base not in vocabulary))


def indefinite(noun: str) -> str:
    """The noun with `a` or `an` before it."""
    vowel = (re.match(r"[aeiou]", noun) and not re.match(r"(uni|use|one|eu)", noun)) or re.match(
        r"(hour|honest|heir)", noun
    )
    return f"{'an' if vowel else 'a'} {noun}"
