"""`agentfs clone`: which mount the paths are in, who may, and what the daemon made.

A clone gives no more than `cp -a` would: it takes the rights that a copy takes, to the
source and to the directory of the destination.
"""

from __future__ import annotations

import argparse
import os

from agentfs.cli import output
from agentfs.cli.paths import check_rights, located, resolved
from agentfs.control import client
from agentfs.errors import NoSuchPath, UsageError

_INSTEAD = "copy with cp -a"


def clone_command(arguments: argparse.Namespace) -> int:
    """Have a file or a tree cloned, and wait until every program sees it."""
    source = resolved(arguments.source)
    above, name = os.path.split(os.path.abspath(arguments.destination))
    target = resolved(above) / name
    mount, source_inside = located(source, _INSTEAD)
    target_mount, target_inside = located(target, _INSTEAD)
    if mount.store != target_mount.store:
        raise UsageError(f"{source} and {target} are in different mounts; copy with cp -a")
    if target == target_mount.mountpoint:
        raise UsageError(f"{target} is the mounted directory itself; name one in it")
    if not target.parent.is_dir():
        raise NoSuchPath(f"{target.parent} is not a directory")
    check_rights(source, os.R_OK | (os.X_OK if source.is_dir() else 0), "read")
    check_rights(target.parent, os.W_OK | os.X_OK, "write")
    request = {"source": source_inside, "target": target_inside, "replaces": arguments.force}
    with output.progress() as on_progress:
        result = client.call(mount.store, "clone", request, on_progress=on_progress)
    result = {"source": str(source), "destination": str(target)} | result
    things = f"{result['files']:,} files, {output.size(result['logical_bytes'])}"
    text = f"agentfs: {target} is a clone of {source} ({things}, {result['daemon_s']:.3f} s)"
    return output.answer(arguments.json, result, text)
