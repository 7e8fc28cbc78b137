from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmrn.config import CMRNConfig, DataConfig, ExpertConfig, SourceConfig, TokenizerConfig, TrainingConfig
from cmrn.errors import ConfigError, Problem, UsageError
from cmrn.recipe import Recipe, load_recipe, recipe_to_yaml, shipped_recipes
from cmrn.recipe_check import BUILTIN_SOURCES

GOOD = """\
seed: 3
output: runs/mine
tokenizer: {vocab_size: 300}
model: {d_model: 64, routing_k: 1}
experts:
  - {name: math, domains: [math]}
  - {name: rest, type: pattern}
data:
  sources:
    - {path: "builtin://math", domain: math}
    - {path: notes.txt, domain: notes, weight: 2}
training: {max_steps: 4, learning_rate: 1e-3}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(folder: Path, text: str, *overrides: str) -> dict[str, Problem]:
    """Problems by `line:column` (or argument) in the order reported."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return {problem.where.removeprefix(f"{path}:"): problem for problem in caught.value.problems}


def test_a_recipe_becomes_a_config(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.seed == 3
    assert recipe.model.vocab_size == recipe.tokenizer.vocab_size == 300
    assert [expert.name for expert in recipe.model.named_experts] == ["math", "rest"]
    assert recipe.model.num_experts == 2
    assert recipe.model.domains == ("math",)
    assert recipe.data.sources[1].weight == 2.0
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.batch_size == TrainingConfig().batch_size


def test_a_model_may_know_more_tokens_than_the_tokenizer_but_not_fewer(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, GOOD), ["model.vocab_size=512"]).model.vocab_size == 512
    (problem,) = problems_of(tmp_path, GOOD, "model.vocab_size=299").values()
    assert "299 is less than the tokenizer's 300" in problem.message


def test_every_problem_is_reported_at_once_with_line_and_nearest_key(tmp_path: Path) -> None:
    text = """\
model:
  d_model: wide
  learning_rate: 3
  routing_k: 9
experts:
  - {name: math, type: genral, domains: [math, law]}
  - {name: Math}
data:
  sources:
    - {path: "builtin://maths", domain: math, wieght: 2}
  validation_fraction: 0.9
trianing: {max_steps: 5}
training:
  lr: 1e-4
  max_step: 10
"""
    found = problems_of(tmp_path, text)
    expected = {
        "2:3": ("model.d_model", "a whole number, not 'wide'", None),
        "3:3": ("model.learning_rate", "unknown key", "belongs under training"),
        "4:3": ("model.routing_k", "9 is more than the number of experts, 2", None),
        "6:18": ("experts.0.type", "not 'genral'", "did you mean general?"),
        "6:32": ("experts.0.domains", "no source provides the domain 'law'", "math"),
        "7:6": ("experts.1.name", "another expert is named 'math'", None),
        "10:8": ("data.sources.0.path", "no builtin text 'maths'", "did you mean builtin://math?"),
        "10:47": ("data.sources.0.wieght", "unknown key", "did you mean weight?"),
        "11:3": ("data.validation_fraction", "less than 0.5, not 0.9", None),
        "12:1": ("trianing", "unknown key", "did you mean training?"),
        "14:3": ("training.lr", "unknown key", "did you mean learning_rate?"),
        "15:3": ("training.max_step", "unknown key", "did you mean max_steps?"),
    }
    assert list(found) == list(expected)
    for where, (key, message, hint) in expected.items():
        assert found[where].key == key
        assert message in found[where].message
        assert hint is None or hint in (found[where].hint or "")


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("", "data", "required"),
        ("- 1\n", "(top)", "mapping"),
        ("data:\n", "data", "should be a mapping, not empty"),
        ("data: {sources: []}\n", "data.sources", "at least one item"),
        ("data: {sources: [{domain: a}]}\n", "data.sources.0.path", "required"),
        ("model: {experts: [{name: a}]}\ndata: {sources: [{path: a.txt}]}\n", "model.experts", "unknown key"),
        ("experts: [{name: shared}]\nmodel: {routing_k: 1}\ndata: {sources: [{path: a.txt}]}\n", "model", "'shared'"),
        ("seed: 1.5\ndata: {sources: [{path: a.txt}]}\n", "seed", "whole number, not 1.5"),
        ("seed: yes\ndata: {sources: [{path: a.txt}]}\n", "seed", "whole number, not 'yes'"),
        ("model: {shared_expert: yes}\ndata: {sources: [{path: a.txt}]}\n", "model.shared_expert", "true or false"),
        ("data: {sources: [{path: a.txt, weight: .inf}]}\n", "data.sources.0.weight", "finite"),
        ("experts: [{name: ../x}]\nmodel: {routing_k: 1}\ndata: {sources: [{path: a}]}\n", "experts.0.name", "../x"),
    ],
)
def test_single_mistakes(tmp_path: Path, text: str, key: str, words: str) -> None:
    (problem,) = problems_of(tmp_path, text).values()
    assert problem.key == key
    assert words in problem.message


