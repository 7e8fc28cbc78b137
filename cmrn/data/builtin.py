"""builtin://code|math|english|legal: text that every installation already has, read where it lies.

    code     the standard library's source, each docstring cut to its first line
    math     docstrings of sympy, mpmath, and of the mathematical parts of scipy and numpy: prose and formulas
    english  the language reference in pydoc_data, docstrings and package descriptions: prose paragraphs
    legal    licence files of the standard library, of installed distributions and, where there are, of the system

Nothing is imported or executed: sources are parsed. Doctests, signatures, tables and parameter lists are left out of
prose, and a paragraph most of which an earlier one already said is said once.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from cmrn.data.deduplicate import unseen_paragraphs
from cmrn.data.prose import clean_docstring, clean_licence, clean_markdown
from cmrn.errors import DataError, UsageError

__all__ = ["BUILTIN_NAMES", "read_builtin"]

BUILTIN_NAMES = ("code", "math", "english", "legal")
PREFIX = "builtin://"
SHORTEST_DOCUMENT = 400
LONGEST_SOURCE_FILE = 2_000_000

MATH_PACKAGES = ("sympy", "mpmath", "numpy.linalg", "numpy.polynomial", "numpy.fft", "scipy.special", "scipy.linalg",
                 "scipy.stats", "scipy.integrate", "scipy.interpolate", "scipy.optimize")  # fmt: skip
ENGLISH_PACKAGES = ("click", "datasets", "fsspec", "huggingface_hub", "jinja2", "pydantic", "rich", "safetensors",
                    "torch.nn", "torch.optim", "torch.utils", "typer")  # fmt: skip
OMITTED_FOLDERS = frozenset(
    {"__pycache__", "_vendor", "ensurepip", "dist-packages", "encodings", "idle_test", "lib-dynload", "lib2to3",
     "pydoc_data", "site-packages", "test", "tests", "testing"}
)  # fmt: skip
GENERATED_FILES = re.compile(r"_sysconfigdata.*|stringprep\.py|entities\.py|pygram\.py|.*_tables?\.py|topics\.py")
LICENCE_FILE = re.compile(r"(?i)(.*[-_.])?(licen[cs]es?|copying|copyright|notices?|eula)([-_.].*)?$")
NOT_LICENCE_SUFFIXES = frozenset({".py", ".pyc", ".pyi", ".json", ".h", ".hpp", ".c", ".so", ".html", ".toml", ".js"})
SYSTEM_LICENCES = Path("/usr/share/common-licenses")
# A triple-quoted string where a docstring stands: at the head of a file, below a line that ends in a colon, or handed
# to add_newdoc. A pattern finds the same ones as a syntax tree in a tenth of the time.
DOCSTRING = re.compile(
    r"(?:\A(?:[ \t]*(?:#[^\n]*)?\n)*|:[ \t]*(?:#[^\n]*)?\n\s*|add_newdoc\(\s*[\"'][^\"']*[\"'],\s*)"
    r"[uU]?(?P<prefix>[rR]?)(?P<quotes>\"\"\"|''')(?P<body>.*?)(?<!\\)(?P=quotes)",
    re.DOTALL,
)


def read_builtin(name: str) -> Iterator[tuple[str, str]]:
    """(text, source) of every document of builtin://`name`, in an order that one installation always gives.

    Raises:
        UsageError: there is no such builtin.
        DataError: this installation lacks the text, such as a Python without its source files.
    """
    readers: Mapping[str, Callable[[], Iterable[tuple[str, str]]]] = {
        "code": _read_code,
        "math": _read_math,
        "english": _read_english,
        "legal": _read_legal,
    }
    if name not in readers:
        raise UsageError(
            f"there is no {PREFIX}{name}", hint=f"choose {', '.join(PREFIX + known for known in BUILTIN_NAMES)}"
        )
    found = False
    for text, source in readers[name]():
        if len(text) >= SHORTEST_DOCUMENT:
            found = True
            yield text, f"{PREFIX}{name}/{source}"
    if not found:
        raise DataError("this Python installation holds none of this text", where=PREFIX + name)


def _standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    """(source text, dotted name) of the Python files under `folder`, without tests and generated tables."""
    for file in sorted(folder.rglob("*.py")):
        relative = file.relative_to(folder)
        omitted = OMITTED_FOLDERS.intersection(relative.parts) or relative.parts[0].startswith("config-")
        if omitted or GENERATED_FILES.fullmatch(file.name) or file.name.startswith("test_"):
            continue
        try:
            if file.stat().st_size > LONGEST_SOURCE_FILE:
                continue
            text = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
        parts = [part for part in (name, *relative.with_suffix("").parts) if part and part != "__init__"]
        yield text, ".".join(parts)


def _package_folder(package: str) -> Path | None:
    """Where an installed package lies, found without importing it."""
    top, *inner = package.split(".")
    spec = importlib.util.find_spec(top)
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places), ""), *inner) if places else None
    return folder if folder and folder.is_dir() else None


def _docstrings(text: str) -> list[str]:
    """The docstrings of more than one line in a source file."""
    found = []
    for match in DOCSTRING.finditer(text):
        body = match["body"]
        if "\n" in body:
            found.append(body if match["prefix"] else _unescaped(body))
    return found


def _unescaped(body: str) -> str:
    """What the body of a literal that is not raw stands for."""
    if "\\" not in body:
        return body
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(ast.literal_eval(f'"""{body}"""'))
        except (SyntaxError, ValueError):
            return body


def _read_code() -> Iterator[tuple[str, str]]:
    for text, name in _modules(_standard_library(), ""):
        yield DOCSTRING.sub(_first_line, text), name


def _first_line(match: re.Match[str]) -> str:
    """A docstring cut to its first line; the rest is the english domain's."""
    whole, body = match.group(), match["body"]
    lines = [line.strip() for line in body.split("\n") if line.strip()]
    if "\n" not in body or not lines:
        return whole
    before = whole[: match.start("body") - match.start()]
    return before + lines[0].rstrip("\\\"'") + match["quotes"]


