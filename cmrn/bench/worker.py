"""`python -m cmrn.bench.worker`: runs from stdin, a line each; results to stdout, a line each; progress to stderr.

Runs of one process share its compiled code, so those of one structure come one after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

__all__ = ["main"]


def main() -> int:
    """Do every run that stdin names; 1 where one of them failed, its traceback on stderr."""
    parser = argparse.ArgumentParser(prog="cmrn.bench.worker")
    parser.add_argument("--device", required=True)
    parser.add_argument("--tokens", type=Path, help="the file of tokens, for runs on text")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    import torch

    from cmrn.bench.runs import RunSpec
    from cmrn.bench.text import read

    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    text = read(arguments.tokens) if arguments.tokens else None
    failed = 0
    for line in sys.stdin:
        spec = RunSpec.from_json(line)
        label = f"{spec.variant} seed {spec.seed} rate {spec.rate:g}"
        started = time.monotonic()

        def say(message: str, label: str = label) -> None:
            print(f"{label}: {message}", file=sys.stderr, flush=True)

        try:
            if spec.task == "mqar":
                from cmrn.bench.mqar import train_run as recall_run

                result = recall_run(spec, device, say)
            else:
                from cmrn.bench.train import train_run

                assert text is not None
                result = train_run(spec, text, device, say)
        except Exception:
            failed = 1
            say(traceback.format_exc())
            continue
        say(f"{result.figures['mean']:.4f} after {time.monotonic() - started:.0f} s")
        print(result.to_json(), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return failed


if __name__ == "__main__":
    sys.exit(main())