def test_long_term_memory_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    text = "data: {sources: [{path: a.txt}]}\ntraining:\n  sequence_length: 64\n  memory_reach: 65\n"
    memory, rows = "model.episodic_memory=512", "training.carry_states=true"
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, text))
    told = [(problem.where, problem.key) for problem in caught.value.problems]
    assert told == [(f"{tmp_path / 'recipe.yaml'}:4:3", "training.memory_reach")] * 2
    (problem,) = problems_of(tmp_path, text, rows).values()
    assert "no long-term memory" in problem.message
    (problem,) = problems_of(tmp_path, text, memory).values()
    assert "65 is more than a row's 64 tokens" in problem.message
    for enough in ([memory, rows], [memory, "training.memory_reach=64"], ["training.memory_reach=0"]):
        load_recipe(tmp_path / "recipe.yaml", enough)


def test_domains_are_checked_only_where_every_source_says_its_own(tmp_path: Path) -> None:
    open_source = GOOD.replace("notes.txt, domain: notes,", "notes.jsonl,").replace("domains: [math]", "domains: [law]")
    assert load_recipe(write(tmp_path, open_source)).model.domains == ("law",)
    builtin = GOOD.replace('"builtin://math", domain: math', '"builtin://math"')
    assert load_recipe(write(tmp_path, builtin)).model.domains == ("math",)


def test_a_file_that_is_not_utf8_says_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"seed: 1\noutput: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [
        (f"{path}:2:1", "not UTF-8 text")
    ]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe") as caught:
        load_recipe("quickstrat")
    assert caught.value.hint == "cmrn recipe show quickstart"
    with pytest.raises(UsageError, match="folder"):
        load_recipe(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe("x" * 5000)


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_recipe("quickstart").output == "runs/quickstart"


class TestOverrides:
    def test_any_depth_and_typed(self, tmp_path: Path) -> None:
        changes = ["training.max_steps=9", "experts.1.type=symbolic", "data.sources.0.weight=1e-1", "output=a=b",
                   "model.memory_blocks=[0, 1]", "training.micro_batch_size=2"]  # fmt: skip
        recipe = load_recipe(write(tmp_path, GOOD), changes)
        assert recipe.training.max_steps == 9
        assert recipe.model.named_experts[1].type == "symbolic"
        assert recipe.data.sources[0].weight == 0.1
        assert recipe.output == "a=b"
        assert recipe.model.memory_blocks == (0, 1)

    def test_the_last_one_counts(self, tmp_path: Path) -> None:
        assert load_recipe(write(tmp_path, GOOD), ["seed=5", "seed=6"]).seed == 6

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("training.max_steps", "section.key=value"),
            ("=1", "section.key=value"),
            ("training..max_steps=1", "section.key=value"),
            ("training.max_steps=[1", "expected"),
            ("training.max_steps=many", "whole number, not 'many'"),
            ("training.max_stepz=1", "unknown key"),
            ("experts.7.type=general", "0 to 1"),
            ("experts.x.type=general", "not an item"),
            ("seed.deep=1", "below a single value"),
            ("extends=small", "cannot be given"),
            ("new.section=1", "unknown key"),
        ],
    )
    def test_mistakes_name_the_argument(self, tmp_path: Path, argument: str, words: str) -> None:
        ((where, problem),) = problems_of(tmp_path, GOOD, argument).items()
        assert where == f"argument {argument!r}"
        assert words in problem.message

    def test_they_join_the_file_s_own_problems(self, tmp_path: Path) -> None:
        found = problems_of(tmp_path, GOOD.replace("seed: 3", "sead: 3"), "max_steps=4", "training.max_steps=0")
        assert list(found) == ["1:1", "argument 'max_steps=4'", "argument 'training.max_steps=0'"] or list(found) == [
            "1:1", "argument 'training.max_steps=0'", "argument 'max_steps=4'"]  # fmt: skip
        assert found["argument 'max_steps=4'"].hint == "max_steps belongs under training"

    def test_a_mistake_in_the_file_can_be_overridden(self, tmp_path: Path) -> None:
        broken = GOOD.replace("max_steps: 4", "max_steps: none")
        assert load_recipe(write(tmp_path, broken), ["training.max_steps=2"]).training.max_steps == 2


