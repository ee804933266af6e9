"""`agentfs report`: what a store holds, saves and did, as one page."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from agentfs.cli import output
from agentfs.cli.mounts import find_target
from agentfs.control import client
from agentfs.errors import NotPermitted, UsageError


def report_command(arguments: argparse.Namespace) -> int:
    """Ask the daemon, and write the page."""
    from agentfs.cli.page import page

    out = Path(arguments.out)
    if out.is_dir():
        raise UsageError(f"{out} is a directory; name a file, such as {out / 'report.html'}")
    target = find_target(arguments.target)
    with output.progress() as on_progress:
        figures = gather(target.store, on_progress)
    data = page(figures, time.time()).encode(errors="backslashreplace")
    _write(out, data)
    value = {"store": str(target.store), "out": str(out.absolute()), "bytes": len(data)}
    return output.answer(arguments.json, value, f"agentfs: {out} shows {figures['mountpoint']}")


def gather(store: Path, on_progress: client.ProgressFn) -> dict[str, Any]:
    """The daemon's figures, with its `holdings`, `agents` and `samples`."""
    figures = client.call(store, "report", on_progress=on_progress)
    rows: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in figures.pop("rows", []):
        rows[row.pop("of")].append(row)
    return figures | {
        name: rows[name.removesuffix("s")] for name in ("holdings", "agents", "samples")
    }


def _write(out: Path, data: bytes) -> None:
    """Put the page in its place at once, whole."""
    try:
        fd, scratch = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with open(fd, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), 0o644)
            os.replace(scratch, out)
        except BaseException:
            os.unlink(scratch)
            raise
    except PermissionError as error:
        raise NotPermitted(f"you may not write {out}") from error
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}; name another file") from error
