"""`agentfs pin`, `agentfs unpin` and `agentfs warm`: for people who know better."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path
from typing import Any

from agentfs.cli import output
from agentfs.cli.paths import check_rights, located, resolved
from agentfs.control import client
from agentfs.errors import NotPermitted, UsageError
from agentfs.machine.mountinfo import Mount

_PIN = "user.agentfs.pin"
_INSTEAD = "its files are nowhere but where they are"


def pin_command(arguments: argparse.Namespace) -> int:
    """Keep a file, or all below a directory, on tmpfs."""
    path, mount, inside = _given(arguments)
    try:
        os.setxattr(path, _PIN, b"1")
    except PermissionError as error:
        raise NotPermitted(
            f"you may not pin {path}: that takes root or the mount's user"
        ) from error
    return _warm(arguments, path, mount, inside, "is pinned")


def warm_command(arguments: argparse.Namespace) -> int:
    """Bring a file, or all below a directory, to tmpfs now."""
    return _warm(arguments, *_given(arguments), "is warm")


def unpin_command(arguments: argparse.Namespace) -> int:
    """Let go of what was pinned."""
    path, _, _ = _given(arguments)
    try:
        os.removexattr(path, _PIN)
    except PermissionError as error:
        raise NotPermitted(f"you may not write to {path}") from error
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        raise UsageError(f"{path} is not pinned itself; a directory above it may be") from error
    return output.answer(arguments.json, {"path": str(path)}, f"agentfs: {path} is not pinned now")


def _given(arguments: argparse.Namespace) -> tuple[Path, Mount, str]:
    path = resolved(arguments.path)
    mount, inside = located(path, _INSTEAD)
    check_rights(path, os.R_OK | (os.X_OK if path.is_dir() else 0), "read")
    return path, mount, inside


def _warm(arguments: argparse.Namespace, path: Path, mount: Mount, inside: str, what: str) -> int:
    with output.progress() as on_progress:
        answer = client.call(mount.store, "warm", {"path": inside}, on_progress=on_progress)
    result: dict[str, Any] = {"path": str(path)} | answer
    text = f"agentfs: {path} {what} ({result['files']:,} files, {output.size(result['bytes'])})"
    if result["left_files"]:
        left = f"{result['left_files']:,} files, {output.size(result['left_bytes'])}"
        text += f"; there is no room for {left} of it"
    return output.answer(arguments.json, result, text)
