"""The `cmrn` command: parse, run one command, and end with the exit code of what happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cmrn_cli.console import Settings, prepare_streams
from cmrn_cli.errors import report

__all__ = ["main", "run"]


def main() -> None:
    """Entry point of the console script."""
    # Threads that wait for one another spin; where another program holds a core, spinning longer costs ten times the
    # time, and sleeping at once costs a third on an idle machine. Read by OpenMP when torch is first loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; a failure has been reported on stderr."""
    prepare_streams()
    try:
        import typer.main

        from cmrn_cli.app import build_app

        command = typer.main.get_command(build_app())
        code = command.main(list(arguments) or ["--help"], prog_name="cmrn", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        return report(error, Settings.scan(arguments))
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
