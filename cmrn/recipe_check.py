"""What is wrong with a recipe, in words: pydantic's findings and checks across sections, with place and nearest key."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cmrn.config import CMRNConfig, DataConfig, ExpertConfig, SourceConfig, TokenizerConfig, TrainingConfig
from cmrn.errors import Problem
from cmrn.strict_yaml import KeyPath, Tree, dotted

__all__ = ["BUILTIN_SOURCES", "check_tree", "explain", "in_file_order"]

BUILTIN_SOURCES = ("code", "math", "english", "legal")

_BUILTIN = "builtin://"
_QUIZ = "quiz://"
_TOP = ("extends", "seed", "output", "tokenizer", "model", "experts", "data", "training")
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "tokenizer": TokenizerConfig,
    "model": CMRNConfig,
    "experts": ExpertConfig,
    "data": DataConfig,
    "data.sources": SourceConfig,
    "training": TrainingConfig,
}
_WORDS = {
    "missing": "is required",
    "too_short": "should have at least one item",
    "model_type": "should be a mapping",
    "dict_type": "should be a mapping",
    "tuple_type": "should be a list",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text",
}


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems by file, line and column; arguments last."""

    def position(problem: Problem) -> tuple[bool, str, int, int]:
        found = re.fullmatch(r"(.*):(\d+):(\d+)", problem.where, re.DOTALL)
        return (False, found[1], int(found[2]), int(found[3])) if found else (True, "", 0, 0)

    return sorted(problems, key=position)


def explain(error: ValidationError, tree: Tree, found: Sequence[Problem]) -> list[Problem]:
    """Pydantic's findings as problems; its check of a whole model is left out where `found` already names the cause."""
    problems = []
    known = any(problem.key.startswith(("model.", "experts.")) for problem in found)
    details = error.errors(include_url=False)
    for detail in details:
        loc: KeyPath = detail["loc"]
        path = loc[1:] if loc[:2] == ("model", "experts") else loc
        if path == ("model",) and detail["type"] == "value_error" and known:
            continue
        if detail["type"] == "too_short" and any(other["loc"][: len(loc)] == loc != other["loc"] for other in details):
            continue
        message, hint = _describe(detail, path)
        problems.append(Problem(str(tree.place(path)), dotted(path), message, hint))
    return problems


def _describe(detail: Any, path: KeyPath) -> tuple[str, str | None]:
    """Message and hint for one of pydantic's findings."""
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return "unknown key", _nearest_key(path)
    if kind == "missing":
        return _WORDS[kind], None
    if kind == "value_error":
        return str(detail["ctx"]["error"]), None
    message = _WORDS.get(kind) or str(detail["msg"]).replace("Input should", "should").replace(
        "String should", "should"
    )
    shown = f", not {_shown(given)}" if given is None or isinstance(given, str | int | float) else ""
    hint = None
    if kind == "literal_error" and isinstance(given, str):
        near = difflib.get_close_matches(given, re.findall(r"'([^']*)'", detail["ctx"]["expected"]), 1)
        hint = f"did you mean {near[0]}?" if near else None
    return message + shown, hint


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest_key(path: KeyPath) -> str:
    """Which key was meant: the same one in another section, or the most alike here, then elsewhere."""
    key = str(path[-1])
    section = ".".join(part for part in path[:-1] if isinstance(part, str))
    homes = [name for name in ("", *_SECTIONS) if name != section and key in _keys(name)]
    if homes:
        return f"{key} belongs {f'under {homes[0]}' if homes[0] else 'at the top level'}"
    for name, likeness in ((section, 0.6), *((other, 0.75) for other in ("", *_SECTIONS) if other != section)):
        near = _alike(key, _keys(name), likeness)
        if near:
            return f"did you mean {near if name in ('', section) else f'{name}.{near}'}?"
    own = _keys(section)
    return f"keys here: {', '.join(own)}" if len(own) <= 8 else f"the nearest key here is {_alike(key, own, 0.0)}"


def _alike(key: str, keys: Sequence[str], likeness: float) -> str | None:
    """The key most like `key` (0 to 1), or the one it abbreviates: lr, learning_rate."""
    near = difflib.get_close_matches(key, keys, 1, likeness)
    initials = [name for name in keys if "_" in name and "".join(word[:1] for word in name.split("_")) == key]
    return next(iter([*initials, *near]), None)


def _keys(section: str) -> tuple[str, ...]:
    if not section:
        return _TOP
    fields = _SECTIONS[section].model_fields if section in _SECTIONS else {}
    return tuple(name for name in fields if (section, name) != ("model", "experts"))


