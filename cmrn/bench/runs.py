"""One training run of a quality benchmark: what it is made of, what it gave, and the file where results collect."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from cmrn.errors import DataError

__all__ = ["Result", "Results", "RunSpec", "code_version"]


@dataclass(frozen=True)
class RunSpec:
    """All that decides a run's outcome, as plain data.

    model: {"kind": "cmrn", "config": …, "changes": […]} or {"kind": "llama", "config": …}. training: the fields of a
    TrainingConfig. data: the fingerprint of the tokens, or the name of a made-up task. `setting` and `variant` are
    what the run is called; `key` names what it is.
    """

    setting: str
    variant: str
    seed: int
    model: dict[str, Any]
    training: dict[str, Any]
    data: str
    task: Literal["text", "mqar"] = "text"

    @cached_property
    def key(self) -> str:
        """Sixteen digits that two runs share when they would do the same; names do not count."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("setting", "variant")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def family(self) -> str:
        """What runs share that differ in seed and learning rate alone."""
        free = {"seed": 0, "training": {**self.training, "learning_rate": 0.0}}
        return RunSpec(**{**asdict(self), **free}).key

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return float(self.training["learning_rate"])

    @property
    def structure(self) -> str:
        """What compiled code depends on: runs that share it can follow one another in a process."""
        shape = (self.model, self.training["batch_size"], self.training["sequence_length"], self.task)
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    def with_training(self, **fields: Any) -> RunSpec:
        """The same run with other training settings."""
        return RunSpec(self.setting, self.variant, self.seed, self.model, {**self.training, **fields}, self.data,
                       self.task)  # fmt: skip

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Result:
    """What a run gave. figures: bits per byte by domain, or accuracy by task size, with their "mean".

    carried: the same figures with what lies before a window as context: states carried, where the model has them, else
    windows that overlap by half. seconds: training alone, without compilation and evaluation. sizes: active and total
    parameters, and others worth knowing. where: device, versions, commit and hash of the code.
    """

    key: str
    family: str
    setting: str
    variant: str
    seed: int
    rate: float
    tokens: int
    seconds: float
    tokens_per_s: float
    figures: dict[str, float]
    carried: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    curve: tuple[float, ...] = ()
    steps: int = 0
    data: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Result:
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "curve": tuple(fields.get("curve", ()))})


class Results:
    """A file of results, one JSON object a line; several calls, and several machines' files, may fill one table."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._found: dict[str, Result] = {}
        if path is not None and path.is_file():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                try:
                    result = Result.from_json(line)
                except (ValueError, TypeError) as error:
                    raise DataError(f"not a result: {error}", where=f"{path}:{number}") from error
                self._found[result.key] = result

    def add(self, result: Result) -> None:
        """Keep a result, on disk first."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(result.to_json() + "\n")
        self._found[result.key] = result

    def get(self, spec: RunSpec) -> Result | None:
        """The result of that run, whatever it was called."""
        return self._found.get(spec.key)

    def rates(self, spec: RunSpec) -> set[float]:
        """Learning rates at which that run, with its seed, has a result."""
        return {each.rate for each in self._found.values() if (each.family, each.seed) == (spec.family, spec.seed)}

    def missing(self, specs: Iterable[RunSpec]) -> list[RunSpec]:
        """The runs that have no result yet, each once."""
        return list({spec.key: spec for spec in specs if spec.key not in self._found}.values())


def code_version() -> dict[str, str]:
    """commit: of the checkout the package lies in, or unknown; code: a hash of the package's own source."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    commit = os.environ.get("CMRN_COMMIT", "")
    if not commit:
        try:
            done = subprocess.run(
                ["git", "rev-parse", "--short=12", "HEAD"], cwd=package, capture_output=True, text=True
            )
            commit = done.stdout.strip() if done.returncode == 0 else ""
        except OSError:
            commit = ""
    return {"commit": commit or "unknown", "code": digest.hexdigest()[:12]}
