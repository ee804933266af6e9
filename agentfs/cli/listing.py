"""`agentfs ls`: files with what they mean to agents."""

from __future__ import annotations

import argparse
import os
from typing import Any

from agentfs.cli import output
from agentfs.cli.paths import check_rights, located, resolved
from agentfs.control import client

_NOTHING = "-"


def ls_command(arguments: argparse.Namespace) -> int:
    """List a file, or what is in a directory."""
    path = resolved(arguments.path)
    mount, inside = located(path, "list it with ls")
    if path.is_dir():
        check_rights(path, os.R_OK | os.X_OK, "list")
    entries = client.call(mount.store, "ls", {"path": inside}).get("rows", [])
    if arguments.json:
        output.print_json({"path": str(path), "entries": entries})
    elif arguments.long:
        output.print_columns(map(_cells, entries), right=(4, 5))
    else:
        for entry in entries:
            print(output.printable(entry["name"]))
    return 0


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    reduction = entry["reduction"]
    return (
        entry["type"],
        entry["kind"] or _NOTHING,
        entry["agent"] or _NOTHING,
        entry["tier"] or _NOTHING,
        output.size(entry["size"]) if entry["type"] == "-" else _NOTHING,
        f"{reduction:.1f}x" if reduction is not None else _NOTHING,
        output.printable(entry["name"]),
    )