def check_tree(tree: Tree) -> list[Problem]:
    """What no single section can see. Looks only at values of the right type: the others are reported elsewhere."""
    value = tree.value
    experts = [item for item in _list(value.get("experts")) if isinstance(item, dict)]
    checks = (_check_model(value, experts), _check_names(value, experts), _check_sources(value, experts))
    problems = [*itertools.chain(*checks), *_check_reach(value)]
    return [Problem(str(tree.place(path)), dotted(path), message, hint) for path, message, hint in problems]


def _check_model(value: Any, experts: list[Any]) -> Iterator[tuple[KeyPath, str, str | None]]:
    model, tokenizer = _dict(value.get("model")), _dict(value.get("tokenizer"))
    if "experts" in model:
        yield ("model", "experts"), "unknown key", "experts belongs at the top level"
    defaults = {name: field.default for name, field in CMRNConfig.model_fields.items()}
    routing_k = model.get("routing_k", defaults["routing_k"])
    count = len(experts) or model.get("num_experts", defaults["num_experts"])
    if isinstance(routing_k, int) and isinstance(count, int) and routing_k > count > 0:
        yield ("model", "routing_k"), f"{routing_k} is more than the number of experts, {count}", None
    size = tokenizer.get("vocab_size", TokenizerConfig().vocab_size)
    given = model.get("vocab_size", size)
    if isinstance(given, int) and isinstance(size, int) and given < size and not tokenizer.get("path"):
        yield ("model", "vocab_size"), f"{given} is less than the tokenizer's {size}", "leave it out: it follows it"


def _check_reach(value: Any) -> Iterator[tuple[KeyPath, str, str | None]]:
    """Whether there is what training is to read of long-term memory."""
    model, training = _dict(value.get("model")), _dict(value.get("training"))
    reach = training.get("memory_reach")
    if not isinstance(reach, int) or isinstance(reach, bool) or reach <= 0:
        return
    path = ("training", "memory_reach")
    if model.get("episodic_memory", CMRNConfig.model_fields["episodic_memory"].default) == 0:
        yield path, "the model has no long-term memory to read", "set model.episodic_memory, or memory_reach: 0"
    length = training.get("sequence_length", TrainingConfig.model_fields["sequence_length"].default)
    if not training.get("carry_states") and isinstance(length, int) and reach > length:
        told = f"{reach} is more than a row's {length} tokens, and rows do not read on"
        yield path, told, "set training.carry_states: true"


def _check_names(value: Any, experts: list[Any]) -> Iterator[tuple[KeyPath, str, str | None]]:
    seen: dict[str, str] = {}
    for i, expert in enumerate(_list(value.get("experts"))):
        name = expert.get("name") if expert in experts else None
        if not isinstance(name, str):
            continue
        if name.lower() in seen:
            yield ("experts", i, "name"), f"another expert is named {seen[name.lower()]!r} (case is ignored)", None
        seen.setdefault(name.lower(), name)


def _check_sources(value: Any, experts: list[Any]) -> Iterator[tuple[KeyPath, str, str | None]]:
    sources = [item for item in _list(_dict(value.get("data")).get("sources")) if isinstance(item, dict)]
    for i, source in enumerate(sources):
        path = source.get("path")
        name = path.removeprefix(_BUILTIN) if isinstance(path, str) and path.startswith(_BUILTIN) else None
        if name is not None and name not in BUILTIN_SOURCES:
            near = difflib.get_close_matches(name, BUILTIN_SOURCES, 1)
            hint = f"did you mean builtin://{near[0]}?" if near else f"there are {', '.join(BUILTIN_SOURCES)}"
            yield ("data", "sources", i, "path"), f"there is no builtin text {name!r}", hint
    domains = [_fixed_domain(source) for source in sources if not str(source.get("path")).startswith(_QUIZ)]
    known = [domain for domain in dict.fromkeys(domains) if domain is not None]
    if not sources or None in domains:
        return
    for i, expert in enumerate(_list(value.get("experts"))):
        for domain in _list(_dict(expert).get("domains")):
            if isinstance(domain, str) and domain not in known:
                near = difflib.get_close_matches(domain, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"the sources have {', '.join(known)}"
                yield ("experts", i, "domains"), f"no source provides the domain {domain!r}", hint


def _fixed_domain(source: dict[str, Any]) -> str | None:
    """The domain that all text of a source has; None where each record says its own."""
    domain, path = source.get("domain"), source.get("path")
    if domain is None and isinstance(path, str) and path.startswith(_BUILTIN):
        return path.removeprefix(_BUILTIN)
    return domain if isinstance(domain, str) else None


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
