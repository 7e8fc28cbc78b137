"""The one place where a failure becomes a message and an exit code."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from typing import TypeGuard

from cmrn.errors import CMRNError, ConfigError, InterruptedRunError, ResourceError, UsageError
from cmrn_cli.console import Settings, sanitize

__all__ = ["exit_code", "report", "translate"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
_ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "out of memory", "unable to mmap")


def report(error: BaseException, settings: Settings) -> int:
    """Tell the person what went wrong, on stderr, and return the exit code."""
    known = translate(error)
    try:
        if settings.debug:
            sys.stderr.write(sanitize("".join(traceback.format_exception(error))))
        sys.stderr.write(_as_json(known) if settings.json else _as_text(known))
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    return exit_code(known)


def exit_code(error: CMRNError) -> int:
    """The error's exit code; an interrupted run's is that of its signal."""
    return 128 + error.signal_number if isinstance(error, InterruptedRunError) else error.exit_code


def translate(error: BaseException) -> CMRNError:
    """Any exception as one of ours; what is not a person's doing is written to a crash log."""
    if isinstance(error, CMRNError):
        return error
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return InterruptedRunError("interrupted", signal_number=2)
    usage = getattr(error, "format_message", None)
    if usage is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "cmrn"
        return UsageError(usage(), hint=f"{command} --help")
    if _is_exhausted(error):
        return ResourceError(f"out of memory or disk: {error}" if str(error) else "out of memory or disk")
    if _is_of_a_path(error):
        return UsageError(str(error.strerror or error), where=None if error.filename is None else str(error.filename))
    summary = traceback.format_exception_only(error)[-1].strip()
    return CMRNError(
        f"unexpected: {summary}", where=_crash_log(error), hint="run again with --debug to see the traceback"
    )


def _is_of_a_path(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused a path that the person named."""
    kinds = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError
    return isinstance(error, kinds) or (isinstance(error, OSError) and error.errno in _NO_PATH)


def _is_exhausted(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _FULL):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATION_FAILED)


def _crash_log(error: BaseException) -> str | None:
    """Write the traceback to a new file and return its path; None where that fails too."""
    try:
        descriptor, path = tempfile.mkstemp(prefix="cmrn-crash-", suffix=".log", text=True)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"python {sys.version}\narguments {sys.argv[1:]!r}\n\n")
            log.write("".join(traceback.format_exception(error)))
    except OSError:
        return None
    return path


def _as_text(error: CMRNError) -> str:
    place = f"{error.where}: " if error.where else ""
    lines = [sanitize(f"error: {place}{error.message}")]
    if isinstance(error, ConfigError):
        for problem in error.problems:
            advice = f"; {problem.hint}" if problem.hint else ""
            lines.append("  " + sanitize(f"{problem.where}  {problem.key}  {problem.message}{advice}", one_line=True))
    if error.hint:
        lines += ["", sanitize(f"hint: {error.hint}")]
    return "\n".join(lines) + "\n"


def _as_json(error: CMRNError) -> str:
    body: dict[str, object] = {
        "code": exit_code(error),
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
    }
    if isinstance(error, ConfigError):
        body["problems"] = [vars(problem) for problem in error.problems]
    return json.dumps({"error": body}, ensure_ascii=True) + "\n"
