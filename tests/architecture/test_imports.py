"""Imports go one way, and nothing that must start fast loads what is heavy."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import FOLDERS, Source, imported_modules, read_sources

# A module may import those of earlier lines. Those of one line never import each other.
LAYERS = (
    ("errors",),
    ("config", "strict_yaml"),
    ("convolution_kernels_triton", "decode_triton", "loss_triton", "recipe_check", "records", "sampling_triton"),
    ("alignment", "files", "loss", "recipe", "sampling", "sums_triton", "together"),
    ("convolution_triton",),
    ("layers",),
    ("data", "generation_triton", "memory", "reasoning", "routing", "temporal", "tokenizer"),
    ("arguments", "experts", "generation", "pretrained"),
    ("block",),
    ("recollect",),
    ("model",),
    ("domain_expert", "unseen"),
    ("inference", "training"),
    ("bench",),
)
RANK = {unit: rank for rank, line in enumerate(LAYERS) for unit in line}
HEAVY = ("torch", "faiss", "transformers", "sentence_transformers", "datasets", "numpy", "sympy", "tokenizers")
SOURCES = read_sources("cmrn")


def unit_of(module: str) -> str:
    """The part of the package that a dotted name belongs to; "" is the package itself."""
    return [*module.split("."), ""][1]


def goes_up(unit: str, name: str) -> bool:
    """Whether importing `name` from a part of the package breaks the order."""
    if name.split(".")[0] != "cmrn":
        return name.split(".")[0] in ("cmrn_cli", "cmrn_recipes", "cli", "recipes", "tests")
    other = unit_of(name)
    return other not in (unit, "__version__") and RANK.get(other, len(LAYERS)) >= RANK[unit]


@pytest.mark.parametrize("source", [s for s in SOURCES if s.module != "cmrn"], ids=lambda s: s.module)
def test_imports_go_down_the_layers(source: Source) -> None:
    unit = unit_of(source.module)
    assert unit in RANK, f"{source.path.name} has no layer: give it one"
    wrong = [f"{source.place(node)} imports {name}" for node, name in imported_modules(source) if goes_up(unit, name)]
    assert not wrong, "\n".join(wrong)


def test_every_layer_still_exists() -> None:
    present = {unit_of(source.module) for source in SOURCES}
    assert set(RANK) <= present, set(RANK) - present


def test_nothing_imports_a_reference() -> None:
    found = [
        f"{source.place(node)} imports {name}"
        for source in read_sources(*FOLDERS)
        for node, name in imported_modules(source)
        if name.startswith("cmrn") and "reference" in name.split(".")
    ]
    assert not found, "\n".join(found)


def test_commands_import_nothing_heavy_before_they_run() -> None:
    found = [
        f"{source.place(node)} imports {name}"
        for source in read_sources("cmrn_cli", "cmrn_recipes")
        for node, name in imported_modules(source)
        if name.split(".")[0] in HEAVY and node in source.tree.body
    ]
    assert not found, "\n".join(found)


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=cwd)


@pytest.mark.parametrize(
    "start",
    [
        "import cmrn",
        "import cmrn.config, cmrn.errors, cmrn.recipe",
        "from cmrn import CMRNConfig, ExpertConfig, TrainingConfig",
        "run('--help')",
        "run('train', '--help')",
        "run('recipe', 'ls')",
    ],
)
def test_start_up_loads_nothing_heavy(start: str, tmp_path: Path) -> None:
    code = f"""
import sys
def run(*words):
    from cmrn_cli.main import main
    sys.argv = ["cmrn", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
{start}
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr, done.stderr


def test_help_takes_under_half_a_second(tmp_path: Path) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run_python("import sys; sys.argv = ['cmrn', '--help']; from cmrn_cli.main import main; main()", tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_order_can_be_broken() -> None:
    assert goes_up("temporal", "cmrn.routing.router")
    assert goes_up("config", "cmrn.records")
    assert goes_up("model", "cmrn_cli.main")
    assert goes_up("model", "cmrn.unheard_of")
    assert not goes_up("model", "cmrn.temporal.layer")
    assert not goes_up("temporal", "cmrn.temporal.layer")


def test_the_check_sees_imports_inside_functions_and_relative_ones() -> None:
    tree = ast.parse("def f():\n    from ..model import CMRN\n    import torch.nn\n")
    source = Source(Path("x.py"), "cmrn.temporal.x", tree)
    assert {name for _, name in imported_modules(source)} == {"cmrn.model.CMRN", "torch.nn"}
