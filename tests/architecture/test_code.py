"""Policies of the code, read off its syntax trees."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator

import pytest

import cmrn
from tests.architecture.sources import FOLDERS, Source, imported_modules, read_sources

SOURCES = read_sources(*FOLDERS)
LONGEST_FILE = 450
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_METHODS = {"torch.load", "torch.save", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.module)


def unsafe(source: Source) -> Iterator[str]:
    """Places where a file could run what it reads."""
    for node, name in imported_modules(source):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{source.place(node)} imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS | UNSAFE_METHODS:
                yield f"{source.place(node)} calls {called}"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in UNSAFE_KEYWORDS and not off:
                    yield f"{source.place(node)} passes {keyword.arg}"


def undocumented(body: list[ast.stmt], prefix: str) -> Iterator[tuple[ast.stmt, str]]:
    """Public functions, classes and their public methods that have no docstring."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            overloaded = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
            setter = any(ast.unparse(d).endswith(".setter") for d in node.decorator_list)
            if not (ast.get_docstring(node) or overloaded or setter):
                yield node, prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


@each_source
def test_nothing_runs_what_it_reads(source: Source) -> None:
    assert not list(unsafe(source))


@each_source
def test_every_public_thing_is_documented(source: Source) -> None:
    missing = [f"{source.place(node)} {name}" for node, name in undocumented(source.tree.body, "")]
    if source.tree.body and not ast.get_docstring(source.tree):
        missing.append(f"{source.place(source.tree)} the module")
    assert not missing, "\n".join(missing)


@each_source
def test_files_are_short(source: Source) -> None:
    assert len(source.path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@each_source
def test_no_function_changes_module_state(source: Source) -> None:
    assert not [source.place(node) for node in ast.walk(source.tree) if isinstance(node, ast.Global)]


def exported_names(source: Source) -> list[str] | None:
    """The file's `__all__`, None where it has none."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def export_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then all else; alphabetical within each."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("source", [s for s in SOURCES if exported_names(s)], ids=lambda s: s.module)
def test_exports_are_sorted_and_exist(source: Source) -> None:
    names = exported_names(source)
    assert names == sorted(set(names or ()), key=export_order)
    module = importlib.import_module(source.module)
    assert [name for name in names or () if not hasattr(module, name)] == []


@pytest.mark.parametrize("source", [s for s in SOURCES if s.module.startswith("cmrn.")], ids=lambda s: s.module)
def test_public_classes_and_functions_are_exported_or_private(source: Source) -> None:
    if source.path.name == "__init__.py":
        return
    assert exported_names(source), f"{source.path.name} has no __all__"


def test_the_package_exports_the_names_of_the_first_examples() -> None:
    from cmrn.training import CMRNTrainer, TrainingConfig

    assert {"CMRN", "CMRNConfig", "CMRNOutput", "CMRNTokenizer"} <= set(cmrn.__all__)
    assert cmrn.TrainingConfig is TrainingConfig
    assert set(cmrn.__all__) <= set(dir(cmrn))
    assert not hasattr(cmrn, CMRNTrainer.__name__)
    with pytest.raises(AttributeError, match="no attribute 'CRMN'"):
        cmrn.CRMN  # noqa: B018


def test_the_checks_can_fail() -> None:
    code = "import pickle\ndef f(x):\n    return eval(x)\nclass A:\n    'Doc.'\n    def g(self): ...\n"
    source = Source(FOLDERS["cmrn"] / "x.py", "cmrn.x", ast.parse(code + "h(trust_remote_code=True, shell=False)\n"))
    assert len(list(unsafe(source))) == 3
    assert [name for _, name in undocumented(source.tree.body, "")] == ["f", "A.g"]
