"""`agentfs sync`, `agentfs gc` and `agentfs compact`: work that a live daemon does on request."""

from __future__ import annotations

import argparse
from typing import Any

from agentfs.cli import output
from agentfs.cli.mounts import find_target
from agentfs.control import client


def sync_command(arguments: argparse.Namespace) -> int:
    """Have all files sealed, and wait until that is on disk."""
    result = _ask(arguments, "sync")
    text = "agentfs: everything is sealed and on disk"
    if isinstance(result.get("files"), int):
        text += f" ({result['files']:,} files just now)"
    return output.answer(arguments.json, result, text)


def gc_command(arguments: argparse.Namespace) -> int:
    """Have garbage removed from the segments."""
    return _make_room(arguments, "gc", "garbage is collected")


def compact_command(arguments: argparse.Namespace) -> int:
    """Have everything that is sealed packed as small as it gets."""
    return _make_room(arguments, "compact", "the store is compact")


def _make_room(arguments: argparse.Namespace, op: str, done: str) -> int:
    result = _ask(arguments, op)
    text = f"agentfs: {done}"
    freed_bytes = result.get("stored_bytes")
    if isinstance(freed_bytes, int):
        text += f", {output.size(max(freed_bytes, 0))} given back to the disk"
    return output.answer(arguments.json, result, text)


def _ask(arguments: argparse.Namespace, op: str) -> dict[str, Any]:
    target = find_target(arguments.target)
    with output.progress() as on_progress:
        return client.call(target.store, op, on_progress=on_progress)
