"""The process that jobs are forked from: `python -m cmrn.bench.faults.server [MODULE…]`, requests on its stdin.

A request is a JSON document a line: {"job", "arguments", "events", "arming"?} is answered with {"pid"}, and {"wait",
"limit"} with {"status"}, null where the limit passed and the job was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from typing import Any

from cmrn.bench.faults.events import Events
from cmrn.bench.faults.jobs import JOBS
from cmrn.bench.faults.shim import Arming, arm, calls
from cmrn.errors import CMRNError

__all__ = ["serve"]

UNEXPECTED = 70
"""The exit code of a job that ended with an exception which is none of ours."""


def serve() -> None:
    """Answer requests until stdin ends."""
    for module in sys.argv[1:]:
        import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"status": _wait(request["wait"], request["limit"])} if "wait" in request else {"pid": _fork(request)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _fork(request: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        code = UNEXPECTED
        try:
            code = _work(request)
        finally:
            os._exit(code)
    return child


def _work(request: dict[str, Any]) -> int:
    """Do a job in the child and return its exit code."""
    # The server's own channels are no place for what a job may print.
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    arming = Arming(**request["arming"]) if "arming" in request else None
    events = Events(request["events"], noted=arming is not None and arming.journal is not None)
    try:
        if arming is not None:
            arm(arming)
        result = JOBS[request["job"]](events, **request["arguments"])
        events.write({"result": result, "calls": calls() if arming is not None else None})
    except CMRNError as error:
        events.write({"error": str(error), "code": error.exit_code})
        return error.exit_code
    except BaseException:
        raised = traceback.TracebackException(*sys.exc_info())
        place = raised.stack[-1]
        said = "".join(raised.format_exception_only()).strip()[:400]
        events.write({"error": f"{said} ({place.filename}:{place.lineno})", "code": UNEXPECTED})
        return UNEXPECTED
    return 0


def _wait(pid: int, limit: float) -> int | None:
    """The status a child ended with; None where it had to be killed after `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.0005)


if __name__ == "__main__":
    serve()