def _read_docstrings(folders: Iterable[tuple[Path, str]], math: bool) -> Iterator[tuple[list[str], str]]:
    """(paragraphs, module name) of the docstrings of each module."""
    for folder, name in folders:
        for text, module in _modules(folder, name):
            paragraphs = [part for doc in _docstrings(text) for part in clean_docstring(doc, math=math)]
            if paragraphs:
                yield paragraphs, module


def _installed(packages: Iterable[str]) -> Iterator[tuple[Path, str]]:
    for package in packages:
        folder = _package_folder(package)
        if folder:
            yield folder, package


def _read_math() -> Iterator[tuple[str, str]]:
    return unseen_paragraphs(_read_docstrings(_installed(MATH_PACKAGES), math=True))


def _read_english() -> Iterator[tuple[str, str]]:
    def parts() -> Iterator[tuple[list[str], str]]:
        for topic, text in sorted(_language_topics().items()):
            yield clean_docstring(text, math=False), f"pydoc_data.topics/{topic}"
        yield from _read_docstrings([(_standard_library(), ""), *_installed(ENGLISH_PACKAGES)], math=False)
        for distribution, name in _distributions():
            yield clean_markdown(_description(distribution)), f"readme/{name}"

    return unseen_paragraphs(parts())


def _description(distribution: importlib.metadata.Distribution) -> str:
    """The long description of a distribution: the body of its metadata."""
    _, _, body = (distribution.read_text("METADATA") or "").partition("\n\n")
    return body


def _language_topics() -> dict[str, str]:
    """The language reference that `help("topic")` prints, read as literals."""
    file = _standard_library() / "pydoc_data" / "topics.py"
    tree = ast.parse(file.read_text(encoding="utf-8") if file.is_file() else "")
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return {str(topic): str(text) for topic, text in ast.literal_eval(node.value).items()}
    return {}


def _distributions() -> list[tuple[importlib.metadata.Distribution, str]]:
    """The installed distributions by name, without this project: its own text changes with every edit."""
    named = {(found.metadata["Name"] or "").lower(): found for found in importlib.metadata.distributions()}
    return [(named[name], name) for name in sorted(named) if name and name != "cmrn"]


def _licence_files() -> Iterator[tuple[Path, str]]:
    yield _standard_library() / "LICENSE.txt", "python"
    for file in sorted(SYSTEM_LICENCES.glob("*")):
        if not file.is_symlink():
            yield file, f"system/{file.name}"
    for distribution, name in _distributions():
        for listed in sorted(distribution.files or (), key=str):
            if LICENCE_FILE.match(listed.name) and listed.suffix.lower() not in NOT_LICENCE_SUFFIXES:
                yield Path(str(listed.locate())), f"{name}/{listed.as_posix()}"


def _read_legal() -> Iterator[tuple[str, str]]:
    def parts() -> Iterator[tuple[list[str], str]]:
        for path, name in _licence_files():
            try:
                raw = path.read_bytes()
            except OSError:
                continue
            yield clean_licence(raw.decode("utf-8", errors="replace")), name

    # The longest first: a bundle that quotes a licence whole keeps it whole, and the shorter files add what is new.
    ordered = sorted(parts(), key=lambda part: (-sum(map(len, part[0])), part[1]))
    return unseen_paragraphs(ordered)
