from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest

from cmrn import errors
from cmrn.errors import CMRNError, ConfigError, InterruptedRunError, Problem
from cmrn_cli.console import Settings
from cmrn_cli.errors import report

FAILURES: list[tuple[BaseException, int]] = [
    (errors.UsageError("m"), 2),
    (ConfigError("1 problem", [Problem("r.yaml:1:1", "k", "unknown key", "did you mean q?")]), 2),
    (errors.DataError("m"), 3),
    (errors.CheckpointError("m"), 4),
    (errors.LockedError("m"), 5),
    (errors.ResourceError("m"), 6),
    (errors.MissingExtraError("m"), 7),
    (errors.GuaranteeError("m"), 8),
    (InterruptedRunError("m", signal_number=signal.SIGINT), 130),
    (InterruptedRunError("m", signal_number=signal.SIGTERM), 143),
    (KeyboardInterrupt(), 130),
    (MemoryError(), 6),
    (OSError(errno.ENOSPC, "No space left on device"), 6),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), 6),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"), 2),
    (PermissionError(errno.EACCES, "Permission denied", "mine"), 2),
    (ZeroDivisionError("a bug"), 1),
    (OSError(errno.EIO, "Input/output error"), 1),
]


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert report(error, Settings()) == code
    plain = capsys.readouterr()
    assert plain.out == ""
    assert plain.err.startswith("error: ")
    assert "Traceback" not in plain.err
    assert report(error, Settings(json=True)) == code
    machine = capsys.readouterr()
    assert machine.out == ""
    document = json.loads(machine.err)["error"]
    assert document["code"] == code
    assert {"code", "message", "where", "hint"} <= set(document)
    logs = list(tmp_path.glob("cmrn-crash-*.log"))
    assert len(logs) == (2 if code == 1 and not isinstance(error, CMRNError) else 0)
    assert all(str(log) in plain.err + machine.err for log in logs)


def test_every_error_class_has_its_row() -> None:
    def below(kind: type[CMRNError]) -> set[type[CMRNError]]:
        return {kind}.union(*(below(sub) for sub in kind.__subclasses__() if sub.__module__ == "cmrn.errors"))

    assert below(CMRNError) - {CMRNError} <= {type(error) for error, _ in FAILURES}


def test_a_crash_log_holds_the_traceback_and_debug_shows_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError) as caught:
        raise ZeroDivisionError("a bug \x1b[31m")
    assert report(caught.value, Settings(debug=True)) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "\x1b" not in shown
    (log,) = tmp_path.glob("cmrn-crash-*.log")
    assert "ZeroDivisionError: a bug" in log.read_text("utf-8")


def test_messages_from_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202e\x9b31m[red]"
    problem = Problem(f"f{hostile}:1:1", hostile, hostile + "\n", hostile)
    report(ConfigError(hostile, [problem], where=hostile), Settings())
    report(CMRNError(hostile, where=hostile, hint=hostile), Settings())
    shown = capsys.readouterr().err
    assert not set(shown) & set("\x1b\x9b\u202e")
    assert shown.count("[red]") == 9


def test_problems_are_listed_under_json(capsys: pytest.CaptureFixture[str]) -> None:
    report(
        ConfigError("1 problem", [Problem("r.yaml:1:1", "k", "unknown key", "did you mean q?")]), Settings(json=True)
    )
    document = json.loads(capsys.readouterr().err)["error"]
    assert document["problems"] == [
        {"where": "r.yaml:1:1", "key": "k", "message": "unknown key", "hint": "did you mean q?"}
    ]