class TestExtends:
    def test_mappings_merge_and_lists_are_replaced(self, tmp_path: Path) -> None:
        write(tmp_path, GOOD, "base.yaml")
        child = "extends: base.yaml\nmodel: {d_model: 128}\nexperts: [{name: notes, domains: [notes]}]\n"
        recipe = load_recipe(write(tmp_path, child))
        assert recipe.model.d_model == 128
        assert recipe.model.routing_k == 1
        assert [expert.name for expert in recipe.model.named_experts] == ["notes"]
        assert recipe.seed == 3

    def test_a_shipped_recipe_by_name(self, tmp_path: Path) -> None:
        recipe = load_recipe(write(tmp_path, "extends: quickstart\noutput: runs/other\n"))
        assert recipe == load_recipe("quickstart", ["output=runs/other"])

    def test_lines_are_those_of_the_right_file(self, tmp_path: Path) -> None:
        write(tmp_path, GOOD.replace("max_steps: 4", "max_steps: 0"), "base.yaml")
        path = write(tmp_path, "extends: base.yaml\n\ntraining: {batch_size: 0}\n")
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        where = {problem.key: problem.where for problem in caught.value.problems}
        assert where == {
            "training.batch_size": f"{path}:3:12",
            "training.max_steps": f"{tmp_path / 'base.yaml'}:12:12",
        }

    @pytest.mark.parametrize(
        ("value", "words"),
        [("missing.yaml", "no shipped recipe or file"), ("7", "should be the name"), ("middle.yaml", "cannot extend")],
    )
    def test_mistakes(self, tmp_path: Path, value: str, words: str) -> None:
        write(tmp_path, GOOD, "base.yaml")
        write(tmp_path, "extends: base.yaml\n" + GOOD, "middle.yaml")
        path = write(tmp_path, f"extends: {value}\n" + GOOD)
        with pytest.raises(ConfigError) as caught:
            load_recipe(path)
        assert [words in problem.message for problem in caught.value.problems] == [True]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True).filter(lambda name: name.lower() != "shared")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
experts = st.lists(
    st.builds(ExpertConfig, name=names, type=st.sampled_from(["general", "pattern", "symbolic", "generative"])),
    min_size=1, max_size=4, unique_by=lambda expert: expert.name.lower(),
)  # fmt: skip
recipes = st.builds(
    lambda seed, output, sources, experts, rate, vocab: Recipe(
        seed=seed,
        output=output,
        tokenizer=TokenizerConfig(vocab_size=vocab),
        model=CMRNConfig(vocab_size=vocab, routing_k=1, experts=experts and tuple(experts)),
        data=DataConfig(sources=tuple(sources)),
        training=TrainingConfig(learning_rate=rate),
    ),
    st.integers(0, 2**63 - 1),
    texts,
    st.lists(
        st.builds(
            SourceConfig,
            path=texts,
            domain=st.none() | names,
            weight=st.floats(1e-9, 1e9),
            limit=st.none() | st.just(3),
        ),
        min_size=1,
        max_size=3,
    ),
    st.none() | experts,
    st.floats(1e-12, 1.0),
    st.integers(258, 99_999),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(recipe=recipes)
def test_a_resolved_recipe_loads_as_itself(tmp_path: Path, recipe: Recipe) -> None:
    if any(source.path.startswith("builtin://") for source in recipe.data.sources):
        return
    assert load_recipe(write(tmp_path, recipe_to_yaml(recipe))) == recipe


def test_a_resolved_recipe_holds_every_field_below_its_help() -> None:
    lines = recipe_to_yaml(load_recipe("quickstart")).splitlines()
    for model in (TokenizerConfig, CMRNConfig, DataConfig, TrainingConfig):
        for name, field in model.model_fields.items():
            above = [lines[i - 1].strip() for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
            assert f"# {field.description}" in above


def test_recipes_need_no_torch() -> None:
    code = (
        "import sys, cmrn.recipe; cmrn.recipe.load_recipe('quickstart');"
        "print([name for name in ('torch', 'numpy', 'faiss', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_builtin_names_are_those_the_data_has() -> None:
    from cmrn.data.builtin import BUILTIN_NAMES

    assert set(BUILTIN_SOURCES) == set(BUILTIN_NAMES)


def test_shipped_recipes_are_found() -> None:
    assert "quickstart" in shipped_recipes()
